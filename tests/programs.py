"""Random programs from the op table, as data: hypothesis draws the steps, a module runs them.

A program starts from an input ``[batch, 5]``, and its last step adds up linear maps of the values that nothing has read,
so every axis in between is the program's own. Each step reads values made before it.

Numbers stay bounded, so that what two programs compute can be compared: a value has a degree, 1 for a linear map of
bounded values, and a step that multiplies values adds their degrees up to `DEGREE` at most.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 3
INPUT = 5
SIZES = (2, 3, 4, 6, 8)
LARGEST = 24  # a dim that is made
ELEMENTS = 150  # a value
RANK = 4
DEGREE = 6

EPS = {(): 0.5, (0,): 0.5, (1,): 0.2}

BOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "exp": lambda x: torch.tanh(x).exp(),
    "cos": torch.cos,
    "rsqrt": lambda x: torch.rsqrt(x.square() + 1),
    "clamp": lambda x: x.clamp(-0.7, 0.9),
    "clamp_above": lambda x: x.clamp(0.1, 0.9),
    "hardtanh": F.hardtanh,
    "hardtanh_above": lambda x: F.hardtanh(x, 0.1, 0.9),
}
POINTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    **BOUNDED,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "abs": torch.abs,
    "neg": torch.neg,
    "softplus": F.softplus,
    "plus": lambda x: x + 0.5,
    "times": lambda x: x * 0.5,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "threshold_above": lambda x: F.threshold(x, 0.1, 0.7),
    "threshold_below": lambda x: F.threshold(x, -0.1, 0.7),
}
LOSSY = {  # different numbers become equal
    *("relu", "clamp", "clamp_above", "hardtanh", "hardtanh_above", "threshold", "threshold_above", "threshold_below")
}


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
    shapes: list[tuple[int, ...]] = field(default_factory=lambda: [(INPUT,)])
    weights: list[tuple[int, ...]] = field(default_factory=list)
    ties: set[int] = field(default_factory=set)  # values in which equal numbers or zeros stand: top-k may choose either
    degrees: list[int] = field(default_factory=lambda: [1])

    def weight(self, *shape: int) -> int:
        self.weights.append(shape)
        return len(self.weights) - 1

    def add(self, step: Step, shape: tuple[int, ...]) -> int:
        """Append a step if what it makes is small enough; the number of the newest value."""
        if math.prod(shape) <= ELEMENTS and max(shape, default=1) <= LARGEST and len(shape) <= RANK:
            made = _degree(step, [self.degrees[i] for i in step.reads])
            if made <= DEGREE:
                if step.op in TIES or (step.op not in UNTIES and self.ties & set(step.reads)):
                    self.ties.add(len(self.shapes))
                self.steps.append(step)
                self.shapes.append(shape)
                self.degrees.append(made)
        return len(self.shapes) - 1


def _degree(step: Step, degrees: list[int]) -> int:
    if step.op in BOUNDED or step.op in RESETS:
        return 1
    if step.op in SQUARES:
        return 2 * degrees[0]
    if step.op in MULTIPLIES:
        return sum(degrees)
    return max(degrees) + (2 if step.op == "ratio" else 0)


RESETS = "rms rms1 rms_norm norm group_norm softmax onehot length".split()
SQUARES = "gram square self_outer".split()
MULTIPLIES = "mul addcmul outer bmm baddbmm rowmix attention glu".split()
UNTIES = "linear transposed fused lowrank scale shift".split()
TIES = [
    *LOSSY,
    *"repeat interleave expand cat stack gram outer self_outer scatter gather pad where masked onehot".split(),
]
TIES += "route index pick write sub maximum divide lerp".split()


class Program(nn.Module):
    """Runs the steps; every parameter is random."""

    def __init__(self, sketch: Sketch, seed: int = 0) -> None:
        super().__init__()
        self.steps = tuple(sketch.steps)
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.ParameterList(
            [
                nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5 + 0.2)
                for shape in sketch.weights
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.steps:
            values.append(apply(step, [values[i] for i in step.reads], [self.w[i] for i in step.weights]))
        return values[-1]


def apply(step: Step, given: list[Tensor], w: list[Tensor]) -> Tensor:
    """One step; dims are counted without the batch, so dim d of a value is dim d + 1 of its tensor."""
    x, numbers = given[0], step.numbers
    d = numbers[0] + 1 if numbers else 0
    match step.op:
        case "linear":
            return F.linear(x, w[0], w[1] if len(w) > 1 else None)
        case "transposed":
            return F.linear(x, w[0].t())
        case "fused":
            return F.linear(x, torch.cat(w, 0))
        case "lowrank":
            return F.linear(x, w[0] @ w[1])
        case "conv":
            return F.conv1d(x, w[0], w[1], padding=1, groups=numbers[0])
        case "conv2d":
            return F.conv2d(x, w[0], w[1] if len(w) > 1 else None, padding=1, groups=numbers[0])
        case "scale":
            return x * w[0]
        case "shift":
            return x + w[0]
        case "add":
            return x + given[1]
        case "sub":
            return x - given[1]
        case "maximum":
            return torch.maximum(x, given[1])
        case "mul":
            return x * given[1]
        case "lerp":
            return torch.lerp(x, given[1], 0.3)
        case "addcmul":
            return torch.addcmul(x, given[1], given[2], value=0.5)
        case "ratio":
            return x / given[1]
        case "divide":
            return x / (given[1].abs() + 0.5)
        case "where":
            return torch.where(x > 0, x, given[1])
        case "masked":
            return x.masked_fill(given[1] > 0, float(numbers[0]))
        case "square":
            return x.square()
        case "gram":
            return torch.matmul(x, x.transpose(-1, -2))
        case "outer":
            return torch.einsum("bi,bj->bij", x, given[1])
        case "self_outer":
            return x.unsqueeze(-1) * x.unsqueeze(-2)
        case "bmm":
            return torch.bmm(x, given[1])
        case "baddbmm":
            return torch.baddbmm(given[2], x, given[1])
        case "rowmix":
            return torch.einsum("bij,bj->bi", x, given[1])
        case "attention":
            key, value = (given[i][:, :1] if i in numbers else given[i] for i in (1, 2))  # one for all heads
            return F.scaled_dot_product_attention(x, key, value, scale=0.3)
        case "split":
            return x.view(*x.shape[:d], *numbers[1:], *x.shape[d + 1 :])
        case "merge":
            return x.reshape(*x.shape[:d], x.shape[d] * x.shape[d + 1], *x.shape[d + 2 :])
        case "permute":
            return x.permute(0, *(n + 1 for n in numbers))
        case "cat":
            return torch.cat(given, d)
        case "stack":
            return torch.stack(given, d)
        case "unbind":
            return x.unbind(d)[numbers[1]]
        case "piece":
            return x.split(list(numbers[2:]), d)[numbers[1]]
        case "chunk":
            return x.chunk(2, d)[numbers[1]]
        case "slice":
            return x[(slice(None),) * d + (slice(numbers[1], numbers[2], numbers[3]),)]
        case "select":
            return x.select(d, numbers[1])
        case "index":
            return x.index_select(d, torch.tensor(numbers[1:]))
        case "pick":
            return x[(slice(None),) * d + (list(numbers[1:]),)]
        case "write":
            result = x.clone()
            result.narrow(d, numbers[1], numbers[2]).add_(given[1].narrow(d, numbers[1], numbers[2]))
            return result
        case "pad":
            return F.pad(x, (0, 0) * (x.dim() - 1 - d) + numbers[1:3], value=float(numbers[3]))
        case "flip":
            return x.flip(d)
        case "roll":
            return x.roll(1, d)
        case "expand":
            return x.unsqueeze(d).expand(*x.shape[:d], numbers[1], *x.shape[d:])
        case "repeat":
            return x.repeat(*(numbers[1] if i == d else 1 for i in range(x.dim())))
        case "interleave":
            return x.repeat_interleave(numbers[1], d)
        case "sum" | "mean" | "prod" | "amax" | "logsumexp":
            return getattr(torch, step.op)(x, d)
        case "softmax" | "cumsum":
            return getattr(torch, step.op)(x, d)
        case "length":
            return x / x.norm(dim=d, keepdim=True)
        case "glu":
            return F.glu(x, d)
        case "rms" | "rms1":
            scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS[numbers[:1]])
            return scaled * (w[0] + 1.0 if step.op == "rms1" else w[0])
        case "rms_norm":
            return F.rms_norm(x, w[0].shape, w[0], EPS[numbers[:1]])
        case "norm":
            return F.layer_norm(x, x.shape[-1:], w[0], w[1])
        case "group_norm":
            return F.group_norm(x, numbers[0], w[0], w[1])
        case "batch_norm":
            return F.batch_norm(x, w[0], w[1].abs(), w[2], w[3])
        case "route":
            chosen = torch.topk(x, numbers[0], dim=-1)
            return torch.einsum("bkd,bk->bd", w[0][chosen.indices], chosen.values.softmax(-1))
        case "gather":
            index = torch.topk(x, numbers[0], dim=-1).indices
            return torch.gather(given[1], -1, index)
        case "scatter":
            chosen = torch.topk(x, numbers[0], dim=-1)
            return torch.zeros_like(x).scatter(-1, chosen.indices, chosen.values) * given[1]
        case "onehot":
            return F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype) * given[1]
        case "end":
            return sum(F.linear(v.reshape(v.shape[0], -1), each) for v, each in zip(given, w, strict=True))  # type: ignore[return-value]
        case _:
            return POINTWISE[step.op](x)


MOVES = (
    "split merge permute cat stack unbind piece chunk slice slice select index pick write pad flip roll expand repeat "
    "interleave"
).split()
REDUCES = "sum mean prod amax logsumexp softmax cumsum length glu".split()
PAIRS = "add add sub mul maximum divide ratio where masked lerp addcmul".split()
KINDS = (
    "linear linear linear linear linear pointwise pointwise pointwise scale shift pair pair pair move move move move "
    "move move move move move reduce reduce rms rms1 rms_norm norm group_norm batch_norm gram gram outer self_outer bmm "
    "bmm attention attention shared transposed fused lowrank conv conv conv2d conv2d conv2d choice choice nest square"
).split()

RANKS = {"gram": (2, 3), "outer": (1,), "bmm": (2,), "attention": (2, 3), "conv": (2,), "conv2d": (3,), "choice": (1,)}
RANKS |= {"self_outer": (1, 2, 3), "nest": (1, 2), "group_norm": (1, 2, 3)}


def sketch_of(rng: random.Random, most: int = 6) -> Sketch:
    """A program of up to ``most`` steps."""
    sketch = Sketch()
    for _ in range(rng.randint(1, 2)):
        size, width = rng.choice(SIZES), rng.choice((1, 1, 2, 3))
        made = sketch.add(Step("linear", (0,), (sketch.weight(size * width, INPUT),)), (size * width,))
        if width > 1:
            sketch.add(Step("split", (made,), (), (0, size, width)), (size, width))
    wanted = len(sketch.steps) + rng.randint(1, most)
    for _ in range(4 * most):
        if len(sketch.steps) < wanted:
            step(rng, sketch)
    read = {i for step in sketch.steps for i in step.reads}
    last = [i for i in range(1, len(sketch.shapes)) if i not in read]
    if rng.random() < 0.1:
        last = last[-1:]  # the rest is dead
    weights = tuple(sketch.weight(2, math.prod(sketch.shapes[i])) for i in last)
    sketch.add(Step("end", tuple(last), weights), (2,))
    return sketch


def step(rng: random.Random, sketch: Sketch) -> None:
    """Draw one step that fits; none where the one drawn does not."""
    newest = len(sketch.shapes) - 1
    reads = newest if rng.random() < 0.5 else rng.randint(1, newest)
    shape = sketch.shapes[reads]
    kind = rng.choice([k for k in KINDS if len(shape) in RANKS.get(k, range(RANK + 1))])
    alike = [i for i, other in enumerate(sketch.shapes) if i and other == shape]
    if kind == "pointwise":
        sketch.add(Step(rng.choice(sorted(POINTWISE)), (reads,)), shape)
    elif kind == "square":
        sketch.add(Step(kind, (reads,)), shape)
    elif not shape:
        return
    elif kind == "pair":
        _pair(rng, sketch, reads, alike)
    elif kind == "move":
        _move(rng, sketch, reads, shape, alike)
    elif kind == "reduce":
        _reduce(rng, sketch, reads, shape)
    elif kind in ("linear", "shared", "transposed", "fused", "lowrank"):
        _linear(rng, sketch, kind, reads, shape)
    elif kind in ("scale", "shift"):
        sketch.add(Step(kind, (reads,), (sketch.weight(shape[-1]),)), shape)
    elif kind in ("rms", "rms1", "rms_norm"):
        sketch.add(Step(kind, (reads,), (_gain(rng, sketch, kind, shape),), (rng.randint(0, 1),)), shape)
    elif kind in ("norm", "batch_norm", "group_norm"):
        _norm(rng, sketch, kind, reads, shape)
    elif kind in ("conv", "conv2d"):
        _convolution(rng, sketch, kind, reads, shape)
    elif kind == "choice":
        _choice(rng, sketch, reads, shape, alike)
    elif kind == "nest":
        _nest(rng, sketch, reads, shape, alike)
    else:
        _product(rng, sketch, kind, reads, shape, alike)


def _pair(rng: random.Random, sketch: Sketch, reads: int, alike: list[int]) -> None:
    op, other = rng.choice(PAIRS), rng.choice(alike)
    if (op in ("sub", "ratio") and other == reads) or (op == "ratio" and other in sketch.ties):
        return  # a constant, or infinite
    numbers = (rng.randint(0, 1),) if op == "masked" else ()
    third = (rng.choice(alike),) if op == "addcmul" else ()
    sketch.add(Step(op, (reads, other, *third), (), numbers), sketch.shapes[reads])


def _linear(rng: random.Random, sketch: Sketch, kind: str, reads: int, shape: tuple[int, ...]) -> None:
    out, width = rng.choice(SIZES), shape[-1]
    if kind == "linear":
        weights = [sketch.weight(out, width), *([sketch.weight(out)] if rng.random() < 0.5 else [])]
        sketch.add(Step(kind, (reads,), tuple(weights)), (*shape[:-1], out))
    elif kind == "fused":
        sketch.add(Step(kind, (reads,), (sketch.weight(out, width), sketch.weight(2, width))), (*shape[:-1], out + 2))
    elif kind == "lowrank":
        rank = rng.choice((2, 3))
        sketch.add(Step(kind, (reads,), (sketch.weight(out, rank), sketch.weight(rank, width))), (*shape[:-1], out))
    else:
        side = kind == "shared"
        fitting = [i for i, w in enumerate(sketch.weights) if len(w) == 2 and w[side] == width]
        if fitting:
            weight = rng.choice(fitting)
            made = (*shape[:-1], sketch.weights[weight][not side])
            sketch.add(Step("linear" if side else kind, (reads,), (weight,)), made)


def _gain(rng: random.Random, sketch: Sketch, kind: str, shape: tuple[int, ...]) -> int:
    """The weight of an RMSNorm: mostly its own, along its last dim; or for two dims, one number, or another norm's."""
    held = [i for i, w in enumerate(sketch.weights) if w == shape[-1:]]
    if held and rng.random() < 0.3:
        return rng.choice(held)
    odd = [shape[-2:], *([(1,), (*shape[-2:-1], 1)] if kind != "rms_norm" else [])]
    return sketch.weight(*(rng.choice(odd) if rng.random() < 0.3 else shape[-1:]))


