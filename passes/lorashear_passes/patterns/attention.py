"""Attention: torch's scaled_dot_product_attention, or softmax(q · k + …) · v written out."""

from __future__ import annotations

from collections.abc import Iterator

from lorashear_ir.graph import Ref
from lorashear_passes.flow import CASTS, MOVES, Flow, Region

PRODUCTS = ("matmul", "bmm", "baddbmm")
# Between q · k and the softmax: scale, soft cap, mask, sinks, the largest score taken off.
SCORES = MOVES | frozenset("mul div add sub tanh where masked_fill masked_fill_ max amax maximum clamp cat".split())


def attentions(flow: Flow) -> Iterator[Region]:
    """Each attention with the repetition of its keys and all that only moves elements around it."""
    for position in flow.all("scaled_dot_product_attention", "softmax", "_softmax"):
        region = frozenset({position}) if "attention" in flow.kind(position) else _written_out(flow, position)
        if region and flow.hides(region):
            yield flow.with_moves_before(flow.with_moves_after(region))


def _written_out(flow: Flow, softmax: int) -> Region:
    before = _scores(flow, next(flow.nodes[softmax].references()))
    after = flow.only_user(softmax, *PRODUCTS, through=CASTS | {"slice", "view", "reshape", "mul", "where", "expand"})
    if not before or after is None:
        return frozenset()
    product, passed = after
    return before | passed | {softmax, product}


def _scores(flow: Flow, name: str) -> Region:
    """The nodes between a value and the product of queries and keys behind it; none if there is no such product."""
    behind, ends = flow.behind(name, (), SCORES)
    found = {position for end in ends if (position := flow.made(Ref(end), *PRODUCTS)) is not None}
    for position in sorted(behind):
        if any(flow.maker.get(read) in found for read in flow.nodes[position].references()):
            found.add(position)
    return frozenset(found)
