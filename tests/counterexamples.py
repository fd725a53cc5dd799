"""Programs that broke the analysis once, as hypothesis shrank them; the name of each says what it showed."""

from __future__ import annotations

from tests.programs import Sketch, Step

COUNTEREXAMPLES: dict[str, Sketch] = {
    "narrow starts later than before": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("write", (1, 1), (), (0, 2, 1)),
            Step("linear", (1,), (1,)),
            Step("end", (3,), (2,)),
        ],
        [(5,), (3,), (3,), (8,), (2,)],
        [(3, 5), (8, 3), (2, 8)],
    ),
    "a dead linear map keeps its old sizes": Sketch(
        [Step("linear", (0,), (0,)), Step("linear", (1,), (1,)), Step("scale", (1,), (2,)), Step("end", (3,), (3,))],
        [(5,), (2,), (2,), (2,), (2,)],
        [(2, 5), (2, 2), (2,), (2, 2)],
    ),
    "a dead attention keeps its old sizes": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("linear", (0,), (1,)),
            Step("split", (2,), (), (0, 4, 2)),
            Step("attention", (3, 3, 3)),
            Step("linear", (1,), (2,)),
            Step("end", (5,), (3,)),
        ],
        [(5,), (3,), (8,), (4, 2), (4, 2), (2,), (2,)],
        [(3, 5), (8, 5), (2, 3), (2, 2)],
    ),
    "the kind of an axis that meets itself in attention": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 4, 2)),
            Step("attention", (2, 2, 2)),
            Step("end", (3,), (1,)),
        ],
        [(5,), (8,), (4, 2), (4, 2), (2,)],
        [(8, 5), (2, 8)],
    ),
    "divisors of experts whose blocks lose other indices": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 8, 3)),
            Step("divide", (2, 2)),
            Step("route", (1,), (1,), (2,)),
            Step("end", (3, 4), (2, 3)),
        ],
        [(5,), (24,), (8, 3), (8, 3), (3,), (2,)],
        [(24, 5), (24, 3), (2, 24), (2, 3)],
    ),
    "an index by all numbers in order is a slice that must shrink": Sketch(
        [Step("linear", (0,), (0,)), Step("pick", (1,), (), (0, 0, 1)), Step("end", (2,), (1,))],
        [(5,), (2,), (2,), (2,)],
        [(2, 5), (2, 2)],
    ),
    "flipped blocks of experts must not lose other indices": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 2, 2)),
            Step("gather", (1, 1), (), (2,)),
            Step("flip", (2,), (), (0,)),
            Step("end", (3, 4), (1, 2)),
        ],
        [(5,), (4,), (2, 2), (2,), (2, 2), (2,)],
        [(4, 5), (2, 2), (2, 4)],
    ),
    "blocks of experts that are added up must not lose other indices": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 3, 4)),
            Step("gather", (1, 1), (), (2,)),
            Step("sum", (2,), (), (0,)),
            Step("relu", (4,)),
            Step("sum", (5,), (), (0,)),
            Step("end", (3, 6), (1, 2)),
        ],
        [(5,), (12,), (3, 4), (2,), (4,), (4,), (), (2,)],
        [(12, 5), (2, 2), (2, 1)],
    ),
    "blocks of experts that meet in attention must not lose other indices": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("linear", (0,), (1,)),
            Step("split", (2,), (), (0, 3, 2)),
            Step("batch_norm", (3,), (2, 3, 4, 5)),
            Step("attention", (4, 3, 3)),
            Step("route", (2,), (6,), (2,)),
            Step("end", (1, 5, 6), (7, 8, 9)),
        ],
        [(5,), (3,), (6,), (3, 2), (3, 2), (3, 2), (2,), (2,)],
        [(3, 5), (6, 5), (3,), (3,), (3,), (3,), (6, 2), (2, 3), (2, 6), (2, 2)],
    ),
    "a mask of what is greater than zero leaves zeros as they are": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 3, 3)),
            Step("masked", (2, 2), (), (1,)),
            Step("rms_norm", (3,), (1,)),
            Step("end", (4,), (2,)),
        ],
        [(5,), (9,), (3, 3), (3, 3), (3, 3), (2,)],
        [(9, 5), (3,), (2, 9)],
    ),
    "a router over a dim in which nothing can go": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 2, 2)),
            Step("linear", (0,), (1,)),
            Step("unbind", (2,), (), (1, 0)),
            Step("fused", (4,), (2, 3)),
            Step("scatter", (5, 1), (), (2,)),
            Step("end", (3, 6), (4, 5)),
        ],
        [(5,), (4,), (2, 2), (3,), (2,), (4,), (4,), (2,)],
        [(4, 5), (3, 5), (2, 2), (2, 2), (2, 3), (2, 4)],
    ),
    "what is written beside an axis leaves its zeros": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 6, 2)),
            Step("write", (2, 2), (), (0, 5, 1)),
            Step("unbind", (2,), (), (1, 0)),
            Step("rms1", (4,), (1,)),
            Step("end", (3, 5), (2, 3)),
        ],
        [(5,), (12,), (6, 2), (6, 2), (6,), (6,), (2,)],
        [(12, 5), (6,), (2, 12), (2, 6)],
    ),
    "blocks of experts that stand twice in one dim must not lose other indices": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 3, 2)),
            Step("silu", (2,)),
            Step("self_outer", (3,)),
            Step("scale", (1,), (1,)),
            Step("gather", (5, 5), (), (2,)),
            Step("end", (4, 6), (2, 3)),
        ],
        [(5,), (6,), (3, 2), (3, 2), (3, 2, 2), (6,), (2,), (2,)],
        [(6, 5), (6,), (2, 12), (2, 2)],
    ),
    "what is written into a copy that nothing reads says nothing": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("slice", (1,), (), (0, 0, 1, 2)),
            Step("write", (2, 2), (), (0, 0, 1)),
            Step("linear", (3,), (1,)),
            Step("linear", (1,), (2,)),
            Step("end", (5,), (3,)),
        ],
        [(5,), (3,), (1,), (1,), (2,), (2,), (2,)],
        [(3, 5), (2, 1), (2, 3), (2, 2)],
    ),
    "what stands on both sides of an equation without solution is free": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 6, 3)),
            Step("chunk", (2,), (), (0, 0)),
            Step("piece", (1,), (), (0, 0, 16, 2)),
            Step("stack", (4, 4), (), (0,)),
            Step("end", (3, 5), (1, 2)),
        ],
        [(5,), (18,), (6, 3), (3, 3), (16,), (2, 16), (2,)],
        [(18, 5), (2, 9), (2, 32)],
    ),
    "every third index of which there is one is a plain slice": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("slice", (1,), (), (0, 5, 6, 3)),
            Step("norm", (2,), (1, 2)),
            Step("end", (1, 3), (3, 4)),
        ],
        [(5,), (8,), (1,), (1,), (2,)],
        [(8, 5), (1,), (1,), (2, 8), (2, 1)],
    ),
    "constant indices say nothing of what lies behind the last": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("linear", (0,), (1,)),
            Step("rms", (2,), (2,), (1,)),
            Step("write", (2, 2), (), (0, 3, 4)),
            Step("pick", (2,), (), (0, 2, 1)),
            Step("end", (1, 3, 4, 5), (3, 4, 5, 6)),
        ],
        [(5,), (2,), (8,), (8,), (8,), (2,), (2,)],
        [(2, 5), (8, 5), (8,), (2, 2), (2, 8), (2, 8), (2, 2)],
    ),
    "what is subtracted from itself has an exact mean": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 4, 3)),
            Step("merge", (2,), (), (0,)),
            Step("sub", (3, 1)),
            Step("group_norm", (4,), (1, 2), (4,)),
            Step("end", (5,), (3,)),
        ],
        [(5,), (12,), (4, 3), (12,), (12,), (12,), (2,)],
        [(12, 5), (12,), (12,), (2, 12)],
    ),
    "a LayerNorm of one number hides what a slice takes": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("split", (1,), (), (0, 6, 2)),
            Step("slice", (1,), (), (0, 9, 11, 2)),
            Step("norm", (3,), (1, 2)),
            Step("end", (2, 4), (3, 4)),
        ],
        [(5,), (12,), (6, 2), (1,), (1,), (2,)],
        [(12, 5), (1,), (1,), (2, 12), (2, 1)],
    ),
    "a clamp hides what a convolution slides over": Sketch(
        [
            Step("linear", (0,), (0,)),
            Step("linear", (0,), (1,)),
            Step("split", (2,), (), (0, 2, 3)),
            Step("divide", (3, 3)),
            Step("conv", (4,), (2, 3), (2,)),
            Step("attention", (5, 3, 5)),
            Step("clamp", (6,)),
            Step("end", (7,), (4,)),
        ],
        [(5,), (2,), (6,), (2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,)],
        [(2, 5), (6, 5), (2, 1, 3), (2,), (2, 6)],
    ),
}