def _norm(rng: random.Random, sketch: Sketch, kind: str, reads: int, shape: tuple[int, ...]) -> None:
    width = shape[-1] if kind == "norm" else shape[0]
    numbers = ()
    if kind == "group_norm":
        numbers = (rng.choice([g for g in range(1, width + 1) if width % g == 0]),)
        if math.prod(shape) == numbers[0]:
            return  # one number for each group
    weights = tuple(sketch.weight(width) for _ in range(4 if kind == "batch_norm" else 2))
    sketch.add(Step(kind, (reads,), weights, numbers), shape)


def _convolution(rng: random.Random, sketch: Sketch, kind: str, reads: int, shape: tuple[int, ...]) -> None:
    spatial = 1 if kind == "conv" else 2
    if len(shape) != spatial + 1:
        return
    groups = rng.choice([g for g in range(1, shape[0] + 1) if shape[0] % g == 0])
    out = groups * rng.choice((1, 2))
    weights = [sketch.weight(out, shape[0] // groups, *[3] * spatial)]
    if kind == "conv" or rng.random() < 0.5:
        weights.append(sketch.weight(out))
    sketch.add(Step(kind, (reads,), tuple(weights), (groups,)), (out, *shape[1:]))


def _choice(rng: random.Random, sketch: Sketch, reads: int, shape: tuple[int, ...], alike: list[int]) -> None:
    """Top-k and its relatives; on numbers that differ."""
    if reads in sketch.ties or len(shape) != 1 or shape[0] < 3:
        return
    kind, other = rng.choice(("route", "gather", "scatter", "onehot")), rng.choice(alike)
    if kind == "route":
        out = rng.choice(SIZES)
        sketch.add(Step(kind, (reads,), (sketch.weight(shape[0], out),), (2,)), (out,))
    elif kind == "onehot":
        sketch.add(Step(kind, (reads, other)), shape)
    else:
        sketch.add(Step(kind, (reads, other), (), (2,)), (2,) if kind == "gather" else shape)


def _nest(rng: random.Random, sketch: Sketch, reads: int, shape: tuple[int, ...], alike: list[int]) -> None:
    """A sum inside a product inside a sum: joined, split, joined again."""
    other = rng.choice(alike)
    joined = sketch.add(Step("cat", (reads, other), (), (0,)), (2 * shape[0], *shape[1:]))
    if sketch.shapes[joined] != (2 * shape[0], *shape[1:]) or len(shape) > 2:
        return
    copies = sketch.add(Step("expand", (joined,), (), (0, 2)), (2, *sketch.shapes[joined]))
    if sketch.shapes[copies] != (2, 2 * shape[0], *shape[1:]):
        return
    weight = sketch.weight(4 * shape[0])
    merged = sketch.add(Step("merge", (copies,), (), (0,)), (4 * shape[0], *shape[1:]))
    if len(shape) == 1 and sketch.shapes[merged] == (4 * shape[0],):
        merged = sketch.add(Step("scale", (merged,), (weight,)), (4 * shape[0],))
    sketch.add(Step("cat", (merged, reads), (), (0,)), (5 * shape[0], *shape[1:]))


def _product(
    rng: random.Random, sketch: Sketch, kind: str, reads: int, shape: tuple[int, ...], alike: list[int]
) -> None:
    shapes = sketch.shapes
    if kind == "gram" and len(shape) > 1:
        sketch.add(Step(kind, (reads,)), (*shape[:-1], shape[-2]))
    elif kind == "self_outer":
        sketch.add(Step(kind, (reads,)), (*shape, shape[-1]))
    elif kind == "outer" and len(shape) == 1:
        other = rng.choice([i for i, s in enumerate(shapes) if i and len(s) == 1])
        sketch.add(Step(kind, (reads, other)), (*shape, *shapes[other]))
    elif kind == "bmm" and len(shape) == 2:
        rows = [i for i, s in enumerate(shapes) if s == shape[1:]]
        squares = [i for i, s in enumerate(shapes) if len(s) == 2 and s[0] == shape[1]]
        if rows and rng.random() < 0.5:
            sketch.add(Step("rowmix", (reads, rng.choice(rows))), shape[:1])
        elif squares:
            other = rng.choice(squares)
            made = (shape[0], shapes[other][1])
            added = [i for i, s in enumerate(shapes) if s == made]
            if added and rng.random() < 0.5:
                sketch.add(Step("baddbmm", (reads, other, rng.choice(added))), made)
            else:
                sketch.add(Step(kind, (reads, other)), made)
    elif kind == "attention" and len(shape) in (2, 3):
        shared = tuple(i for i in (1, 2) if len(shape) == 3 and rng.random() < 0.2)
        sketch.add(Step(kind, (reads, rng.choice(alike), rng.choice(alike)), (), shared), shape)


def _reduce(rng: random.Random, sketch: Sketch, reads: int, shape: tuple[int, ...]) -> None:
    op, d = rng.choice(REDUCES), rng.randint(0, len(shape) - 1)
    if op == "glu":
        if shape[d] % 2 == 0:
            sketch.add(Step(op, (reads,), (), (d,)), (*shape[:d], shape[d] // 2, *shape[d + 1 :]))
    elif op in ("softmax", "cumsum"):
        sketch.add(Step(op, (reads,), (), (d,)), shape)
    elif op == "length":
        if reads not in sketch.ties:
            sketch.add(Step(op, (reads,), (), (d,)), shape)
    else:
        sketch.add(Step(op, (reads,), (), (d,)), shape[:d] + shape[d + 1 :])


def _move(rng: random.Random, sketch: Sketch, reads: int, shape: tuple[int, ...], alike: list[int]) -> None:
    op = rng.choice(MOVES)
    d = rng.randint(0, len(shape) - 1)
    size = shape[d]

    def make(numbers: tuple[int, ...], made: tuple[int, ...], *others: int) -> None:
        sketch.add(Step(op, (reads, *others), (), (d, *numbers)), (*shape[:d], *made, *shape[d + 1 :]))

    if op == "split":
        factors = [f for f in (2, 3, 4) if size % f == 0 and size > f]
        if factors:
            f = rng.choice(factors)
            make((f, size // f), (f, size // f))
    elif op == "merge" and d + 1 < len(shape):
        sketch.add(Step(op, (reads,), (), (d,)), (*shape[:d], size * shape[d + 1], *shape[d + 2 :]))
    elif op == "permute":
        order = rng.sample(range(len(shape)), len(shape))
        sketch.add(Step(op, (reads,), (), tuple(order)), tuple(shape[i] for i in order))
    elif op == "cat":
        make((), (2 * size,), rng.choice(alike))
    elif op == "stack":
        make((), (2, size), rng.choice(alike))
    elif op == "write":
        begin = rng.randint(0, size - 1)
        make((begin, rng.randint(1, size - begin)), (size,), rng.choice(alike))
    elif op == "piece" and size > 2:
        cut = rng.randint(1, size - 1)
        which = rng.randint(0, 1)
        make((which, cut, size - cut), ((cut, size - cut)[which],))
    elif op == "chunk" and size % 2 == 0:
        make((rng.randint(0, 1),), (size // 2,))
    elif op == "slice" and size > 2:
        begin, stride = rng.randint(0, size - 2), rng.choice((1, 1, 2, 3))
        end = rng.randint(begin + 1, size)
        make((begin, end, stride), (len(range(begin, end, stride)),))
    elif op in ("select", "unbind") and len(shape) > 1:
        make((rng.randint(0, size - 1),), ())
    elif op in ("index", "pick"):
        chosen = tuple(rng.randrange(size) for _ in range(rng.randint(1, 4)))
        make(chosen, (len(chosen),))
    elif op == "pad":
        before, after = rng.randint(0, 2), rng.randint(0, 2)
        make((before, after, rng.randint(0, 1)), (before + size + after,))
    elif op in ("flip", "roll") and not any(step.op in ("flip", "roll") for step in sketch.steps):
        make((), (size,))  # a second one could undo the first
    elif op == "expand":
        make((2,), (2, size))
    elif op in ("repeat", "interleave"):
        make((2,), (2 * size,))


def sketches(most: int = 6) -> st.SearchStrategy[Sketch]:
    """Programs drawn by hypothesis, which shrink, and as many drawn evenly, which hypothesis would not do by itself."""
    drawn = st.randoms(use_true_random=False).map(lambda rng: sketch_of(rng, most))
    return st.one_of(drawn, st.integers(0, 2**40).map(lambda seed: sketch_of(random.Random(seed), most)))
