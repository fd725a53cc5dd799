"""The op table: what each operator says about the dims of its operands, where zero stays zero, and its sizes.

    pointwise   elements treated alone
    contract    multiply and add up: linear maps, matrix products, convolutions, attention
    move        views, permutations, cuts, joins, repetitions
    reduce      sums, means, softmax, norms
    index       look-ups, choices, scatters, index ranges and constant fills

An operator without a row freezes all that it touches, and is named. `register` gives one a row for this process.
"""

from lorashear_ir.ops import contract, index, move, pointwise, reduce
from lorashear_ir.ops.base import Dims, Row, Typing, where

TABLE: dict[str, Row] = {**pointwise.ROWS, **contract.ROWS, **move.ROWS, **reduce.ROWS, **index.ROWS}


def register(op: str, row: Row) -> None:
    """Give an operator that has no row one, for as long as this process lives.

    Args:
        op: its name as `lorashear.trace` prints it, without namespace and overload: ``soft_cap`` of ``mine::soft_cap``.
        row: what is then believed of it; nothing checks that but a test that zeroed equals sliced.

    Raises:
        ValueError: there is a row for this name already.
    """
    if op in TABLE:
        raise ValueError(f"the operator {op} has a row in lorashear_ir.ops.TABLE already: give yours another name")
    TABLE[op] = row


__all__ = ["TABLE", "Dims", "Row", "Typing", "register", "where"]
