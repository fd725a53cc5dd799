"""RMSNorm and LayerNorm written out: x · rsqrt(mean(x²) + eps) · w, of x as it is or of x - mean(x)."""

from __future__ import annotations

from collections.abc import Iterator

from lorashear_ir.graph import Ref
from lorashear_passes.flow import CASTS, Flow, Region


def rms_norms(flow: Flow) -> Iterator[Region]:
    """x · rsqrt(mean(x²) + eps), with its weight ``w`` or ``1 + w`` and its casts."""
    return (region for region, centred in _norms(flow) if not centred)


def layer_norms(flow: Flow) -> Iterator[Region]:
    """The same of x - mean(x), with or without a bias. torch's own layer_norm is one node already."""
    return (region for region, centred in _norms(flow) if centred)


def _norms(flow: Flow) -> Iterator[tuple[Region, bool]]:
    for root in flow.all("rsqrt", "sqrt", "pow"):
        found = _normalised(flow, root)
        if found is None:
            continue
        region, x, centred = found
        if centred:
            region |= {position for position in (flow.maker[x], *_mean_of(flow, x)) if position is not None}
        region = _affine(flow, _affine(flow, region, "mul"), "add")
        region = flow.with_moves_before(flow.with_moves_after(region, CASTS))
        if flow.hides(region):
            yield region, centred


def _normalised(flow: Flow, root: int) -> tuple[Region, str, bool] | None:
    """The nodes up to x · rsqrt(mean(x²) + eps), x (after x - mean(x) if centred), and whether it is centred."""
    node = flow.nodes[root]
    if node.op == "pow" and node.arguments[1] != -0.5:
        return None
    plus = flow.made(node.arguments[0], "add")
    mean = None if plus is None else flow.made(flow.nodes[plus].arguments[0], "mean")
    squares = None if mean is None else flow.made(flow.nodes[mean].arguments[0], "pow", "mul", "square")
    scaled = flow.only_user(root, "div" if node.op == "sqrt" else "mul")
    if plus is None or mean is None or squares is None or scaled is None or not _is_square(flow, squares):
        return None
    outer, casts = scaled
    squared, inner_casts = flow.bare(flow.nodes[squares].arguments[0])
    for operand in flow.nodes[outer].arguments:
        if not isinstance(operand, Ref):
            continue
        x, outer_casts = flow.bare(operand)
        if x == squared or (_mean_of(flow, x) and _same(flow, x, squared)):
            region = {root, plus, mean, squares, outer, *casts, *inner_casts, *outer_casts}
            region |= set() if x == squared else {flow.maker[squared]}
            return frozenset(region), x, bool(_mean_of(flow, x))
    return None


def _is_square(flow: Flow, position: int) -> bool:
    node = flow.nodes[position]
    return {"pow": node.arguments[1:2] == (2,), "mul": len(set(node.arguments)) == 1}.get(node.op, True)


def _mean_of(flow: Flow, x: str) -> tuple[int, ...]:
    """Where the mean is made, if x is y - mean(y); else nothing."""
    position = flow.made(Ref(x), "sub")
    if position is None:
        return ()
    y, mean = flow.nodes[position].arguments[:2]
    made = flow.made(mean, "mean")
    return (made,) if made is not None and flow.bare(flow.nodes[made].arguments[0])[0] == flow.bare(y)[0] else ()


def _same(flow: Flow, x: str, other: str) -> bool:
    """Whether two values are made in the same way of the same."""
    a, b = flow.maker.get(x), flow.maker.get(other)
    return a is not None and b is not None and flow.nodes[a].arguments == flow.nodes[b].arguments


def _affine(flow: Flow, region: Region, op: str) -> Region:
    """The region and a product with (or sum with) parameters alone that follows it."""
    outputs = flow.outputs(region)
    found = flow.only_user(flow.maker[outputs[0]], op) if len(outputs) == 1 else None
    if found is None:
        return region
    position, casts = found
    for operand in flow.nodes[position].arguments:
        if isinstance(operand, Ref) and flow.maker.get(operand.name) not in region | casts:
            weight, ends = flow.behind(operand.name, (), {"add", "mul", *CASTS})
            if ends and ends <= flow.parameters:
                return region | weight | casts | {position}
    return region
