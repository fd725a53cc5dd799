"""What was measured of each node group: kept on disk by content, put into the report, and printed.

An analysis is kept in ``$LORASHEAR_CACHE`` (by default ``~/.cache/lorashear``), a file for each model, text and way of
measuring, and a line for each result. So another ratio costs no second analysis, and one that was stopped goes on. The
losses of splits that were tried are there too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from lorashear import cache
from lorashear.config import Settings
from lorashear.disk.checkpoint import Checkpoint
from lorashear.errors import LorashearError
from lorashear.report import columns
from lorashear.text.calibration import Windows
from lorashear_ir.groups import Group, Groups
from lorashear_passes.knowledge import Knowledge, crucial
from lorashear_passes.surgery import levels, units

FORMAT = 2
"""Part of what a kept analysis is found by: counts up when the measuring changes."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of a group's structures; the printed table has the loss at these."""


class Kept(MutableMapping[str, list[float]]):
    """What was measured (see `surgery.Measured`), each result a line of ``path`` as soon as it is set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = dict(_lines(path))

    def __getitem__(self, key: str) -> list[float]:
        return self._held[key]

    def __setitem__(self, key: str, losses: list[float]) -> None:
        self._held[key] = losses
        line = "\n" + json.dumps([key, losses])  # what was cut off before it, when a run was stopped, stays alone
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:  # a full disk, no home: it is measured all the same
            pass

    def __delitem__(self, key: str) -> None:
        raise TypeError("what was measured stays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


def kept(source: Checkpoint, contents: str, windows: Windows, settings: Settings, criterion: str) -> Kept:
    """What is already known of a model on this text, measured in this way; whichever kinds and ratio are asked for.

    ``contents`` is the model's `Checkpoint.contents`, which takes a while to compute.
    """
    found = hashlib.sha256((source.digest() + contents).encode())
    for part in (windows.calibration, windows.guard):
        found.update(str(tuple(part.shape)).encode() + part.contiguous().numpy().tobytes())
    way = [FORMAT, criterion, settings.compensate, settings.dtype, settings.device.partition(":")[0]]
    way += [settings.seed] if criterion in ("random", "lora") else []
    found.update(json.dumps(way).encode())
    return Kept(cache.folder() / "knowledge" / f"{found.hexdigest()}.jsonl")


def content(knowledge: Knowledge, groups: Groups, settings: Settings) -> dict[str, Any]:
    """For the report: the loss of the dense model, and for each group its rise (nats a token) by structures removed."""
    measured = {name: groups[name] for name in knowledge.rises}
    return {
        "loss": knowledge.dense,
        "groups": {
            name: {
                "removed": _removed(group),
                "rise": list(knowledge.rises[name]),
                "worth": knowledge.density(group),
            }
            for name, group in measured.items()
        },
        "crucial": crucial(knowledge, measured, settings.unprunable_ratio),
    }


def read(groups: Groups, report: Path) -> dict[str, Any]:
    """What `content` wrote into the report of a compile, given by its file or by the folder that it made.

    Raises:
        LorashearError: the report has no such analysis, or one of another model.
    """
    path = report / "lorashear" / "report.json" if report.is_dir() else report
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LorashearError(f"{path} cannot be read as a report of compile: {error}") from None
    found = whole.get("knowledge") if isinstance(whole, dict) else None
    if not found:
        raise LorashearError(f"{path} holds no knowledge analysis; compile with text (--text) makes one")
    for name, curve in found["groups"].items():
        group = groups.get(name)
        if group is None or curve["removed"] != _removed(group):
            raise LorashearError(
                f"{path} is of another model: it has {name}, which is not in this one as it is there; "
                "give the model that was compiled"
            )
    return found


def table(groups: Groups, found: Mapping[str, Any]) -> str:
    """The groups as lines, worth most first: the rise of the held-out loss as more of each alone is removed."""
    rows = [
        ("group", "kind", "structures", *(f"{share:.0%} gone" for share in SHARES), "nats a million weights", "verdict")
    ]
    for name in sorted(found["groups"], key=lambda name: -found["groups"][name]["worth"]):
        group, each = groups[name], found["groups"][name]
        curve = Knowledge(0.0, {name: tuple(each["rise"])}).curve(group)
        at = (f"{curve[round(share * units(group))]:+.3f}" for share in SHARES)
        mark = "crucial" if name in found["crucial"] else ""
        rows.append((name, group.kind, str(group.size), *at, f"{1e6 * each['worth']:.2f}", mark))
    head = f"held-out loss {found['loss']:.3f} nats a token; its rise when so much of one group alone is removed:"
    return f"{head}\n{columns(rows, '<<>>>>>>')}"


def _removed(group: Group) -> list[int]:
    """How many structures are gone at each level."""
    return [level * group.blocks for level in levels(group)]


def _lines(path: Path) -> Iterator[tuple[str, list[float]]]:
    """What a file holds; a line that was cut off when the run was stopped is as if it were not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            key, losses = json.loads(line)
        except ValueError:
            continue
        yield key, losses
