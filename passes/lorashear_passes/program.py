"""A captured program that can be run: with structures at their neutral value, or without them.

Both start from the same `torch.export` program, so that they show the theorem on any module, whatever its class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorashear_ir.axes import axes_of, product
from lorashear_ir.graph import Argument, Graph, Node, Ref
from lorashear_ir.groups import Groups, Selection, TensorCut, block_axes
from lorashear_ir.ops.base import argument
from lorashear_ir.ops.index import chosen_axes
from lorashear_passes.aten import op_name
from lorashear_passes.capture import exported, translate
from lorashear_passes.infer import infer
from lorashear_passes.neutral import SELECTS, routed
from lorashear_passes.resize import resize

Removed = Mapping[str, Any]
DIVISIONS = {"div", "true_divide"}


@dataclass(frozen=True)
class Program:
    """An exported module and its typed graph; values have the names of the exported nodes."""

    exported: torch.export.ExportedProgram
    graph: Graph


def record(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Program:
    """Capture a module so that it can be run again. Raises CaptureError."""
    program = exported(model, inputs)
    return Program(program, infer(translate(program, model)))


def cut_tensor(tensor: torch.Tensor, cut: TensorCut) -> torch.Tensor:
    """What is left of a tensor: a copy."""
    for dim, kept in cut.keep.items():
        tensor = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
    if cut.scale == 1.0:
        return tensor.clone()
    return ((tensor.double() + cut.offset) * cut.scale - cut.offset).to(tensor.dtype)


def sliced(program: Program, groups: Groups, removed: Removed) -> torch.fx.GraphModule:
    """The program without the structures: its parameters cut, the sizes in its graph rewritten."""
    module = runnable(program)
    cuts = groups.cuts(removed)
    small = resize(program.graph, groups, removed)
    with torch.no_grad():
        for name, tensor in tensors(module):
            first = groups.tied.get(name, name)
            if first in cuts:
                replace_tensor(module, name, cut_tensor(tensor.detach(), cuts[first]))
    rewrite(module, list(zip(program.graph.nodes, small.nodes, strict=True)))
    return module


def rewrite(module: torch.fx.GraphModule, pairs: Sequence[tuple[Node, Node]]) -> None:
    """Put the changed numbers of nodes (before, after) into the exported program."""
    wanted = {after.outputs[0].name.partition(".")[0]: (before, after) for before, after in pairs if after.outputs}
    for fx_node in module.graph.nodes:
        if fx_node.op == "call_function" and fx_node.name in wanted:
            rewrite_node(fx_node, *wanted[fx_node.name])
    module.graph.lint()
    module.recompile()


def neutralised(program: Program, groups: Groups, removed: Removed) -> torch.fx.GraphModule:
    """The program with the structures at their neutral value: weights 0, and −∞ for scores that are compared."""
    module = runnable(program)
    with torch.no_grad():
        for name, tensor in tensors(module):
            cut = groups.cuts(removed).get(groups.tied.get(name, name))
            if cut is not None:
                replace_tensor(module, name, zeroed(tensor.detach(), cut))
    selection = groups.selection(removed)
    dims = {value.name: value.dims or () for value in program.graph.values()}
    chosen = {axis for dim in routed(program.graph, dims) for axis in axes_of(dim)} & {
        groups[name].axis for name, indices in removed.items() if indices
    }
    blocks = {axis for name in removed if groups[name].blocks > 1 for axis in block_axes(groups[name])}
    gone = {groups[name].axis for name, indices in removed.items() if indices}
    for fx_node in list(module.graph.nodes):
        if fx_node.op == "call_function" and op_name(fx_node.target).rstrip("_") in DIVISIONS:
            _divide_by_one(module, fx_node, dims, selection, gone, blocks)
    masks = {node.outputs[0].name.partition(".")[0]: node for node in program.graph.nodes if node.op in SELECTS}
    for fx_node in list(module.graph.nodes) if chosen else ():
        if fx_node.op == "call_function" and fx_node.name in masks:
            _hide(module, fx_node, masks[fx_node.name], dims, selection, chosen, blocks)
    module.recompile()
    return module


def zeroed(tensor: torch.Tensor, cut: TensorCut) -> torch.Tensor:
    """A copy, zero at every index that a cut does not keep."""
    result = tensor.clone()
    for dim, kept in cut.keep.items():
        gone = sorted(set(range(tensor.shape[dim])) - set(kept))
        result.index_fill_(dim, torch.tensor(gone, device=tensor.device, dtype=torch.long), 0)
    return result


def runnable(program: Program) -> torch.fx.GraphModule:
    module = program.exported.module(check_guards=False)
    # The tensors of the original module are shared; they are replaced here, never written to.
    assert isinstance(module, torch.fx.GraphModule)
    if module.graph.eliminate_dead_code(_writes):  # the typed graph leaves it out, so its sizes would not follow
        module.recompile()
    return copy.copy(module)


def _writes(fx_node: torch.fx.Node) -> bool:
    """Whether a node does more than make a value. Attention that nothing reads does not, although it may draw numbers."""
    schema = getattr(fx_node.target, "_schema", None)
    return fx_node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)


def tensors(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def replace_tensor(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=bool(owner._parameters[leaf].requires_grad))  # type: ignore[union-attr]
    else:
        owner._buffers[leaf] = tensor


def rewrite_node(fx_node: torch.fx.Node, before: Node, after: Node) -> None:
    """Put the changed numbers, and the operator if it changed, into the exported node."""
    if fx_node.target is torch.ops.aten.view.default:
        fx_node.target = torch.ops.aten.reshape.default  # whether a view is possible may depend on the sizes
    same = op_name(fx_node.target) == before.op  # else the graph has a simpler operator: a slice for a run of indices
    if same and before.op == after.op and before.arguments == after.arguments:
        return
    if op_name(fx_node.target) != after.op or len(after.arguments) != len(before.arguments):
        fx_node.target = (
            getattr(torch.ops.aten, after.op).default if after.op != "slice" else torch.ops.aten.slice.Tensor
        )
        source = fx_node.args[0]
        fx_node.args = (source, *(_python(a) for a in after.arguments[1:]))
        fx_node.kwargs = {}
        return
    schema = fx_node.target._schema.arguments  # type: ignore[union-attr]
    arguments = list(fx_node.args)
    keywords = dict(fx_node.kwargs)
    for position, (old, new) in enumerate(zip(before.arguments, after.arguments, strict=True)):
        if old == new:
            continue
        if position < len(arguments):
            arguments[position] = _python(new)
        else:
            keywords[schema[position].name] = _python(new)
    fx_node.args, fx_node.kwargs = tuple(arguments), keywords


def _python(value: Argument) -> Any:
    assert not isinstance(value, Ref)
    return [_python(v) for v in value] if isinstance(value, tuple) else value


def _hide(
    module: torch.fx.GraphModule,
    fx_node: torch.fx.Node,
    node: Node,
    dims: Mapping[str, tuple[Any, ...]],
    selection: Selection,
    chosen: set[Any],
    blocks: set[Any],
) -> None:
    """−∞ at the removed indices of the scores that an operator compares."""
    source = node.arguments[0]
    assert isinstance(source, Ref)
    along = chosen_axes(node, dims) if node.op in ("topk", "argmax") else None
    places = (
        range(len(dims[source.name])) if node.op.startswith("sigmoid") else [_along(node, dims[source.name], along)]
    )
    for place in places:
        if not chosen & set(axes_of(dims[source.name][place])):
            continue
        name = f"hidden_{fx_node.name}_{place}"
        mask = _removed(dims[source.name], place, selection, blocks)
        fx_node.args = (_filled(module, fx_node, fx_node.args[0], name, mask, float("-inf")), *fx_node.args[1:])


def _removed(dims: tuple[Any, ...], place: int, selection: Selection, blocks: set[Any]) -> torch.Tensor:
    """Where a value was removed along one of its dims. Broadcasts against the value."""
    # Which index of a block goes depends on the block, which may be a dim further left.
    first = min([place, *(i for i, d in enumerate(dims) if blocks & set(axes_of(d)))])
    together = dims[first : place + 1]
    mask = torch.ones(math.prod(d.size for d in together), dtype=torch.bool)
    mask[selection.kept(product(together))] = False
    return mask.reshape([*(d.size for d in together), *[1] * (len(dims) - 1 - place)])


def _filled(
    module: torch.fx.GraphModule, before: torch.fx.Node, source: Any, name: str, mask: torch.Tensor, number: float
) -> torch.fx.Node:
    """A number where the mask is true."""
    module.register_buffer(name, mask, persistent=False)
    with module.graph.inserting_before(before):
        where = module.graph.get_attr(name)
        return module.graph.call_function(torch.ops.aten.masked_fill.Scalar, (source, where, number))


def _divide_by_one(
    module: torch.fx.GraphModule,
    fx_node: torch.fx.Node,
    dims: Mapping[str, tuple[Any, ...]],
    selection: Selection,
    gone: set[Any],
    blocks: set[Any],
) -> None:
    """What was removed divides by 1: 0/0 counts as 0."""
    below = fx_node.args[1]
    while isinstance(below, torch.fx.Node) and below.name not in dims and below.args:
        below = below.args[0]  # copies that the graph leaves out
    if not isinstance(below, torch.fx.Node) or below.name not in dims:
        return
    for place, dim in enumerate(dims[below.name]):
        if gone & set(axes_of(dim)):
            name = f"divisor_{fx_node.name}_{place}"
            mask = _removed(dims[below.name], place, selection, blocks)
            divisor = _filled(module, fx_node, fx_node.args[1], name, mask, 1.0)
            fx_node.args = (fx_node.args[0], divisor, *fx_node.args[2:])


def _along(node: Node, dims: tuple[Any, ...], chosen: Any) -> int:
    if chosen is not None:
        return next(i for i, d in enumerate(dims) if d is chosen)
    place = argument(node, 1)
    assert isinstance(place, int)
    return place % len(dims)
