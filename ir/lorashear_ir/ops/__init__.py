"""The op table: what each operator says about the dims of its operands, where zero stays zero, and its sizes.

    pointwise   elements treated alone
    contract    multiply and add up: linear maps, matrix products, convolutions, attention
    move        views, permutations, cuts, joins, repetitions
    reduce      sums, means, softmax, norms
    index       look-ups, choices, scatters, index ranges and constant fills

An operator without a row freezes all that it touches, and is named.
"""

from lorashear_ir.ops import contract, index, move, pointwise, reduce
from lorashear_ir.ops.base import Dims, Row, Typing, where

TABLE: dict[str, Row] = {**pointwise.ROWS, **contract.ROWS, **move.ROWS, **reduce.ROWS, **index.ROWS}

__all__ = ["TABLE", "Dims", "Row", "Typing", "where"]
