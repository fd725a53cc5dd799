"""`tokenizer.model` of SentencePiece, which is a protobuf message: its pieces and the few settings that matter. No torch here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorashear.errors import LorashearError

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces; GGUF has taken over the same numbers."""


@dataclass(frozen=True)
class Piece:
    """A token: its text, what it is worth, and its type."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePiece:
    """``kind`` is how text is split; ``normalises`` is whether characters are replaced by others before."""

    pieces: tuple[Piece, ...]
    kind: int
    adds_space: bool
    folds_spaces: bool
    normalises: bool

    @classmethod
    def of(cls, file: Path) -> Self:
        """Read a file. Raises LorashearError, half a sentence, where it is none."""
        try:
            parts: dict[int, list[bytes | int]] = {}
            for number, value in _fields(file.read_bytes()):
                parts.setdefault(number, []).append(value)
            trainer, normaliser = (dict(_fields(_bytes(parts.get(number, [b""])[-1]))) for number in (2, 3))
            return cls(
                tuple(_piece(_bytes(each)) for each in parts[1]),
                _int(trainer.get(3, UNIGRAM)),
                bool(normaliser.get(3, 1)),
                bool(normaliser.get(4, 1)),
                bool(normaliser.get(2, b"")),
            )
        except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
            raise LorashearError(f"its {file.name} is no model of SentencePiece") from error


def _piece(message: bytes) -> Piece:
    found = dict(_fields(message))
    (score,) = struct.unpack("<f", _bytes(found.get(2, bytes(4))))
    return Piece(_bytes(found.get(1, b"")).decode(), score, _int(found.get(3, NORMAL)))


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and values of a protobuf message: plain numbers, or the bytes of whatever is longer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            long, at = _varint(message, at)
        else:
            long = {1: 8, 5: 4}[key & 7]
        if at + long > len(message):
            raise ValueError("cut off")
        yield key >> 3, message[at : at + long]
        at += long


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not message[at - 1] & 0x80:
            return value, at


def _bytes(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return value


def _int(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value
