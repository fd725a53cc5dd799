"""Task files of lm-evaluation-harness that a user wrote, whose data lie on disk: YAML to what the harness takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import has_magic, iglob
from pathlib import Path
from types import ModuleType
from typing import Any

from lorashear.errors import LorashearError
from lorashear.text.documents import check_readable, reading

ENDINGS = (".yaml", ".yml")
# What `datasets` itself reads from files, without a hub.
LOCAL = ("json", "csv", "parquet", "text", "arrow")


@dataclass(frozen=True)
class TaskFile:
    """``config`` is the task as the harness takes it in place of a file's name, with ``data_files`` that do not depend on where one
    is; ``files`` are all that it is made of, and its data."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Of the task."""
        return str(self.config["task"])


def task_config(path: str | Path) -> dict[str, Any]:
    """The config of `task_file`."""
    return task_file(path).config


def task_file(path: str | Path) -> TaskFile:
    """A task in a file of the harness's.

    Of what is included, and of functions (``!function module.name``), the paths count from the file that names them. Such
    a function's module is run.

    Raises:
        LorashearError: the file is missing or no YAML, has no name of a task, its data are no local files or are missing,
            or a function is not to be found.
    """
    path, read = Path(path), list[Path]()
    config = _read(path, (), read)
    if not isinstance(config.get("task"), str):
        raise LorashearError(f'{path} has no name of a task; give it one, as "task: mine"')
    kind = config.get("dataset_path")
    if kind not in LOCAL:
        raise LorashearError(
            f"{path}: its dataset_path is {kind!r}, and a task's data are read from files here; "
            f"say {', '.join(LOCAL)} and name the files in dataset_kwargs"
        )
    given = config.get("dataset_kwargs")
    if not isinstance(given, dict) or not given.get("data_files"):
        raise LorashearError(f"{path} names no data; give data_files in dataset_kwargs")
    data = [Path(each) for place in _flat(given["data_files"]) for each in sorted(iglob(place, recursive=True))]
    return TaskFile(path, config, (*read, *data))


def _flat(files: Any) -> list[str]:
    """Of one file or several, or by split."""
    if isinstance(files, dict):
        files = list(files.values())
    return [place for each in files for place in _flat(each)] if isinstance(files, list) else [str(files)]


def _read(path: Path, includers: Sequence[Path], read: list[Path]) -> dict[str, Any]:
    """A file's mapping over those of the files that it includes; all that are read are put behind ``read``."""
    import yaml  # here: who has no such file need not have it

    check_readable(path, (path.suffix.lower(),) if includers else ENDINGS, "task")
    if path.resolve() in includers:
        raise LorashearError(f"{path} includes itself; leave that out")
    found: Any
    read.append(path)
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        found = yaml.load(text, Loader=_loader(path, read))  # a safe loader, which makes no object but for our tag
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise LorashearError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or error}); mend it") from None
    if not isinstance(found, dict):
        raise LorashearError(f'{path} is no mapping; write lines as "task: mine"')
    included = found.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(name), (*includers, path.resolve()), read)
    if isinstance(given := found.get("dataset_kwargs"), dict) and given.get("data_files"):
        found["dataset_kwargs"] = {**given, "data_files": _placed(given["data_files"], path)}
    return merged | found


def _placed(files: Any, path: Path) -> Any:
    """Data files as a task file names them, one or several or by split, from its folder on."""
    if isinstance(files, dict):
        return {split: _placed(some, path) for split, some in files.items()}
    if isinstance(files, list):
        return [_placed(some, path) for some in files]
    place = path.parent.absolute() / str(files)
    if not (next(iglob(str(place), recursive=True), None) if has_magic(str(files)) else place.is_file()):
        raise LorashearError(f"{path} names the data {files}, which is no file from its folder on; mend data_files")
    return str(place)


def _loader(path: Path, read: list[Path]) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: Any) -> Callable[..., Any]:
        return _function(str(loader.construct_scalar(node)), path, read)

    Loader.add_constructor("!function", function)
    return Loader


def _function(name: str, path: Path, read: list[Path]) -> Callable[..., Any]:
    """``module.function`` of a module beside the task file."""
    module, _, function = name.rpartition(".")
    file = path.parent / f"{module.replace('.', '/')}.py"
    if not module or not file.is_file():
        raise LorashearError(f"{path} names the function {name}, and there is no {file.name} beside it; mend the name")
    read.append(file)
    loaded = ModuleType(file.stem)
    loaded.__file__ = str(file)
    try:
        # Not imported, which would leave its bytecode in the user's folder.
        exec(compile(file.read_bytes(), file, "exec"), vars(loaded))
        return getattr(loaded, function)
    except Exception as error:  # it is a program of the user's
        raise LorashearError(
            f"{path} names the function {name}, which cannot be had: {error!r}; mend {file}"
        ) from error
