"""What a run came to, on stdout: a table and the widths as bars on a terminal, else lines of a key and a value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorashear.disk.checkpoint import Checkpoint, resolve
from lorashear.learning import launched
from lorashear.terminal.progress import living

BARS = "▁▂▃▄▅▆▇█"
RUNS = 8
"""Numbers of a kind's layers that a line of a terminal has room for."""


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``before`` is None where nobody has counted it, ``digits`` are those behind the point."""

    name: str
    before: float | None
    after: float
    digits: int = 0

    @property
    def share(self) -> float | None:
        """By how much it changed, of what it was."""
        return self.after / self.before - 1 if self.before else None

    @property
    def difference(self) -> str:
        """As ``-566,784 (-20.04 %)``."""
        if self.before is None:
            return "–"
        share = "" if self.share is None else f" ({self.share:+.2%})".replace("%", " %")
        return f"{self.after - self.before:+,.{self.digits}f}{share}"

    def cells(self) -> list[str]:
        """For people."""
        before = "–" if self.before is None else f"{self.before:,.{self.digits}f}"
        return [self.name, before, f"{self.after:,.{self.digits}f}", self.difference]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """For grep and cut."""
        key = self.name.replace(" ", "_")
        if self.before is not None:
            yield f"{key}_before", f"{self.before:.{self.digits}f}"
        yield f"{key}_after", f"{self.after:.{self.digits}f}"
        if self.before is not None:
            yield f"{key}_difference", f"{self.after - self.before:+.{self.digits}f}"
        if self.share is not None:
            yield f"{key}_change", f"{self.share:+.2%}"


@dataclass(frozen=True)
class Closing:
    """The figures of a run, and the widths of each kind before and after, a layer each."""

    figures: Sequence[Figure]
    widths: Mapping[str, Sequence[tuple[int, int]]]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """What `compile` and `recover` report."""
        figures = [Figure(name, report[name]["before"], report[name]["after"]) for name in ("parameters", "bytes")]
        perplexity = report["perplexity"] or {}
        if "after" in perplexity:
            figures.append(Figure("perplexity", perplexity.get("before"), perplexity["after"], 3))
        if "pruned" in perplexity:  # and then trained
            figures.append(Figure("perplexity since pruning", perplexity["pruned"], perplexity["after"], 3))
        widths: dict[str, list[tuple[int, int]]] = {}
        for name, width in report["widths"].items():
            widths.setdefault(name.rsplit(".", 1)[-1], []).append((width["before"], width["after"]))
        return cls(figures, widths)

    @classmethod
    def of_folders(cls, source: Path, result: Path) -> Self:
        """What lies on disk, where nothing was measured: every tensor counts, tied ones as often as they are stored."""
        both = [Checkpoint.open(each) for each in (source, result)]
        sizes = [sum(prod(info.shape) for info in each.tensors.values()) for each in both]
        return cls([Figure("parameters", *sizes), Figure("bytes", *(each.bytes for each in both))], {})

    def plain(self) -> str:
        """Lines of a key, a space and a value, without separators in numbers; widths are by commas, a layer each."""
        lines = [f"{key} {value}" for figure in self.figures for key, value in figure.pairs()]
        for kind, pairs in self.widths.items():
            for at, when in enumerate(("before", "after")):
                lines.append(f"widths_{kind}_{when} {','.join(str(pair[at]) for pair in pairs)}")
        return "\n".join(lines)

    def show(self, console: Console) -> None:
        """The table, and below it a line for each kind of structure."""
        if not living(console):
            console.file.write(f"{self.plain()}\n")  # a console would break lines and colour numbers
            return
        table = Table(header_style="bold")
        for head in ("", "before", "after", "difference"):
            table.add_column(head, justify="right" if head else "left", style="cyan" if head == "difference" else "")
        for figure in self.figures:
            table.add_row(*figure.cells())
        console.print(table)
        wide, layers = (max(map(len, each), default=0) for each in (self.widths, self.widths.values()))
        for kind, pairs in self.widths.items():
            line = Text.assemble(f"{kind:{wide}}  ", (f"{bar(pairs):{layers}}", "green"), f"  {numbers(pairs)}")
            console.print(line)


def finish(report: Mapping[str, Any], out: Path, *, as_json: bool, quiet: bool) -> None:
    """What `compile` or `recover` came to: its last line says where the result is, and is all that a quiet one says."""
    if launched.follower():
        return
    if as_json:
        print(json.dumps(report, indent=2))
        return
    if not quiet:
        console = Console()
        Closing.of(report).show(console)
        for line in _facts(report, shown=living(console)):
            print(line)
    print(f"{report['note'] + '; ' if report['note'] else ''}written to {out} ({report['route']})")


def compared(model: str, out: Path, *, revision: str | None) -> None:
    """What `apply` came to."""
    Closing.of_folders(resolve(model, revision), out).show(Console())


def _facts(report: Mapping[str, Any], *, shown: bool) -> Iterator[str]:
    """What no figure before and after says; the numbers of parameters only where no table has ``shown`` them."""
    from lorashear.report import recovery_stages, recovery_table

    parameters, ratio, perplexity = report["parameters"], report["ratio"], report["perplexity"]
    if parameters["before"] and (not shown or ratio["of"] != "parameters"):
        gone = 1 - parameters["after"] / parameters["before"]
        also = f", and {ratio['reached']:.2%} of the {ratio['of']}" if ratio["of"] != "parameters" else ""
        yield f"{parameters['before']:,} → {parameters['after']:,} parameters ({gone:.2%} removed{also})"
    if perplexity:
        steps = [f"{perplexity[name]:.3f}" for name in ("before", "pruned", "after") if name in perplexity]
        yield f"perplexity {' → '.join(steps)} ({perplexity['data']})"
    if report.get("recovery"):
        yield recovery_table(report["recovery"])
        yield recovery_stages(report["recovery"])
    if report["per_layer"]:
        uniform, free = report["per_layer"]["loss"], report["per_layer"]["loss_per_layer"]
        yield f"held-out loss {uniform:.3f} nats; with --per-layer it would be {free:.3f}"


def bar(pairs: Sequence[tuple[int, int]]) -> str:
    """A block for each layer, as high as the share of the width that is left; the highest only where all is."""
    top = len(BARS) - 1
    return "".join(
        BARS[top] if after >= before else BARS[min(top - 1, max(0, round(after / before * len(BARS)) - 1))]
        for before, after in pairs
    )


def numbers(pairs: Sequence[tuple[int, int]]) -> str:
    """As ``256 → 205``, where layers differ ``256 → 205 ×3, 190``, and where that would be long ``256 → 120 to 256``."""
    return f"{_side([before for before, _ in pairs])} → {_side([after for _, after in pairs])}"


def _side(widths: Sequence[int]) -> str:
    runs = [(width, len(list(group))) for width, group in groupby(widths)]
    if len(runs) == 1:
        return f"{widths[0]:,}"
    if len(runs) > RUNS:
        return f"{min(widths):,} to {max(widths):,}, {sum(widths) / len(widths):,.1f} on average"
    return ", ".join(f"{width:,} ×{count}" if count > 1 else f"{width:,}" for width, count in runs)
