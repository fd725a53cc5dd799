"""What a user gives as text: files, folders of files, datasets of a hub; small enough for memory, or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from lorashear.errors import LorashearError
from lorashear.text.documents import READERS, check_readable, read_texts, reading
from lorashear.text.hub import HubDataset
from lorashear.text.places import places
from lorashear.text.sampling import FileSample, Sample, StreamSample

MEMORY_BYTES = 256 << 20
"""Of files that are read whole, and every document held; of more only a sample is read."""
# What a large file is known by, besides its size and time: so many blocks, the first and the last among them.
BLOCKS = 16
BLOCK_BYTES = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """``files`` in the order given, those of a folder sorted; ``bytes`` is what they are on disk."""

    files: tuple[Path, ...]
    datasets: tuple[HubDataset, ...]
    bytes: int

    @classmethod
    def of(cls, texts: Sequence[str | Path] | str | Path) -> Self:
        """Of .txt, .jsonl and .parquet files, folders with such files at any depth, and datasets of a hub (see `HubDataset`).

        What exists here is taken for itself, whatever it is called.

        Raises:
            LorashearError: a path is missing, a folder without such files, or of an unknown kind; or the hub does not have a
                dataset.
        """
        files, datasets = given(texts, READERS, "text")
        for dataset in datasets:
            dataset.check()
        return cls(tuple(files), tuple(datasets), sum(_bytes(path) for path in files))

    @property
    def fits(self) -> bool:
        """Whether all of it may be held in memory. A dataset of a hub never is."""
        return not self.datasets and self.bytes <= MEMORY_BYTES

    def read(self) -> list[str]:
        """Every document of the files, in order. Raises LorashearError as `read_texts` does."""
        return read_texts(self.files)

    def sample(self, seed: int) -> Sample:
        """Documents from all over the corpus; the same seed gives the same."""
        parts: list[FileSample | StreamSample] = []
        if found := places(self.files):
            parts.append(FileSample(found, seed))
        parts += [StreamSample(dataset.documents(seed), seed) for dataset in self.datasets]
        return Sample(parts)

    def digest(self) -> str:
        """What the corpus is known by, without reading all of it.

        Of files up to a megabyte that is their content; of larger ones size, time of the last change and sixteen blocks of
        64 KB; of a dataset of a hub its files and their commit.
        """
        known: list[Any] = [[path.suffix.lower(), _known(path)] for path in self.files]
        known += [dataset.content for dataset in self.datasets]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def check_there(sources: Mapping[str, Sequence[str | Path]]) -> None:
    """Raises LorashearError as `given` does; for asking before a model is read."""
    for several in sources.values():
        given(several, READERS, "text")


def given(
    names: Sequence[str | Path] | str | Path, endings: Collection[str], kind: str
) -> tuple[list[Path], list[HubDataset]]:
    """The files that are named, those of folders sorted, and the datasets of a hub, which is not asked yet.

    Raises:
        LorashearError: a path is missing, a folder without such files, or of an unknown kind.
    """
    files: list[Path] = []
    datasets: list[HubDataset] = []
    for name in [names] if isinstance(names, str | Path) else names:
        path = Path(name)
        dataset = None if path.exists() or path.suffix.lower() in endings else HubDataset.named(str(name))
        if dataset:
            datasets.append(dataset)
        elif path.is_dir():
            files += _inside(path, endings, kind)
        else:
            check_readable(path, endings, kind)
            files.append(path)
    return files, datasets


def _inside(folder: Path, endings: Collection[str], kind: str) -> list[Path]:
    """The files of a kind in a folder, hidden ones left out."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in endings
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise LorashearError(f"{folder} is a folder without {kind} files; they end in {', '.join(endings)}")
    return found


def _bytes(path: Path) -> int:
    if not (found := path.stat().st_size):
        raise LorashearError(f"{path} holds no text; give a file with at least one document")
    return found


def _known(path: Path) -> list[Any]:
    with reading(path), path.open("rb") as file:
        state = path.stat()
        if state.st_size <= BLOCKS * BLOCK_BYTES:
            return [hashlib.sha256(file.read()).hexdigest()]
        found = hashlib.sha256()
        for start in np.linspace(0, state.st_size - BLOCK_BYTES, BLOCKS).astype(np.int64).tolist():
            file.seek(start)
            found.update(file.read(BLOCK_BYTES))
        return [state.st_size, state.st_mtime_ns, found.hexdigest()]
