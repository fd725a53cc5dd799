"""How often the entries of each weight are multiplied, read off the traced program."""

from __future__ import annotations

import math

from lorashear_ir.graph import Graph

PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "_grouped_mm", "conv1d", "conv2d")
"""Operators that multiply every entry of a weight by what they meet it with."""
CHOICES = ("index", "index_select", "gather")
"""Operators by which data say which parts of a weight are used: the experts of a token."""


def products(graph: Graph, tokens: int) -> dict[str, float]:
    """Multiplications that one entry of each parameter takes part in, on average for each token, by parameter name.

    A weight of a linear map has 1, one that is only looked up or added 0, and one of experts the share of them that a
    token is sent to. ``tokens`` is the number of tokens that the program was traced with.
    """
    sizes = {value.name: math.prod(value.shape) for value in graph.values()}
    weights = {source.value.name: source for source in graph.sources if source.role == "parameter"}
    used = {source.path: 0.0 for source in weights.values()}
    shares: dict[str, dict[str, float]] = {name: {name: 1.0} for name in weights}
    for node in graph.nodes:
        given = {name: share for operand in node.references() for name, share in shares.get(operand, {}).items()}
        if not given:
            continue
        if node.op in PRODUCTS and any(name not in shares for name in node.references()):
            for name, share in given.items():
                if len(weights[name].value.shape) > 1:  # else it is added: a bias
                    used[weights[name].path] += share
        elif all(name in shares for name in node.references()):
            shares.update((output.name, given) for output in node.outputs)
        elif node.op in CHOICES:
            table, chosen = next(node.references()), node.outputs[0].name
            part = sizes[chosen] / sizes[table] / tokens
            shares[chosen] = {name: share * part for name, share in shares.get(table, {}).items()}
    return used
