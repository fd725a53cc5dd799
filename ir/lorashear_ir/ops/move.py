"""Operators that move elements and leave them as they are: views, permutations, cuts, joins, repetitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from lorashear_ir.axes import ONE, Dim, add, product
from lorashear_ir.graph import Argument, Node, Ref
from lorashear_ir.ops.base import (
    NONE,
    Axes,
    Dims,
    Resizing,
    Row,
    Typing,
    Zero,
    Zeros,
    argument,
    at,
    broadcast,
    full_shape,
    ints,
    meet,
    position,
    resized,
    where,
)

T = TypeVar("T")


def regroup(dims: Dims, shape: Sequence[int], t: Typing, name: Callable[[], str]) -> Dims:
    """``view``: cut both shapes into the shortest runs of equal size; each run of new dims is the product of the old."""
    result: list[Dim] = []
    old = [d for d in dims if d.size != 1]
    place = 0
    new = 0
    while new < len(shape):
        if shape[new] == 1:
            result.append(ONE)
            new += 1
            continue
        begin, first = place, new
        left, right = old[place].size, shape[new]
        place, new = place + 1, new + 1
        while left != right:
            if left < right:
                left *= old[place].size
                place += 1
            else:
                right *= shape[new]
                new += 1
        source = product(t.solver.resolve(d) for d in old[begin:place])
        if new - first == 1:
            result.append(source)
        else:
            made = t.fresh(shape[first:new])
            t.solver.unify(source, product(made), name)
            result.extend(made)
    return tuple(result)


def _type_view(node: Node, t: Typing) -> list[Dims]:
    dims, shape = t.of(node.arguments[0]), node.outputs[0].shape
    if 0 in shape:
        raise NotImplementedError
    return [regroup(dims, shape, t, lambda: where(node))]


def _moved(node: Node, z: Zeros) -> list[Zero]:
    return z.moved(node, node.arguments[0])


def _arrange(arranged: Callable[[Node, tuple[T, ...], T], tuple[T, ...]]) -> Row:
    """An operator that puts whole dims elsewhere does the same to what is known of them."""
    return Row(
        lambda node, t: [arranged(node, t.of(node.arguments[0]), ONE)],  # type: ignore[arg-type,list-item]
        lambda node, z: [arranged(node, z.of(node.arguments[0]), NONE)],  # type: ignore[arg-type,list-item]
        points="keep",
    )


def _transpose(node: Node, items: tuple[T, ...], _: T) -> tuple[T, ...]:
    result = list(items)
    first = position(argument(node, 1, 0), len(result))
    second = position(argument(node, 2, 1), len(result))
    if len(result) > 1:
        result[first], result[second] = result[second], result[first]
    return tuple(result)


def _reverse(node: Node, items: tuple[T, ...], _: T) -> tuple[T, ...]:
    return items[::-1]


def _last_two(node: Node, items: tuple[T, ...], _: T) -> tuple[T, ...]:
    return (*items[:-2], items[-1], items[-2])


def _permute(node: Node, items: tuple[T, ...], _: T) -> tuple[T, ...]:
    return tuple(items[i % len(items)] for i in ints(node.arguments[1]))


def _movedim(node: Node, items: tuple[T, ...], _: T) -> tuple[T, ...]:
    source, target = (argument(node, i) for i in (1, 2))
    sources = [position(i, len(items)) for i in (source if isinstance(source, tuple) else (source,))]
    targets = [position(i, len(items)) for i in (target if isinstance(target, tuple) else (target,))]
    rest = iter(items[i] for i in range(len(items)) if i not in sources)
    placed = {to: items[of] for of, to in zip(sources, targets, strict=True)}
    return tuple(placed[i] if i in placed else next(rest) for i in range(len(items)))


def _unsqueeze(node: Node, items: tuple[T, ...], one: T) -> tuple[T, ...]:
    place = position(node.arguments[1], len(items) + 1)
    return (*items[:place], one, *items[place:])


def _squeezed(node: Node, shape: Sequence[int]) -> set[int]:
    """Positions that squeeze takes away."""
    chosen = argument(node, 1, tuple(range(len(shape))))
    picked = {position(i, len(shape)) for i in (chosen if isinstance(chosen, tuple) else (chosen,))}
    return {i for i in picked if shape[i] == 1}


def _type_squeeze(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    gone = _squeezed(node, [d.size for d in dims])
    return [tuple(d for i, d in enumerate(dims) if i not in gone)]


def _zero_squeeze(node: Node, z: Zeros) -> list[Zero]:
    gone = _squeezed(node, [d.size for d in z.dims_of(node.arguments[0])])
    return [tuple(s for i, s in enumerate(z.of(node.arguments[0])) if i not in gone)]


def _type_expand(node: Node, t: Typing) -> list[Dims]:
    dims, shape = t.of(node.arguments[0]), node.outputs[0].shape
    padded = (ONE,) * (len(shape) - len(dims)) + dims
    return [tuple(d if d.size == size else t.solver.fresh(size) for d, size in zip(padded, shape, strict=True))]


def _zero_expand(node: Node, z: Zeros) -> list[Zero]:
    state = z.of(node.arguments[0])
    return [(*((NONE,) * (len(node.outputs[0].shape) - len(state))), *state)]


def _repeats(node: Node, rank: int) -> list[int]:
    given = node.arguments[1]
    return ints(given) if isinstance(given, tuple) else [a for a in node.arguments[1:] if isinstance(a, int)]


def _type_repeat(node: Node, t: Typing) -> list[Dims]:
    """repeat, tile: index ``r × size + i``."""
    dims = t.resolved(node.arguments[0])
    counts = _repeats(node, len(dims))
    rank = len(node.outputs[0].shape)
    dims = (ONE,) * (rank - len(dims)) + dims
    counts = [1] * (rank - len(counts)) + counts
    return [tuple(d if n == 1 else product([t.solver.fresh(n), d]) for n, d in zip(counts, dims, strict=True))]


def _size_repeat(node: Node, r: Resizing) -> Node:
    """As many copies as the new size holds."""
    source = node.arguments[0]
    assert isinstance(source, Ref)
    after, before = r.shape(node.outputs[0].name), r.shape(source.name)
    before = (1,) * (len(after) - len(before)) + before
    return resized(node, 1, tuple(a // b for a, b in zip(after, before, strict=True)))


def _type_interleave(node: Node, t: Typing) -> list[Dims]:
    """repeat_interleave by a number: index ``i × n + r``."""
    count, along = node.arguments[1], argument(node, 2)
    dims = t.resolved(node.arguments[0])
    if not isinstance(count, int) or not isinstance(along, int):
        raise NotImplementedError
    place = along % len(dims)
    made = product([dims[place], t.solver.fresh(count)])
    return [(*dims[:place], made, *dims[place + 1 :])]


def _size_interleave(node: Node, r: Resizing) -> Node:
    source, along = node.arguments[0], node.arguments[2]
    assert isinstance(source, Ref) and isinstance(along, int)
    after, before = r.shape(node.outputs[0].name)[along], r.shape(source.name)[along]
    node = resized(node, 1, after // before)
    return resized(node, 3, after) if isinstance(argument(node, 3), int) else node


def _parts(node: Node) -> list[Ref]:
    parts = node.arguments[0]
    assert isinstance(parts, tuple)
    return [part for part in parts if isinstance(part, Ref)]


def _type_cat(node: Node, t: Typing) -> list[Dims]:
    parts = [t.resolved(part) for part in _parts(node)]
    parts = [p for p in parts if math.prod(d.size for d in p)]
    along = position(argument(node, 1, 0), len(parts[0]))
    for part in parts[1:]:
        for place, (a, b) in enumerate(zip(parts[0], part, strict=True)):
            if place != along:
                t.solver.unify(a, b, lambda: where(node))
    joined = add(t.solver.resolve(part[along]) for part in parts)
    return [(*parts[0][:along], joined, *parts[0][along + 1 :])]


def _zero_cat(node: Node, z: Zeros) -> list[Zero]:
    parts = [p for p in _parts(node) if math.prod(d.size for d in z.dims_of(p))]
    along = position(argument(node, 1, 0), len(z.dims_of(parts[0])))
    result: list[Axes] = []
    for place in range(len(z.dims_of(parts[0]))):
        states = [z.of(p)[place] for p in parts]
        if place != along:
            result.append(meet(states))
            continue
        lost = NONE.union(*(z.axes(z.dims_of(p)[place]) - s for p, s in zip(parts, states, strict=True)))
        result.append(NONE.union(*states) - lost)
    return [tuple(result)]


def _type_stack(node: Node, t: Typing) -> list[Dims]:
    """A new dim of segments, ``1 + … + 1``, in which nothing can be removed."""
    parts = [t.of(part) for part in _parts(node)]
    for part in parts[1:]:
        for a, b in zip(parts[0], part, strict=True):
            t.solver.unify(a, b, lambda: where(node))
    place = position(argument(node, 1, 0), len(parts[0]) + 1)
    return [(*parts[0][:place], add([ONE] * len(parts)), *parts[0][place:])]


def _zero_stack(node: Node, z: Zeros) -> list[Zero]:
    states = [z.of(part) for part in _parts(node)]
    met = [meet(column) for column in zip(*states, strict=True)]
    place = position(argument(node, 1, 0), len(met) + 1)
    return [(*met[:place], NONE, *met[place:])]


def _type_pieces(node: Node, t: Typing) -> list[Dims]:
    """split, chunk: the sizes are those of the results."""
    dims = t.of(node.arguments[0])
    along = position(argument(node, 2, 0), len(dims))
    cut = t.solver.split(dims[along], [value.shape[along] for value in node.outputs], lambda: where(node))
    return [(*dims[:along], piece, *dims[along + 1 :]) for piece in cut]


def _size_pieces(node: Node, r: Resizing) -> Node:
    """Pieces may have become unequal, so they are given one by one."""
    source = node.arguments[0]
    assert isinstance(source, Ref)
    along = position(argument(node, 2, 0), len(r.dims[source.name]))
    sizes = tuple(r.shape(value.name)[along] for value in node.outputs)
    if sizes == tuple(value.shape[along] for value in node.outputs):
        return node
    return replace(node, op="split_with_sizes", arguments=(source, sizes, along))


def _type_unbind(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    along = position(argument(node, 1, 0), len(dims))
    t.solver.split(dims[along], [1] * dims[along].size, lambda: where(node))
    return [dims[:along] + dims[along + 1 :] for _ in node.outputs]


def _zero_unbind(node: Node, z: Zeros) -> list[Zero]:
    state = z.of(node.arguments[0])
    along = position(argument(node, 1, 0), len(state))
    return [state[:along] + state[along + 1 :] for _ in node.outputs]


def _bounds(node: Node, total: int, length: int) -> tuple[int, int]:
    """Start of a slice, and its step; a single index needs none."""
    start, step = argument(node, 2, 0), argument(node, 4, 1)
    begin = start if isinstance(start, int) else 0
    begin = max(0, begin + total) if begin < 0 else min(begin, total)
    return begin, step if isinstance(step, int) and length > 1 else 1


def _type_slice(node: Node, t: Typing) -> list[Dims]:
    dims = t.of(node.arguments[0])
    along = position(argument(node, 1, 0), len(dims))
    total, length = dims[along].size, node.outputs[0].shape[along]
    begin, step = _bounds(node, total, length)
    if length == total:
        return [dims]
    if length == 0:
        piece = t.solver.fresh(0, "is empty")
    elif step == 1:
        sizes = [size for size in (begin, length, total - begin - length) if size]
        piece = t.solver.split(dims[along], sizes, lambda: where(node))[1 if begin else 0]
    elif total == length * step and begin < step:
        # Every step-th index: the dim is length × step, and one index of the minor factor is taken.
        piece, minor = t.fresh((length, step))
        t.solver.unify(dims[along], product([piece, minor]), lambda: where(node))
        t.solver.split(minor, [s for s in (begin, 1, step - begin - 1) if s], lambda: where(node))
        t.solver.freeze(minor, f"{where(node)} takes one of every {step} indices")
    else:
        t.solver.freeze(dims[along], f"{where(node)} takes every {step}th index of it")
        piece = t.solver.fresh(length, f"{where(node)} takes every {step}th index")
    return [(*dims[:along], piece, *dims[along + 1 :])]


def _size_slice(node: Node, r: Resizing) -> Node:
    source = node.arguments[0]
    assert isinstance(source, Ref)
    dims = r.dims[source.name]
    along = position(argument(node, 1, 0), len(dims))
    length = node.outputs[0].shape[along]
    begin, step = _bounds(node, dims[along].size, length)
    if r.size(dims[along]) == dims[along].size or length == dims[along].size:
        return node
    start = r.before(dims[along], begin) if step == 1 else begin
    end = start + r.shape(node.outputs[0].name)[along] * step
    return replace(node, arguments=(source, along, start, min(end, r.size(dims[along])), step))


def _type_narrow(node: Node, t: Typing) -> list[Dims]:
    dims, begin = t.of(node.arguments[0]), node.arguments[2]
    along = position(node.arguments[1], len(dims))
    total, length = dims[along].size, node.outputs[0].shape[along]
    if not isinstance(begin, int) or length == 0:
        raise NotImplementedError
    sizes = [size for size in (begin % total, length, total - begin % total - length) if size]
    piece = t.solver.split(dims[along], sizes, lambda: where(node))[1 if begin else 0]
    return [(*dims[:along], piece, *dims[along + 1 :])]


def _size_narrow(node: Node, r: Resizing) -> Node:
    source, begin = node.arguments[0], node.arguments[2]
    assert isinstance(source, Ref) and isinstance(begin, int)
    along = position(node.arguments[1], len(r.dims[source.name]))
    dim = r.dims[source.name][along]
    start = r.before(dim, begin % dim.size)
    return resized(resized(node, 2, start), 3, r.shape(node.outputs[0].name)[along])


def _size_select(node: Node, r: Resizing) -> Node:
    source, index = node.arguments[0], node.arguments[2]
    assert isinstance(source, Ref) and isinstance(index, int)
    dim = r.dims[source.name][position(node.arguments[1], len(r.dims[source.name]))]
    return resized(node, 2, r.before(dim, index % dim.size))


def _type_select(node: Node, t: Typing) -> list[Dims]:
    """One index: it is cut out of the dim, so that what lies beside it can still go."""
    dims, index = t.of(node.arguments[0]), node.arguments[2]
    along = position(node.arguments[1], len(dims))
    if isinstance(index, int):
        total = dims[along].size
        sizes = [size for size in (index % total, 1, total - index % total - 1) if size]
        t.solver.split(dims[along], sizes, lambda: where(node))
    else:
        t.solver.freeze(dims[along], f"{where(node)} picks one index of it")
    return [dims[:along] + dims[along + 1 :]]


def _zero_select(node: Node, z: Zeros) -> list[Zero]:
    state = z.of(node.arguments[0])
    along = position(node.arguments[1], len(state))
    return [state[:along] + state[along + 1 :]]


def _type_pad(node: Node, t: Typing) -> list[Dims]:
    """Indices before and after, of axes that nothing else has."""
    dims = list(t.resolved(node.arguments[0]))
    amounts = ints(node.arguments[1])
    if any(a < 0 for a in amounts):
        raise NotImplementedError
    for i, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        place = len(dims) - 1 - i
        around = [t.solver.fresh(n, f"{where(node)} adds it") if n > 1 else ONE for n in (before, after)]
        parts = [*([around[0]] if before else []), dims[place], *([around[1]] if after else [])]
        dims[place] = add(parts)
    return [tuple(dims)]


def _zero_pad(node: Node, z: Zeros) -> list[Zero]:
    mode = argument(node, 2, "constant")
    value = argument(node, 3) if node.op == "pad" else argument(node, 2)
    constant = node.op == "constant_pad_nd" or mode == "constant"
    if not constant:
        return z.nowhere(node)
    dims = z.dims_of(node.arguments[0])
    moved = z.moved(node, node.arguments[0])[0]
    if value in (None, 0):
        return [moved]
    # Elsewhere in the padding the value stands at every index, removed or not.
    padded = {len(dims) - 1 - i // 2 for i, n in enumerate(ints(node.arguments[1])) if n}
    return [tuple(s if padded <= {i} else NONE for i, s in enumerate(moved))]


def _type_complex(node: Node, t: Typing) -> list[Dims]:
    """view_as_real, view_as_complex: a last dim of two segments."""
    dims = t.of(node.arguments[0])
    if node.op == "view_as_real":
        return [(*dims, add([ONE, ONE]))]
    t.solver.split(dims[-1], [1, 1], lambda: where(node))
    return [dims[:-1]]


def _zero_complex(node: Node, z: Zeros) -> list[Zero]:
    state = z.of(node.arguments[0])
    return [(*state, NONE)] if node.op == "view_as_real" else [state[:-1]]


def _type_triangle(node: Node, t: Typing) -> list[Dims]:
    for dim in t.of(node.arguments[0])[-2:]:
        t.solver.freeze(dim, f"{where(node)} treats its indices by their order")
    return [t.of(node.arguments[0])]


def _type_order(node: Node, t: Typing) -> list[Dims]:
    """flip, roll: the order of indices matters."""
    dims = t.of(node.arguments[0])
    chosen: Argument = argument(node, 2 if node.op == "roll" else 1, ())
    for i in ints(chosen) if isinstance(chosen, tuple) and chosen else range(len(dims)):
        t.solver.freeze(dims[i], f"{where(node)} treats its indices by their order")
    return [dims]


def _together(node: Node) -> tuple[Ref, ...]:
    given = node.arguments[0]
    assert isinstance(given, tuple)
    return tuple(each for each in given if isinstance(each, Ref))


def _type_together(node: Node, t: Typing) -> list[Dims]:
    """broadcast_tensors: each in the shape that all have together."""
    joined = broadcast([t.of(each) for each in _together(node)], t.solver, lambda: where(node))
    return [joined for _ in node.outputs]


def _zero_together(node: Node, z: Zeros) -> list[Zero]:
    rank = len(node.outputs[0].shape)
    return [tuple(at(z.of(each), place) for place in range(-rank, 0)) for each in _together(node)]


def _type_shuffle(node: Node, t: Typing) -> list[Dims]:
    """pixel_shuffle: channels c × r × r and h, w become c, h × r, w × r."""
    *batch, channels, height, width = t.of(node.arguments[0])
    scale = node.arguments[1]
    assert isinstance(scale, int)
    (kept,) = t.fresh((channels.size // scale**2,))
    rows, columns = t.fresh((scale, scale), f"{where(node)} spreads it over a picture")
    t.solver.unify(channels, product([kept, rows, columns]), lambda: where(node))
    return [(*batch, kept, product([height, rows]), product([width, columns]))]


def _size_unflatten(node: Node, r: Resizing) -> Node:
    source = node.arguments[0]
    assert isinstance(source, Ref)
    along = position(node.arguments[1], len(r.dims[source.name]))
    count = len(ints(node.arguments[2]))
    return resized(node, 2, r.shape(node.outputs[0].name)[along : along + count])


_VIEW = Row(_type_view, _moved, points="keep", sizes=full_shape(1))

ROWS: dict[str, Row] = {
    **dict.fromkeys("view reshape _unsafe_view".split(), _VIEW),
    **dict.fromkeys("flatten ravel reshape_as view_as".split(), Row(_type_view, _moved, points="keep")),
    "unflatten": Row(_type_view, _moved, points="keep", sizes=_size_unflatten),
    **dict.fromkeys("transpose t swapaxes transpose_".split(), _arrange(_transpose)),
    **dict.fromkeys("numpy_T adjoint_T".split(), _arrange(_reverse)),
    **dict.fromkeys("mT mH adjoint".split(), _arrange(_last_two)),
    "permute": _arrange(_permute),
    "movedim": _arrange(_movedim),
    "unsqueeze": _arrange(_unsqueeze),
    "pixel_shuffle": Row(_type_shuffle, _moved),
    "squeeze": Row(_type_squeeze, _zero_squeeze, points="keep"),
    "expand": Row(_type_expand, _zero_expand, points="keep", sizes=full_shape(1)),
    "expand_as": Row(_type_expand, _zero_expand, points="keep"),
    "broadcast_tensors": Row(_type_together, _zero_together),
    "broadcast_to": Row(_type_expand, _zero_expand, points="keep", sizes=full_shape(1)),
    **dict.fromkeys("repeat tile".split(), Row(_type_repeat, _moved, points="keep", sizes=_size_repeat)),
    "repeat_interleave": Row(_type_interleave, _moved, points="keep", sizes=_size_interleave),
    **dict.fromkeys("cat concat concatenate".split(), Row(_type_cat, _zero_cat, points="keep")),
    "stack": Row(_type_stack, _zero_stack, points="keep"),
    **dict.fromkeys(
        "split split_with_sizes chunk".split(), Row(_type_pieces, _moved, points="keep", sizes=_size_pieces)
    ),
    "unbind": Row(_type_unbind, _zero_unbind, points="keep"),
    "slice": Row(_type_slice, _moved, points="keep", sizes=_size_slice),
    "narrow": Row(_type_narrow, _moved, points="keep", sizes=_size_narrow),
    "select": Row(_type_select, _zero_select, points="keep", sizes=_size_select),
    **dict.fromkeys("pad constant_pad_nd".split(), Row(_type_pad, _zero_pad)),
    **dict.fromkeys("view_as_real view_as_complex".split(), Row(_type_complex, _zero_complex)),
    **dict.fromkeys("tril triu".split(), Row(_type_triangle, lambda n, z: [z.of(n.arguments[0])])),
    **dict.fromkeys("flip roll".split(), Row(_type_order, lambda n, z: [z.of(n.arguments[0])])),
}
