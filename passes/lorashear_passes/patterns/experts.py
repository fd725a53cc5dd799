"""An expert layer: each token through the weights that routing chose for it, the results weighed and added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lorashear_ir.graph import Ref
from lorashear_passes.flow import CASTS, MOVES, Flow, Region
from lorashear_passes.patterns.linear import batched_mlps

AFTER = MOVES | frozenset("bmm matmul mul mul_ add add_ sum".split())


def experts(flow: Flow) -> Iterator[Region]:
    """The stacked weights (and biases) that one tensor of indices chooses from, and all between them and the sum.

    Where no index chooses, every expert sees every token, and its share of it is zero where it was not chosen.
    """
    yield from batched_mlps(flow)
    chosen: dict[str, set[int]] = defaultdict(set)
    for position in flow.all("index", "index_select"):
        stacked, _, *_ = flow.nodes[position].arguments
        indices = flow.nodes[position].arguments[-1]
        index = indices[0] if isinstance(indices, tuple) and len(indices) == 1 else indices
        if isinstance(stacked, Ref) and stacked.name in flow.parameters and isinstance(index, Ref):
            chosen[index.name].add(position)
    for gathered in chosen.values():
        if sum(len(flow.nodes[position].outputs[0].shape) == 3 for position in gathered) > 1:
            region = _between(flow, frozenset(gathered))
            if region and flow.hides(region):
                yield flow.with_moves_before(flow.with_moves_after(region))


def _between(flow: Flow, gathered: Region) -> Region:
    """What the chosen weights reach, up to the sum over the experts of a token."""
    last: int = max(position for position in gathered if len(flow.nodes[position].outputs[0].shape) == 3)
    end = flow.only_user(last, "sum", through=AFTER - {"sum"} | CASTS)
    if end is None:
        return frozenset()
    region = set(gathered)
    for position in range(min(gathered), end[0] + 1):
        if any(flow.maker.get(name) in region for name in flow.nodes[position].references()):
            region.add(position)
    return frozenset(region)
