"""Rotary embedding: x · cos + rotate(x) · sin, of queries and keys together where they share their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lorashear_ir.graph import Ref
from lorashear_passes.flow import MOVES, Flow, Region


def ropes(flow: Flow) -> Iterator[Region]:
    """Half-split and interleaved, of whole heads or of a part, written with rotate_half, by halves, or complex."""
    current: Region = frozenset()
    for region in _rotations(flow):
        both = current | region
        if current and set(flow.inputs(current)) & set(flow.inputs(region)) and flow.is_convex(both):
            current = both
            continue
        if current:
            yield flow.with_moves_before(current)
        current = region
    if current:
        yield flow.with_moves_before(current)


def _rotations(flow: Flow) -> Iterator[Region]:
    for position in flow.all("add", "cat", "stack", "view_as_real"):
        match flow.kind(position):
            case "add":
                region = _rotate_half(flow, position)
            case "view_as_real":
                region = _complex(flow, position)
            case _:
                region = _by_halves(flow, position)
        if region:
            yield _with_rest(flow, flow.with_moves_after(region, {"flatten", "to", "type_as", "view", "reshape"}))


def _operands(flow: Flow, position: int | None) -> list[str]:
    return list(flow.nodes[position].references()) if position is not None else []


def _rotate_half(flow: Flow, add: int) -> Region:
    """x · cos + cat(-x2, x1) · sin; also stack(-x2, x1) of every second element."""
    products = [flow.maker.get(name) for name in _operands(flow, add)]
    if len(products) != 2 or any(p is None or flow.kind(p) != "mul" for p in products):
        return frozenset()
    for straight, turned in (products, products[::-1]):
        for x in _operands(flow, straight):
            for operand in _operands(flow, turned):
                rotation, ends = flow.behind(operand, {x}, MOVES | {"neg"})
                kinds = {flow.kind(position) for position in rotation}
                if ends == {x} and "neg" in kinds and kinds & {"cat", "stack"}:
                    return rotation | {position for position in (add, straight, turned) if position is not None}
    return frozenset()


def _by_halves(flow: Flow, joined: int) -> Region:
    """cat(x1 · cos - x2 · sin, x2 · cos + x1 · sin)"""
    parts = flow.nodes[joined].arguments[0]
    if not isinstance(parts, tuple) or len(parts) != 2:
        return frozenset()
    first, second = flow.made(parts[0], "sub"), flow.made(parts[1], "add")
    products = [flow.maker.get(n) for part in (first, second) for n in _operands(flow, part)]
    if first is None or second is None or len(products) != 4:
        return frozenset()
    if any(p is None or flow.kind(p) != "mul" for p in products):
        return frozenset()
    count = Counter(name for position in products for name in _operands(flow, position))
    if len(count) != 4 or set(count.values()) != {2}:  # x1, x2, cos and sin, each in two products
        return frozenset()
    return frozenset({joined, first, second, *(p for p in products if p is not None)})


def _complex(flow: Flow, real: int) -> Region:
    """view_as_real(view_as_complex(x) · table)"""
    product = flow.made(flow.nodes[real].arguments[0], "mul")
    turned = [flow.made(Ref(name), "view_as_complex") for name in _operands(flow, product)]
    found = [position for position in turned if position is not None]
    return frozenset({real, product, *found}) if product is not None and found else frozenset()


def _with_rest(flow: Flow, region: Region) -> Region:
    """The region and the joining of what was rotated with the rest of the same heads, if that follows."""
    outputs = flow.outputs(region)
    found = flow.only_user(flow.maker[outputs[0]], "cat") if len(outputs) == 1 else None
    if found is None:
        return region
    cat, casts = found
    rest = [name for name in _operands(flow, cat) if flow.maker.get(name) not in region | casts]
    origins = {_origin(flow, name) for name in flow.inputs(region)} | set(flow.inputs(region))
    return region | casts | {cat} if rest and {_origin(flow, name) for name in rest} <= origins else region


def _origin(flow: Flow, name: str) -> str:
    """What a piece was cut from."""
    cut = flow.made(Ref(name), "slice", "split", "split_with_sizes", "chunk", "narrow")
    return name if cut is None else _operands(flow, cut)[0]
