"""Documents of a large corpus in random order, read as they are asked for and never held together."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice, zip_longest

import numpy as np

from lorashear.text.documents import reading, visible
from lorashear.text.places import Place

SHARE = 1 << 12
"""Characters that a place gives before it is another one's turn, where little is needed; at least a document, or piece."""
PIECE_CHARACTERS = 1 << 16
"""A longer document comes in pieces of so many, each as a document: or all that little text is needed for saw one book."""
# Of all places, equal and one after another: however few places are visited, all parts are.
PARTS = 16
# Held to be shuffled, of what can only be read in order.
BUFFER_CHARACTERS = 1 << 24
# What goes to the tokenizer in one call: enough to keep its threads busy, few enough to hold as Python lists.
CALL_CHARACTERS = 1 << 20
CALL_DOCUMENTS = 256


class FileSample:
    """Documents of files, each once: the places take turns in an order that the seed decides (see `_spread`).

    What was not asked for before a generator was closed comes from the next one.
    """

    def __init__(self, places: Sequence[Place], seed: int) -> None:
        self._queue = deque((places[index], 0) for index in _spread(len(places), np.random.default_rng(seed)))
        self._places = len(places)

    def documents(self, wanted: int) -> Generator[str, None, None]:
        """As many as are asked for, from so many places that ``wanted`` characters are spread over all that there are."""
        share = max(SHARE, -(-wanted // self._places))
        while self._queue:
            place, read = self._queue.popleft()  # and how many of its pieces were
            left, more = share, True
            try:
                with reading(place.path), closing(place.documents()) as documents:
                    for piece in islice(_pieces(documents), read, None):
                        read += 1
                        left -= len(piece)
                        yield piece
                        if left <= 0:
                            break
                    else:
                        more = False
            finally:
                if more:
                    self._queue.append((place, read))


def _spread(count: int, random: np.random.Generator) -> list[int]:
    """The numbers below ``count`` in random order, but that every sixteenth of them has its turn in each sixteen."""
    parts = [random.permutation(part).tolist() for part in np.array_split(np.arange(count), PARTS)]
    random.shuffle(parts)
    return [index for turn in zip_longest(*parts) for index in turn if index is not None]


class StreamSample:
    """Documents that can only be read one after another, shuffled among those that a buffer holds."""

    def __init__(self, documents: Iterable[str], seed: int) -> None:
        self._shuffled = _shuffled(_pieces(documents), np.random.default_rng(seed))

    def documents(self, wanted: int) -> Generator[str, None, None]:
        """As many as are asked for, one after another."""
        while (document := next(self._shuffled, None)) is not None:  # a loop over it would close it with this generator
            yield document


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        pieces = (document[at : at + PIECE_CHARACTERS] for at in range(0, len(document), PIECE_CHARACTERS))
        yield from filter(visible, pieces)


def _shuffled(documents: Iterable[str], random: np.random.Generator) -> Iterator[str]:
    held: list[str] = []
    characters = 0
    for document in documents:
        held.append(document)
        characters += len(document)
        while characters > BUFFER_CHARACTERS:
            characters -= len(chosen := _drawn(held, random))
            yield chosen
    while held:
        yield _drawn(held, random)


def _drawn(held: list[str], random: np.random.Generator) -> str:
    index = int(random.integers(len(held)))
    held[index], held[-1] = held[-1], held[index]
    return held.pop()


class Sample:
    """Several samples, which take turns with a document each; what was taken and not used may be put back."""

    def __init__(self, parts: Sequence[FileSample | StreamSample]) -> None:
        self._parts = parts
        self._back: deque[str] = deque()

    def put_back(self, documents: Iterable[str]) -> None:
        """They come again before others."""
        self._back.extend(documents)

    def documents(self, wanted: int) -> Generator[str, None, None]:
        """As many as are asked for, when about ``wanted`` characters are going to be."""
        while self._back:
            yield self._back.popleft()
        with ExitStack() as stack:
            turns = [stack.enter_context(closing(part.documents(wanted // len(self._parts)))) for part in self._parts]
            while turns:
                for turn in list(turns):
                    document = next(turn, None)
                    if document is None:
                        turns.remove(turn)
                    else:
                        yield document

    def calls(self, wanted: int) -> Generator[list[str], None, None]:
        """The same in lists for one call of a tokenizer each; a thread reads the next one while one is worked on."""
        with closing(self.documents(wanted)) as documents, ThreadPoolExecutor(1) as thread:
            coming = thread.submit(_call, documents)
            try:
                while some := coming.result():
                    coming = thread.submit(_call, documents)
                    yield some
            finally:
                if coming.exception() is None:
                    self.put_back(coming.result())


def _call(documents: Iterator[str]) -> list[str]:
    some: list[str] = []
    characters = 0
    while len(some) < CALL_DOCUMENTS and characters < CALL_CHARACTERS:
        document = next(documents, None)
        if document is None:
            break
        some.append(document)
        characters += len(document)
    return some
