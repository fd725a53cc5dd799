"""`export`: a result in the format of an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.lora import CONFIG, held_in
from lorashear.disk.output import check_file, check_target, output_file, output_folder
from lorashear.engines.gguf_file import Gguf
from lorashear.engines.gguf_lora import GgufLora
from lorashear.engines.mlx import Mlx
from lorashear.engines.needs import NEEDS
from lorashear.engines.onnx_model import Onnx
from lorashear.engines.openvino_model import OpenVino
from lorashear.engines.padded import Padded
from lorashear.engines.plain import Plain
from lorashear.engines.target import Target, Wish
from lorashear.errors import LorashearError
from lorashear.terminal.stages import Progress

TARGETS: dict[str, Target] = {each.name: each for each in (Plain(), Padded(), Gguf(), Onnx(), OpenVino(), Mlx())}
ADAPTERS: dict[str, Target] = {each.name: each for each in (GgufLora(),)}
"""Those for the folder of an adapter, whose checkpoint is the adapter's."""
ALSO = {"safetensors": "transformers"}
"""Other names."""


def export(
    model: object,
    format: str,
    path: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> str:
    """Write a model or result folder, or the folder of an adapter, to ``path`` in a format, one of `TARGETS`; it appears whole or not at all.

    Args:
        model: a folder; or a transformers model in memory, which is saved to a folder first.
        dtype: of the weights, in the words of the format; by default as stored.
        progress: called with ("export", done, total).

    Returns:
        What was done that one should know, as padding; or nothing.

    Raises:
        LorashearError: an unknown format or dtype, no model, one that the format cannot hold, or the target is in use.
    """
    _target(format, TARGETS)
    wish = Wish(dtype)
    if isinstance(model, str | Path):
        return _written(Path(model).expanduser(), format, Path(path), wish, overwrite, progress)
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise LorashearError(f"export takes a folder or a transformers model, and {type(model).__name__} is neither")
    with tempfile.TemporaryDirectory(prefix="lorashear-") as scratch:
        save(scratch)
        return _written(Path(scratch), format, Path(path), wish, overwrite, progress)


def refusals(folder: str | Path) -> dict[str, str | None]:
    """For each target, why it cannot hold the model in a folder; None where it can.

    Raises:
        LorashearError: there is no model.
    """
    folder = Path(folder).expanduser()
    source, targets = _opened(folder), ADAPTERS if _is_adapter(folder) else TARGETS
    return {name: target.refusal(source) for name, target in targets.items()}


def check_loads(source: Checkpoint, engine: str, tensor_parallel: int = 1) -> None:
    """Whether a model can be exported for an engine once it is pruned, for asking before any work is done.

    Raises:
        LorashearError: it cannot, or not be split so.
    """
    if reason := TARGETS[NEEDS[engine].format].refusal(source):
        raise LorashearError(f"'{source.folder}' cannot go to {engine} once it is pruned: {reason}")
    heads = source.config.get("num_key_value_heads") or source.config.get("num_attention_heads") or 0
    if tensor_parallel > 1 and heads % tensor_parallel:
        raise LorashearError(
            f"'{source.folder}' has {heads} key-value heads in a layer, which {tensor_parallel} devices cannot share: "
            "pass a tensor_parallel that divides them"
        )


def _target(format: str, targets: Mapping[str, Target], of: str = "") -> Target:
    found = targets.get(ALSO.get(format, format))
    if found is None:
        raise LorashearError(f"there is no export{of} to {format}; there is {', '.join(targets)}")
    return found


def _is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


def _opened(folder: Path) -> Checkpoint:
    return held_in(folder) if _is_adapter(folder) else Checkpoint.open(folder)


def _written(folder: Path, format: str, path: Path, wish: Wish, overwrite: bool, progress: Progress | None) -> str:
    target = _target(format, ADAPTERS, " of an adapter") if _is_adapter(folder) else _target(format, TARGETS)
    if (dtype := wish.dtype) is not None and dtype not in target.dtypes:
        known = f"there is {', '.join(target.dtypes)}" if target.dtypes else "it keeps what is stored: leave dtype out"
        raise LorashearError(f"dtype is {dtype}, which {target.name} does not have; {known}")
    source = _opened(folder)
    if reason := target.refusal(source):
        raise LorashearError(f"'{folder}' cannot go to {target.name}: {reason}")

    def told(done: int, total: int) -> None:
        if progress:
            progress("export", done, total)

    needed = target.bytes(source, wish)
    if target.is_file:
        check_file(path, overwrite=overwrite)
        with output_file(path, overwrite=overwrite) as work:
            return target.write(source, work, wish, told)
    check_target(path, source=folder, overwrite=overwrite, bytes_needed=needed)
    with output_folder(path, source=folder, overwrite=overwrite, bytes_needed=needed) as work:
        return target.write(source, work, wish, told)
