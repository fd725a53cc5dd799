"""Capture: a torch module becomes a Graph, by torch.export before any decomposition."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from lorashear_ir.graph import Argument, Graph, Node, Ref, Role, Source, Value
from lorashear_passes.dead import without_dead

DTYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
}
CHECKS = {"_assert_tensor_metadata", "sym_constrain_range_for_size", "_assert_scalar", "_assert_async"}
SAME = {"alias", "detach", "detach_", "contiguous", "clone", "lift_fresh_copy", "dropout"}  # in eval mode


class CaptureError(ValueError):
    """The model could not be traced; says which class and why."""


def capture(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Graph:
    """Trace ``model(**inputs)`` in eval mode; sizes are those of the inputs. The model is left as it was.

    Raises:
        CaptureError: torch.export cannot trace the model with these inputs.
    """
    return translate(export(model, inputs), model)


def export(model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.export.ExportedProgram:
    """``model(**inputs)`` in eval mode as an exported program. Raises CaptureError; leaves the model as it was."""
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), _quiet("torch._subclasses", "torch.export", "torch.fx", "torch._export"):
            return torch.export.export(model.eval(), (), dict(inputs), strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        name = type(model).__name__
        raise CaptureError(f"{name} cannot be traced with inputs {', '.join(inputs)}: {first}") from error
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """torch logs a traceback before it raises; the sentence that we raise says the same."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def translate(program: torch.export.ExportedProgram, model: torch.nn.Module) -> Graph:
    """An exported program as a Graph: arguments in schema order, no-ops and assertions folded away."""
    roles = _roles(program)
    first_names = _first_names(model)
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
            path = first_names.get(path, path)
            if path in seen:  # a tied parameter has one placeholder for each of its names
                names[node] = seen[path]
                continue
            names[node] = seen[path] = node.name
            sources.append(Source(_value(node.name, tensor), role, path))
        elif node.op == "output":
            results = tuple(names[n] for n in node.all_input_nodes)
        elif node.target is operator.getitem:
            names[node] = f"{names[node.args[0]]}.{node.args[1]}"
        elif (op := _op_name(node.target)) not in CHECKS:
            tensor = node.meta.get("val")
            if _folds(op, node):
                names[node] = names[node.args[0]]
                continue
            names[node] = node.name
            made = tensor if isinstance(tensor, list | tuple) else (tensor,)
            several = isinstance(tensor, list | tuple)
            values = [
                _value(f"{node.name}.{i}" if several else node.name, t) for i, t in enumerate(made) if t is not None
            ]
            nodes.append(Node(op, _arguments(node, names), tuple(values), _module(node)))
    tied = tuple((name, first) for name, first in first_names.items() if name != first)
    return without_dead(Graph(type(model).__name__, tuple(sources), tuple(nodes), results, tied=tied))


def _value(name: str, tensor: torch.Tensor | torch.SymInt | torch.SymFloat | int | float) -> Value:
    if not isinstance(tensor, torch.Tensor):
        return Value(name, "number", ())  # read out of a tensor
    return Value(name, DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(int(s) for s in tensor.shape))


def _op_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(target, "__name__", str(target))


def _folds(op: str, node: torch.fx.Node) -> bool:
    """Whether the node hands its input on as it is."""
    if op in SAME:
        return True
    if op not in ("to", "_to_copy") or not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    before, after = node.args[0].meta["val"], node.meta["val"]
    return before.dtype == after.dtype and before.shape == after.shape


def _arguments(node: torch.fx.Node, names: dict[torch.fx.Node, str]) -> tuple[Argument, ...]:
    """Positional and keyword arguments in the schema's order, trailing defaults left out."""
    schema = getattr(node.target, "_schema", None)
    arguments = [_argument(a, names) for a in node.args]
    if schema is not None:
        for parameter in schema.arguments[len(arguments) :]:
            value = node.kwargs.get(parameter.name, parameter.default_value if parameter.has_default_value() else None)
            arguments.append(_argument(value, names))
        while len(arguments) > len(node.args) and schema.arguments[len(arguments) - 1].name not in node.kwargs:
            arguments.pop()
    return tuple(arguments)


def _argument(value: Any, names: dict[torch.fx.Node, str]) -> Argument:
    if isinstance(value, torch.fx.Node):
        return Ref(names[value])
    if isinstance(value, list | tuple):
        return tuple(_argument(v, names) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return None  # where it ran is no part of what it computes
    return DTYPES.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


def _module(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def _roles(program: torch.export.ExportedProgram) -> dict[str, tuple[Role, str]]:
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


def _first_names(model: torch.nn.Module) -> dict[str, str]:
    """Every name of a parameter, and the first name of that same tensor (in the order of named_parameters)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
