"""What is judged: models in folders, of a hub or in memory, and what they are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorashear import adapters, models
from lorashear.config import Training
from lorashear.disk import checkpoint
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE
from lorashear.disk.lora import held_in
from lorashear.emission.declared import positions
from lorashear.errors import LorashearError
from lorashear.loading import working_copy
from lorashear.text.calibration import read_tokenizer
from lorashear.text.windows_file import tokenizer_content


def short(names: Sequence[str]) -> list[str]:
    """Names to tell models apart by: the last part of each path where no two share it; a model's second place has a number."""
    last = {name: Path(name).name or name for name in names}
    told = [name if list(last.values()).count(last[name]) > 1 else last[name] for name in names]
    return [f"{name} ({before + 1})" if (before := told[:at].count(name)) else name for at, name in enumerate(told)]


@dataclass(frozen=True)
class Subject:
    """A model under the name that it was given by; a folder, with the adapter that lies beside it, or a module in memory."""

    name: str
    folder: Path | None
    module: nn.Module | None
    tokenizer: PreTrainedTokenizerBase | None
    """Of a module; that of a folder lies in it."""
    trust_remote_code: bool

    @classmethod
    def of(
        cls, model: models.Model, *, tokenizer: Any = None, revision: str | None = None, trust_remote_code: bool = False
    ) -> Subject:
        """Raises LorashearError where there is no such model, or its files are broken."""
        models.check_kind(model)
        if isinstance(model, nn.Module):
            if not hasattr(model, "config"):
                raise LorashearError(
                    f"{type(model).__name__} has no config: a language model of transformers is needed"
                )
            return cls(type(model).__name__, None, model, tokenizer, trust_remote_code)
        folder = checkpoint.resolve(model, revision)
        Checkpoint.open(folder)
        return cls(str(model), folder, None, None, trust_remote_code)

    @cached_property
    def config(self) -> Any:
        """The model's, as transformers has it."""
        if self.folder is None:
            module: Any = self.module
            return module.config
        return models.read_config(self.folder, trust_remote_code=self.trust_remote_code)

    @property
    def positions(self) -> int | None:
        """How many tokens it can read at once; None where its config does not say."""
        return positions(self.config)

    @cached_property
    def reader(self) -> PreTrainedTokenizerBase:
        """Its tokenizer. Raises LorashearError where there is none."""
        if self.folder is not None:
            return read_tokenizer(self.folder, trust_remote_code=self.trust_remote_code)
        if self.tokenizer is None:
            raise LorashearError(f"{self.name} is in memory, and its tokenizer is not: pass tokenizer")
        return self.tokenizer

    @cached_property
    def sha256(self) -> str:
        """A hash of config, names and weights, of modelling code and an adapter beside them too; of a module, of its state as it is."""
        if self.folder is None:
            assert self.module is not None
            found = hashlib.sha256(self.config.to_json_string().encode())
            for name, value in self.module.state_dict().items():
                found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            return found.hexdigest()
        known = [Checkpoint.open(self.folder).identity()]
        known += [held_in(self.adapter).identity()] if self.adapter else []
        known += [hashlib.sha256(code.read_bytes()).hexdigest() for code in sorted(self.folder.glob("*.py"))]
        return hashlib.sha256("".join(known).encode()).hexdigest()

    @cached_property
    def reads(self) -> str:
        """A hash of all that its tokenizer is."""
        return tokenizer_content(self.reader)

    @property
    def adapter(self) -> Path | None:
        """The folder of an adapter that a result keeps beside it."""
        beside = self.folder / BESIDE if self.folder else None
        return beside if beside and beside.is_dir() else None

    @property
    def bytes(self) -> int | None:
        """Of its weights files; None of a module in memory."""
        return Checkpoint.open(self.folder).bytes if self.folder else None

    def loaded(self, settings: Training) -> nn.Module:
        """The model, on the device and in the dtype that the settings say; one in memory as it is, and where."""
        if self.module is not None:
            return self.module
        assert self.folder is not None
        model = working_copy(self.folder, settings=settings, trust_remote_code=self.trust_remote_code)
        return adapters.carrying(model, self.adapter) if self.adapter else model

    @property
    def commit(self) -> str | None:
        """Of a hub id: what was read, which is what its folder in the hub's cache is called."""
        return self.folder.name if self.folder and self.folder.parent.name == "snapshots" else None

    def about(self, model: nn.Module, judged: bool) -> dict[str, Any]:
        """For the report; ``model`` is the loaded one, and ``judged`` says that it read text."""
        config = self.config.get_text_config()
        return {
            "name": self.name,
            "in_memory": self.folder is None,
            "commit": self.commit,
            "sha256": self.sha256,
            "tokenizer": self.reads if judged else None,
            "adapter": self.adapter is not None,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": self.bytes,
            "class": type(model).__name__,
            "layers": getattr(config, "num_hidden_layers", None),
            "positions": self.positions,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        }
