"""Datasets of a hub, streamed: nothing of them is stored, and no more is read than is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from lorashear.errors import LorashearError
from lorashear.text.documents import BATCH_ROWS

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+))?(?::([\w.-]+))?", re.ASCII)
SPLIT = "train"
FILES_AT_ONCE = 10


@dataclass(frozen=True)
class HubDataset:
    """``owner/name``, ``owner/name:config`` or ``owner/name:config:split``; a document a row, in the column "text".

    Which hub, which token and where its index files are kept follow from the environment of `datasets`.
    """

    repository: str
    config: str | None
    split: str
    revision: str | None = None

    @classmethod
    def named(cls, text: str) -> Self | None:
        """What a text names; None where it cannot be a dataset's name."""
        found = NAME.fullmatch(text)
        return cls(found[1], found[2], found[3] or SPLIT) if found else None

    def __str__(self) -> str:
        return ":".join([self.repository, *([self.config] if self.config else []), self.split])

    def check(self) -> None:
        """Raises LorashearError where the hub does not have it, or not with a column "text"."""
        with self._found():
            stream = self._builder.as_streaming_dataset(split=self.split)
            columns = stream.column_names or list(next(iter(stream), {"text": ""}))
        if "text" not in columns:
            raise LorashearError(f'{self} has no column "text"; it has {", ".join(columns)}')

    def documents(self, seed: int) -> Iterator[str]:
        """Its documents, from several of its files at a time; the seed decides the order of the files.

        Raises:
            LorashearError: the hub stops answering, or a text is no string.
        """
        with self._read_on():
            if self._builder.name == "parquet":
                self._builder.config.columns = ["text"]
            stream = self._stream().select_columns(["text"])
            for row in stream.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=FILES_AT_ONCE):
                text = row["text"]
                if text is not None and not isinstance(text, str):
                    raise LorashearError(f'{self}: the column "text" does not hold strings')
                yield text or ""

    def records(self) -> Iterator[dict[str, Any]]:
        """Its rows with all their columns, one after another.

        Raises:
            LorashearError: the hub does not have it, or stops answering.
        """
        with self._found():
            stream = self._stream()
        with self._read_on():
            yield from stream

    @property
    def content(self) -> list[Any]:
        """What it is known by: its files, and the commit that they are of."""
        files = self._builder.config.data_files[self.split]
        return [list(map(str, files)), [list(origin) for origin in files.origin_metadata]]

    def _stream(self) -> Any:
        if self._builder.name == "parquet":  # or whole row groups would be held, of several files
            self._builder.config.batch_size = BATCH_ROWS
        return self._builder.as_streaming_dataset(split=self.split)

    def _found(self) -> AbstractContextManager[None]:
        return _asked(f"{self.repository} is no file here, and as a dataset of the hub it cannot be read")

    def _read_on(self) -> AbstractContextManager[None]:
        return _asked(f"{self} cannot be read on from the hub")

    @cached_property
    def _builder(self) -> Any:
        import datasets  # here: a second that no other command pays

        how: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        return datasets.load_dataset_builder(self.repository, self.config, **how)


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """What goes wrong while the hub is asked, of the network, the hub or any format that it has, as one sentence."""
    try:
        yield
    except LorashearError:
        raise
    except Exception as error:
        raise LorashearError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
