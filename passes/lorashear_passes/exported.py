"""A program that torch.export made, as a Graph."""

from __future__ import annotations

import operator

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from lorashear_ir.graph import Graph, Node, Ref, Role, Source
from lorashear_passes import aten
from lorashear_passes.tracing import finished, first_names


def translate(program: ExportedProgram, model: torch.nn.Module) -> Graph:
    """An exported program as a Graph: arguments in schema order, no-ops and assertions folded away."""
    roles = _roles(program)
    first = first_names(model)
    sources: list[Source] = []
    nodes: list[Node] = []
    names: dict[torch.fx.Node, str] = {}
    results: tuple[str, ...] = ()
    seen: dict[str, str] = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder":
            tensor = node.meta.get("val")
            if not isinstance(tensor, torch.Tensor):
                continue
            role, path = roles[node.name]
            if role != "input":  # which may have the name of a parameter
                path = first.get(path, path)
                if path in seen:  # a tied parameter has one placeholder for each of its names
                    names[node] = seen[path]
                    continue
                seen[path] = node.name
            names[node] = node.name
            held = program.constants.get(path) if role == "constant" else None
            holds = aten.holds(held) if isinstance(held, torch.Tensor) else ""
            sources.append(Source(aten.value(node.name, tensor), role, path, holds))
        elif node.op == "get_attr":
            continue  # a program inside the program, that an operator runs
        elif node.op == "output":
            results = tuple(names[n] for n in node.all_input_nodes)
        elif node.target is operator.getitem:
            names[node] = f"{names[node.args[0]]}.{node.args[1]}"
        elif (op := aten.op_name(node.target)) not in aten.CHECKS:
            result = node.meta.get("val")
            before = node.args[0].meta["val"] if node.args and isinstance(node.args[0], torch.fx.Node) else None
            if aten.folds(op, before, result):
                names[node] = names[node.args[0]]
                continue
            names[node] = node.name
            if not (values := aten.made(node.name, result)):
                continue
            run = aten.constant_run(op, node.args, lambda each: _constant(each, roles, program))
            if run is not None:
                arguments = tuple(Ref(names[a]) if isinstance(a, torch.fx.Node) else a for a in run)
                nodes.append(Node("slice", arguments, values, _module(node)))
                continue
            arguments = aten.arguments(node.target, node.args, node.kwargs, lambda each: _name(each, names))
            nodes.append(Node(op, arguments, values, _module(node)))
    return finished(model, sources, nodes, results)


def _name(argument: object, names: dict[torch.fx.Node, str]) -> str | None:
    return names.get(argument) if isinstance(argument, torch.fx.Node) else None


def _constant(argument: object, roles: dict[str, tuple[Role, str]], program: ExportedProgram) -> torch.Tensor | None:
    """The numbers of a constant tensor, looking through the copies that export makes of it."""
    while isinstance(argument, torch.fx.Node) and argument.op == "call_function":
        if aten.op_name(argument.target) not in aten.SAME | {"clone"}:
            return None
        argument = argument.args[0]
    if not isinstance(argument, torch.fx.Node) or roles.get(argument.name, ("", ""))[0] != "constant":
        return None
    held = program.constants.get(roles[argument.name][1])
    return held if isinstance(held, torch.Tensor) and not held.is_meta else None


def _module(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def _roles(program: ExportedProgram) -> dict[str, tuple[Role, str]]:
    roles: dict[str, tuple[Role, str]] = {}
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.PARAMETER:
            roles[name] = ("parameter", spec.target or name)
        elif spec.kind == InputKind.BUFFER:
            # A persistent buffer is stored and can be sliced; another is recomputed by whoever loads the model.
            roles[name] = ("parameter" if spec.persistent else "buffer", spec.target or name)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            roles[name] = ("constant", spec.target or name)
        else:
            roles[name] = ("input", name)
    return roles
