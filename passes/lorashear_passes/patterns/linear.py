"""What is built from linear layers: the LoRA linear, MLPs with and without a gate, and experts that all run at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lorashear_ir.graph import Ref
from lorashear_passes.flow import CASTS, Flow, Region

VIEWS = CASTS | {"view", "reshape", "_unsafe_view"}
PIECES = frozenset("chunk split split_with_sizes slice narrow select unbind".split())
NONLINEAR = frozenset(
    "relu relu_ relu6 silu silu_ gelu sigmoid tanh softplus mish elu leaky_relu hardswish hardsigmoid erf exp pow "
    "square clamp maximum".split()
)
ELEMENTWISE = NONLINEAR | frozenset(
    "mul mul_ add add_ sub div neg where gt ge lt le expm1 log1p minimum min abs".split()
)
NORMS = frozenset("rms_norm layer_norm".split())
# What adapters are made of besides linear layers; DoRA takes the norm of the sum's rows.
ADAPTING = VIEWS | frozenset(
    "linear addmm mm matmul mul add sub div t numpy_T transpose unsqueeze squeeze expand eye linalg_norm "
    "linalg_vector_norm norm sqrt sum pow".split()
)


def projection(flow: Flow, position: int) -> str | None:
    """The input of a linear layer, however it is written; None if the node is not one."""
    node = flow.nodes[position]
    kind = flow.kind(position)
    if kind not in ("linear", "lora_linear", "addmm", "mm", "matmul"):
        return None
    x, weight = (node.arguments[1:3]) if kind == "addmm" else node.arguments[:2]
    if not isinstance(x, Ref) or not isinstance(weight, Ref) or x.name in flow.parameters:
        return None
    if flow.bare(weight, CASTS | {"t", "transpose", "numpy_T", "permute"})[0] not in flow.parameters:
        return None
    return flow.bare(x, VIEWS)[0]


def lora_linears(flow: Flow) -> Iterator[Region]:
    """W x + s · B(A x), with any number of adapters; and what else of x and parameters alone they add (DoRA)."""
    taken: set[int] = set()
    for add in reversed(list(flow.all("add"))):  # the outermost first: each adapter adds to the sum before it
        region = _adapted(flow, add) if add not in taken else frozenset[int]()
        if region and not region & taken and flow.hides(region):
            taken |= region
            yield region


def _adapted(flow: Flow, add: int) -> Region:
    for base in _bases(flow, add):
        x = _input(flow, base)
        region, ends = flow.behind(flow.nodes[add].outputs[0].name, {x}, ADAPTING)
        if ends <= {x} | flow.parameters and any(_is_adapter(flow, position) for position in region):
            return region
    return frozenset()


def _input(flow: Flow, base: int) -> str:
    """What a linear layer reads; where it is written as addmm, before that is made a matrix."""
    if flow.kind(base) != "addmm":
        return next(flow.nodes[base].references())
    matrix = list(flow.nodes[base].references())[1]
    view = flow.made(Ref(matrix), "view", "reshape")
    return matrix if view is None else next(flow.nodes[view].references())


def _bases(flow: Flow, add: int) -> Iterator[int]:
    """Linear layers whose result goes into a sum directly, or through more sums."""
    for operand in flow.nodes[add].arguments[:2]:
        if not isinstance(operand, Ref):
            continue
        position = flow.maker.get(flow.bare(operand, VIEWS)[0])
        if position is None:
            continue
        if projection(flow, position) is not None:
            yield position
        elif flow.kind(position) == "add" and len(flow.users[operand.name]) == 1:  # so no residual stream
            yield from _bases(flow, position)


def _is_adapter(flow: Flow, position: int) -> bool:
    """Whether the node is B of B(A x)."""
    x = projection(flow, position)
    before = flow.maker.get(x) if x is not None else None
    return before is not None and projection(flow, before) is not None


def gated_mlps(flow: Flow) -> Iterator[Region]:
    """down(act(gate(x)) · up(x)), gate and up one layer or two."""
    return (region for region, gated in _mlps(flow, projection) if gated)


def mlps(flow: Flow) -> Iterator[Region]:
    """down(act(up(x)))"""
    return (region for region, gated in _mlps(flow, projection) if not gated)


def batched_mlps(flow: Flow) -> Iterator[Region]:
    """The same of stacked weights, for all experts at once."""
    return (region for region, _ in _mlps(flow, _batched))


def _batched(flow: Flow, position: int) -> str | None:
    """The input of as many linear layers as stacked weights have; None if the node is no such product."""
    x, weight = [*flow.nodes[position].arguments, None, None][:2]
    if flow.kind(position) not in ("bmm", "matmul") or not isinstance(x, Ref) or not isinstance(weight, Ref):
        return None
    stacked = flow.bare(weight, CASTS | {"transpose", "permute"})[0]
    return flow.bare(x)[0] if stacked in flow.parameters and len(flow.values[stacked].shape) == 3 else None


def _mlps(flow: Flow, layer: Callable[[Flow, int], str | None]) -> Iterator[tuple[Region, bool]]:
    """From each linear layer back through elementwise operators and norms to the linear layers of one x before it."""
    for down in range(len(flow.nodes)):
        hidden = layer(flow, down)
        if hidden is None:
            continue
        inner, ends = flow.behind(hidden, (), ELEMENTWISE | PIECES | VIEWS | NORMS)
        kinds = {flow.kind(position) for position in inner}
        layers = {flow.maker[name] for name in ends if name in flow.maker}
        inputs = {layer(flow, position) for position in layers}
        if not kinds & NONLINEAR or len(inputs) != 1 or None in inputs or len(layers) > 2:
            continue
        scales = {name for position in inner if flow.kind(position) in NORMS for name in flow.inputs({position})}
        numbers = ends - flow.maker.keys() - scales  # learnt numbers in an activation
        if any(max(flow.values[name].shape, default=1) > 1 for name in numbers):
            continue
        region = flow.with_moves_before(flow.with_moves_after(inner | layers | {down}, VIEWS))
        if flow.hides(region):
            yield region, len(layers) == 2 or bool(kinds & PIECES)
