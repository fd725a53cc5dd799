"""One call of an ATen operator as a node: its name, its arguments in schema order, and which calls fold away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from lorashear_ir.graph import Argument, Ref, Value

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
SAME = {"alias", "detach", "detach_", "contiguous", "lift_fresh", "lift_fresh_copy", "dropout"}  # in eval mode

FEW = 8
"""So many numbers of a constant are written out."""

Refer = Callable[[Any], str | None]
"""The name of a value if the argument is one."""


def value(name: str, tensor: Any) -> Value:
    if not isinstance(tensor, torch.Tensor):
        return Value(name, "number", ())  # read out of a tensor
    if not all(isinstance(size, int) for size in tensor.shape):
        raise ValueError(f"a shape depends on data: that of {name}")
    return Value(name, DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def holds(tensor: torch.Tensor) -> str:
    """What a constant holds, in whatever precision: its numbers, or a hash of many; empty where nothing is stored."""
    if tensor.is_meta:
        return ""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().double().flatten()
    if len(flat) <= FEW:
        return ", ".join(f"{number:.17g}" for number in flat.tolist())
    return f"sha256 {hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]}"


def made(name: str, result: Any) -> tuple[Value, ...]:
    """The values of a result: one tensor bears the node's name, each of several its number too."""
    if isinstance(result, list | tuple):
        return tuple(value(f"{name}.{i}", part) for i, part in enumerate(result) if isinstance(part, torch.Tensor))
    return () if result is None else (value(name, result),)


def op_name(target: Any) -> str:
    """An operator's name without namespace and overload; one that only shares PyTorch's name for another keeps its namespace."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return getattr(target, "__name__", str(target))
    if target.namespace != "aten" and hasattr(torch.ops.aten, packet.__name__):
        return f"{target.namespace}_{packet.__name__}"
    return packet.__name__


def folds(op: str, before: Any, after: Any) -> bool:
    """Whether the operator hands its first argument on as it is."""
    if op in SAME:
        return True
    if op not in ("to", "_to_copy") or not isinstance(before, torch.Tensor):
        return False
    return before.dtype == after.dtype and before.shape == after.shape


def arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], refer: Refer) -> tuple[Argument, ...]:
    """Positional and keyword arguments in the schema's order, trailing defaults left out."""
    found = [_argument(each, refer) for each in args]
    if kwargs:
        rest = _parameters(target)[len(args) :]
        last = max((i for i, (name, _) in enumerate(rest) if name in kwargs), default=-1)
        found += [_argument(kwargs.get(name, default), refer) for name, default in rest[: last + 1]]
    return tuple(found)


def constant_run(
    op: str, args: Sequence[Any], constant: Callable[[Any], torch.Tensor | None]
) -> tuple[Any, ...] | None:
    """Arguments of the ``slice`` that an ``index`` by a constant run of numbers, ``x[..., [-2, -1], :]``, is."""
    if op != "index":
        return None
    given = [(place, each) for place, each in enumerate(args[1]) if each is not None]
    numbers = constant(given[0][1]) if len(given) == 1 else None
    if numbers is None or numbers.dim() != 1 or numbers.dtype != torch.int64 or not 0 < len(numbers) < 4096:
        return None
    begin = int(numbers[0])
    if numbers.tolist() != list(range(begin, begin + len(numbers))) or (begin < 0 <= begin + len(numbers) - 1):
        return None
    end = begin + len(numbers)
    return (args[0], given[0][0], begin, end if end else 2**63 - 1, 1)


@cache
def _parameters(target: Any) -> tuple[tuple[str, Any], ...]:
    """Name and default of each argument in the schema."""
    schema = getattr(target, "_schema", None)
    parameters = schema.arguments if schema is not None else ()
    return tuple((each.name, each.default_value if each.has_default_value() else None) for each in parameters)


def _argument(given: Any, refer: Refer) -> Argument:
    if given is None or isinstance(given, bool | int | float | str):
        return given
    if (name := refer(given)) is not None:
        return Ref(name)
    if isinstance(given, list | tuple):
        return tuple(_argument(each, refer) for each in given)
    if isinstance(given, torch.device):
        return None  # where it runs is no part of what it computes
    return DTYPES.get(given, str(given)) if isinstance(given, torch.dtype) else str(given)
