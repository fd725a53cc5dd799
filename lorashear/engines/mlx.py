"""Layers with widths of their own for mlx-lm: the folder as it is, and a file that builds it there."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorashear.checkpoint import Checkpoint
from lorashear.engines.llama import Llama, own_widths_refusal
from lorashear.engines.target import Told, Wish
from lorashear.folder import write_json

MODEL_FILE = Path(__file__).with_name("mlx_lorashear_llama.py")


class Mlx:
    """A model folder whose ``model_file`` mlx-lm runs where it is told to (``trust_remote_code``)."""

    name = "mlx"
    engines = "mlx-lm, with trust_remote_code"
    is_file = False
    dtypes = ()

    def refusal(self, source: Checkpoint) -> str | None:
        """Why mlx-lm needs no file of ours, or is not helped by it."""
        return own_widths_refusal(source)

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in source.folder.rglob("*") if file.is_file())

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """A copy of the folder, with the widths of all layers in its config."""
        llama = Llama.of(source)
        shutil.copytree(source.folder, out, dirs_exist_ok=True)
        shutil.copyfile(MODEL_FILE, out / MODEL_FILE.name)
        widths = [[each.heads, each.kv_heads, each.ffn] for each in llama.layers]
        write_json(out / "config.json", {**source.config, "model_file": MODEL_FILE.name, "layer_widths": widths})
        return ""
