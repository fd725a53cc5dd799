"""Random programs from the op table, as data: hypothesis draws the steps, a module runs them.

A program starts from an input ``[batch, 5]`` and ends in a linear map of all that its last value holds, so every axis in
between is the program's own. Each step reads values made before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 3
SIZES = (2, 3, 4, 6)
POINTWISE = ("relu", "tanh", "sigmoid", "square", "abs", "exp", "gelu", "cos")


@dataclass(frozen=True)
class Step:
    """One operator: the values it reads (by number), the parameters it has (by number), and its numbers."""

    op: str
    reads: tuple[int, ...]
    weights: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass
class Sketch:
    """A program while it is drawn: shapes of values (without the batch) and of parameters."""

    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: [(5,)])
    weights: list[tuple[int, ...]] = field(default_factory=list)
    ties: set[int] = field(default_factory=set)  # values in which equal numbers stand, so that top-k may choose either

    def weight(self, *shape: int) -> int:
        self.weights.append(shape)
        return len(self.weights) - 1

    def add(self, step: Step, shape: tuple[int, ...]) -> None:
        if step.op in TIES or self.ties & set(step.reads):
            self.ties.add(len(self.shapes))
        self.steps.append(step)
        self.shapes.append(shape)


class Program(nn.Module):
    """Runs the steps; every parameter is random."""

    def __init__(self, sketch: Sketch, seed: int = 0) -> None:
        super().__init__()
        self.steps = tuple(sketch.steps)
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.ParameterList(
            [nn.Parameter(torch.randn(shape, generator=generator) * 0.5 + 0.2) for shape in sketch.weights]
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.steps:
            values.append(apply(step, [values[i] for i in step.reads], [self.w[i] for i in step.weights]))
        return values[-1]


def apply(step: Step, given: list[Tensor], w: list[Tensor]) -> Tensor:
    """One step; dims are counted without the batch, so dim d of a value is dim d + 1 of its tensor."""
    x, numbers = given[0], step.numbers
    match step.op:
        case "linear":
            return nn.functional.linear(x, w[0], w[1] if len(w) > 1 else None)
        case "transposed":
            return nn.functional.linear(x, w[0].t())
        case "conv":
            return nn.functional.conv1d(x, w[0], w[1], padding=1, groups=numbers[0])
        case "scale":
            return x * w[0]
        case "shift":
            return x + w[0]
        case "add":
            return x + given[1]
        case "mul":
            return x * given[1]
        case "gram":
            return torch.matmul(x, x.transpose(-1, -2))
        case "split":
            return x.view(*x.shape[: numbers[0] + 1], *numbers[1:], *x.shape[numbers[0] + 2 :])
        case "merge":
            d = numbers[0] + 1
            return x.reshape(*x.shape[:d], x.shape[d] * x.shape[d + 1], *x.shape[d + 2 :])
        case "permute":
            return x.permute(0, *(n + 1 for n in numbers))
        case "cat":
            return torch.cat(given, numbers[0] + 1)
        case "piece":
            return x.split(list(numbers[2:]), numbers[0] + 1)[numbers[1]]
        case "slice":
            return x[(slice(None),) * (numbers[0] + 1) + (slice(numbers[1], numbers[2], numbers[3]),)]
        case "select":
            return x.select(numbers[0] + 1, numbers[1])
        case "expand":
            d = numbers[0] + 1
            return x.unsqueeze(d).expand(*x.shape[:d], numbers[1], *x.shape[d:])
        case "repeat":
            return x.repeat(*(numbers[1] if i == numbers[0] + 1 else 1 for i in range(x.dim())))
        case "interleave":
            return x.repeat_interleave(numbers[1], numbers[0] + 1)
        case "sum":
            return x.sum(numbers[0] + 1)
        case "mean":
            return x.mean(numbers[0] + 1)
        case "softmax":
            return x.softmax(numbers[0] + 1)
        case "cumsum":
            return x.cumsum(numbers[0] + 1)
        case "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.5) * w[0]
        case "norm":
            return nn.functional.layer_norm(x, x.shape[-1:], w[0], w[1])
        case "route":
            chosen = torch.topk(x, numbers[0], dim=-1)
            return torch.einsum("bkd,bk->bd", w[0][chosen.indices], chosen.values.softmax(-1))
        case "gather":
            index = torch.topk(x, numbers[0], dim=-1).indices
            return torch.gather(given[1], -1, index)
        case "scatter":
            chosen = torch.topk(x, numbers[0], dim=-1)
            return torch.zeros_like(x).scatter(-1, chosen.indices, chosen.values) * given[1]
        case "end":
            return nn.functional.linear(x.reshape(x.shape[0], -1), w[0])
        case _:
            return getattr(torch if hasattr(torch, step.op) else nn.functional, step.op)(x)


TIES = "relu repeat interleave expand cat gram scatter gather".split()
MOVES = "split merge permute cat piece slice select expand repeat interleave".split()
REDUCES = "sum mean softmax cumsum".split()


@st.composite
def sketches(draw: st.DrawFn, most: int = 6) -> Sketch:
    """A program of up to ``most`` steps."""
    sketch = Sketch()
    sketch.add(Step("linear", (0,), (sketch.weight(size := draw(st.sampled_from(SIZES)), 5),)), (size,))
    for _ in range(draw(st.integers(1, most))):
        step(draw, sketch)
    last = len(sketch.shapes) - 1
    size = 1
    for n in sketch.shapes[last]:
        size *= n
    sketch.add(Step("end", (last,), (sketch.weight(2, size),)), (2,))
    return sketch


def step(draw: st.DrawFn, sketch: Sketch) -> None:
    """Draw one step that fits; none where the one drawn does not."""
    reads = draw(st.integers(1, len(sketch.shapes) - 1))
    shape = sketch.shapes[reads]
    kinds = ["linear", "linear", "pointwise", "scale", "shift", "add", "mul", "move", "move", "move", "reduce"]
    kinds += ["rms", "norm", "gram", "shared", "transposed", "conv", "route", "gather", "scatter"]
    kind = draw(st.sampled_from(kinds))
    alike = [i for i, other in enumerate(sketch.shapes) if i and other == shape]
    if kind == "pointwise":
        sketch.add(Step(draw(st.sampled_from(POINTWISE)), (reads,)), shape)
    elif kind in ("add", "mul"):
        sketch.add(Step(kind, (reads, draw(st.sampled_from(alike)))), shape)
    elif kind == "move" and shape:
        _move(draw, sketch, reads, shape, alike)
    elif not shape or max(shape, default=1) > 24:
        return
    elif kind == "linear":
        out = draw(st.sampled_from(SIZES))
        weights = [sketch.weight(out, shape[-1])]
        if draw(st.booleans()):
            weights.append(sketch.weight(out))
        sketch.add(Step("linear", (reads,), tuple(weights)), (*shape[:-1], out))
    elif kind == "shared":
        fitting = [i for i, w in enumerate(sketch.weights) if len(w) == 2 and w[1] == shape[-1]]
        if fitting:
            weight = draw(st.sampled_from(fitting))
            sketch.add(Step("linear", (reads,), (weight,)), (*shape[:-1], sketch.weights[weight][0]))
    elif kind == "transposed":
        fitting = [i for i, w in enumerate(sketch.weights) if len(w) == 2 and w[0] == shape[-1]]
        if fitting:
            weight = draw(st.sampled_from(fitting))
            sketch.add(Step("transposed", (reads,), (weight,)), (*shape[:-1], sketch.weights[weight][1]))
    elif kind in ("scale", "shift", "rms"):
        sketch.add(Step(kind, (reads,), (sketch.weight(shape[-1]),)), shape)
    elif kind == "norm":
        sketch.add(Step(kind, (reads,), (sketch.weight(shape[-1]), sketch.weight(shape[-1]))), shape)
    elif kind == "gram" and len(shape) > 1:
        sketch.add(Step(kind, (reads,)), (*shape[:-1], shape[-2]))
    elif kind == "conv" and len(shape) == 2:
        groups = draw(st.sampled_from([g for g in (1, 2, shape[0]) if shape[0] % g == 0]))
        out = groups * draw(st.sampled_from((1, 2)))
        weights = (sketch.weight(out, shape[0] // groups, 3), sketch.weight(out))
        sketch.add(Step(kind, (reads,), weights, (groups,)), (out, shape[1]))
    elif kind in ("route", "gather", "scatter") and reads in sketch.ties:
        return
    elif kind == "route" and len(shape) == 1 and shape[0] > 2:
        out = draw(st.sampled_from(SIZES))
        sketch.add(Step(kind, (reads,), (sketch.weight(shape[0], out),), (2,)), (out,))
    elif kind in ("gather", "scatter") and len(shape) == 1 and shape[0] > 2:
        other = draw(st.sampled_from(alike))
        sketch.add(Step(kind, (reads, other), (), (2,)), (2,) if kind == "gather" else shape)
    elif kind == "reduce":
        op = draw(st.sampled_from(REDUCES))
        d = draw(st.integers(0, len(shape) - 1))
        sketch.add(Step(op, (reads,), (), (d,)), shape[:d] + shape[d + 1 :] if op in ("sum", "mean") else shape)


def _move(draw: st.DrawFn, sketch: Sketch, reads: int, shape: tuple[int, ...], alike: list[int]) -> None:
    op = draw(st.sampled_from(MOVES))
    d = draw(st.integers(0, len(shape) - 1))
    size = shape[d]
    if op == "split":
        factors = [f for f in (2, 3, 4) if size % f == 0 and size > f]
        if factors and len(shape) < 4:
            f = draw(st.sampled_from(factors))
            sketch.add(Step(op, (reads,), (), (d, f, size // f)), (*shape[:d], f, size // f, *shape[d + 1 :]))
    elif op == "merge" and d + 1 < len(shape):
        sketch.add(Step(op, (reads,), (), (d,)), (*shape[:d], size * shape[d + 1], *shape[d + 2 :]))
    elif op == "permute":
        order = draw(st.permutations(range(len(shape))))
        sketch.add(Step(op, (reads,), (), tuple(order)), tuple(shape[i] for i in order))
    elif op == "cat" and size < 13:
        other = draw(st.sampled_from(alike))
        sketch.add(Step(op, (reads, other), (), (d,)), (*shape[:d], 2 * size, *shape[d + 1 :]))
    elif op == "piece" and size > 2:
        cut = draw(st.integers(1, size - 1))
        which = draw(st.integers(0, 1))
        made = (cut, size - cut)[which]
        sketch.add(Step(op, (reads,), (), (d, which, cut, size - cut)), (*shape[:d], made, *shape[d + 1 :]))
    elif op == "slice" and size > 2:
        begin = draw(st.integers(0, size - 2))
        step = draw(st.sampled_from((1, 1, 2)))
        end = draw(st.integers(begin + 1, size))
        made = len(range(begin, end, step))
        sketch.add(Step(op, (reads,), (), (d, begin, end, step)), (*shape[:d], made, *shape[d + 1 :]))
    elif op == "select" and len(shape) > 1:
        index = draw(st.integers(0, size - 1))
        sketch.add(Step(op, (reads,), (), (d, index)), shape[:d] + shape[d + 1 :])
    elif op == "expand" and len(shape) < 4:
        sketch.add(Step(op, (reads,), (), (d, 2)), (*shape[:d], 2, *shape[d:]))
    elif op in ("repeat", "interleave") and size < 13:
        sketch.add(Step(op, (reads,), (), (d, 2)), (*shape[:d], 2 * size, *shape[d + 1 :]))
