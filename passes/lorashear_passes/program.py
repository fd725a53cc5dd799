"""A captured program that can be run, as it is or without some structures, whatever the class of its module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorashear_ir.graph import Argument, Graph, Node, Ref
from lorashear_ir.groups import Groups, TensorCut
from lorashear_passes.aten import op_name
from lorashear_passes.capture import CaptureError, exported
from lorashear_passes.infer import infer
from lorashear_passes.resize import resize

Removed = Mapping[str, Any]
GENERAL = {"view": "reshape"}
"""What runs whatever the strides are, which depend on the sizes and on the kernels that torch chooses."""


@dataclass(frozen=True)
class Program:
    """An exported module and its typed graph; values have the names of the exported nodes."""

    exported: torch.export.ExportedProgram
    graph: Graph


def record(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Program:
    """Capture a module so that it can be run again. Raises CaptureError."""
    program, graph = exported(model, inputs)
    return Program(program, infer(graph))


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


def runnable(program: Program) -> torch.fx.GraphModule:
    """The program as a module whose graph may be changed. Raises CaptureError."""
    try:
        module = program.exported.module(check_guards=False)
    except Exception as error:  # torch.export keeps names that its modules cannot have: code, graph, return
        said = str(error).strip().splitlines()[0]
        raise CaptureError(f"the captured program cannot be made a module with these names in it: {said}") from error
    # The tensors of the original module are shared; they are replaced here, never written to.
    assert isinstance(module, torch.fx.GraphModule)
    live = {value.name.partition(".")[0] for node in program.graph.nodes for value in node.outputs}
    # The typed graph leaves dead code out, so its sizes would not follow.
    module.graph.eliminate_dead_code(lambda each: each.op in ("placeholder", "output") or _writes(each, live))
    for fx_node in list(module.graph.nodes):
        if fx_node.target is torch.ops.aten.view.default:
            fx_node.target = torch.ops.aten.reshape.default
        elif fx_node.target is torch.ops.aten.view_as_complex.default:
            with module.graph.inserting_before(fx_node):
                fx_node.args = (module.graph.call_function(torch.ops.aten.contiguous.default, fx_node.args),)
    module.recompile()
    return copy.copy(module)


def _writes(fx_node: torch.fx.Node, live: set[str]) -> bool:
    """Whether a node changes what is read later. Attention that nothing reads does not, although it may draw numbers."""
    schema = getattr(fx_node.target, "_schema", None)
    return schema is not None and schema.is_mutable and fx_node.name in live


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
    stands = op_name(fx_node.target)
    old_op, new_op = (GENERAL.get(node.op, node.op) for node in (before, after))
    same = stands == old_op  # else the graph has a simpler operator: a slice for a run of indices
    if same and old_op == new_op and before.arguments == after.arguments:
        return
    given = (*before.arguments, *[None] * (len(after.arguments) - len(before.arguments)))  # defaults that are none now
    if stands != new_op or len(after.arguments) != len(given):
        fx_node.target = getattr(torch.ops.aten, new_op).default if new_op != "slice" else torch.ops.aten.slice.Tensor
        source = fx_node.args[0]
        fx_node.args = (source, *(_python(a) for a in after.arguments[1:]))
        fx_node.kwargs = {}
        return
    schema = fx_node.target._schema.arguments  # type: ignore[union-attr]
    arguments = list(fx_node.args)
    keywords = dict(fx_node.kwargs)
    for position, (old, new) in enumerate(zip(given, after.arguments, strict=True)):
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
