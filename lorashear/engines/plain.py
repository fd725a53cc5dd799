"""The result folder itself, which transformers loads, and all that builds on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorashear.disk.checkpoint import Checkpoint
from lorashear.engines.target import Told, Wish


class Plain:
    """A model folder as it is."""

    name = "transformers"
    engines = "transformers, PEFT, lm-evaluation-harness, vLLM; uniform results everywhere that LLaMA loads"
    is_file = False
    dtypes = ()

    def refusal(self, source: Checkpoint) -> str | None:
        """None: it is one already."""
        return None

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of all its files."""
        return sum(file.stat().st_size for file in source.folder.rglob("*") if file.is_file())

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """A copy of the folder."""
        shutil.copytree(source.folder, out, dirs_exist_ok=True)
        return ""
