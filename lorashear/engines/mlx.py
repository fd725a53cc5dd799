"""A model folder for mlx-lm: as it is, with what mlx-lm reads of its config, and a file that builds layers with widths of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import write_json
from lorashear.engines.llama import Llama, adapter_refusal
from lorashear.engines.target import Told, Wish
from lorashear.errors import LorashearError

MODEL_FILE = Path(__file__).with_name("mlx_lorashear_llama.py")
ROPES = ("default", "linear", "llama3", "yarn")
"""Types of rotary embeddings that were seen to be those of transformers."""


class Mlx:
    """A model folder; its ``model_file``, where it has one, mlx-lm runs where it is told to (``trust_remote_code``)."""

    name = "mlx"
    engines = "mlx-lm, with trust_remote_code where layers have widths of their own"
    is_file = False
    dtypes = ()

    def refusal(self, source: Checkpoint) -> str | None:
        """Why mlx-lm would not compute the same."""
        try:
            llama = Llama.of(source)
        except LorashearError as error:
            return str(error)
        if (kind := llama.rope["rope_type"]) not in ROPES:
            return f"its rotary embeddings are of type {kind}; mlx-lm has {', '.join(ROPES)}"
        return adapter_refusal(source)

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in source.folder.rglob("*") if file.is_file())

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """A copy of the folder. mlx-lm takes the rotary embeddings from the names of before, and a missing one for 10,000."""
        llama = Llama.of(source)
        shutil.copytree(source.folder, out, dirs_exist_ok=True)
        scaling = {name: value for name, value in llama.rope.items() if name != "rope_theta"}
        content = {
            **source.config,
            "rope_theta": llama.rope["rope_theta"],
            "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
            "rms_norm_eps": llama.eps,
            "tie_word_embeddings": llama.tied,
        }
        if not llama.is_plain(source):
            shutil.copyfile(MODEL_FILE, out / MODEL_FILE.name)
            widths = [[each.heads, each.kv_heads, each.ffn] for each in llama.layers]
            content |= {"model_file": MODEL_FILE.name, "layer_widths": widths}
        write_json(out / "config.json", content)
        return ""
