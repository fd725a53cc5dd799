"""What a slice will take, known before it begins: bytes read and written, room on the disk, memory. No torch here."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lorashear.slicing import Slice, buffer_bytes


@dataclass(frozen=True)
class Estimate:
    """Bytes: ``read`` at most, ``written`` exactly, but for files of some kilobytes beside the tensors; ``free`` on the
    disk now; ``memory`` at most, beyond the interpreter and what it imports."""

    read: int
    written: int
    free: int
    memory: int

    @classmethod
    def of(cls, wanted: Slice, target: Path) -> Self:
        """For a slice that goes to a folder, which need not exist yet."""
        nearest = next(
            folder for folder in (target.expanduser().resolve(), *target.resolve().parents) if folder.exists()
        )
        return cls(
            read=wanted.source.bytes,
            written=wanted.layout.bytes,
            free=shutil.disk_usage(nearest).free,
            memory=buffer_bytes(wanted),
        )

    def __str__(self) -> str:
        read, written, free = (f"{count / 1e9:.2f} GB" for count in (self.read, self.written, self.free))
        return f"reads {read} at most, writes {written} ({free} are free), in {self.memory / 1e6:.0f} MB of memory"
