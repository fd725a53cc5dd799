"""Capture: a torch module becomes a Graph, before any decomposition."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from lorashear_ir.graph import Graph
from lorashear_passes.exported import translate
from lorashear_passes.tracing import CannotRecord, quiet, untouched, whole_experts

try:
    from lorashear_passes.record import record
except ImportError:  # a torch whose private names have moved: torch.export gives the same graph, more slowly
    record = None

__all__ = ["CaptureError", "capture", "export", "exported", "translate"]

log = logging.getLogger(__name__)


class CaptureError(ValueError):
    """The model could not be traced; says which class, with which inputs, why, and in which module if that is known.

    ``reason`` is the why and where alone; ``partial`` is the graph of what ran before, where that is known.
    """

    reason: str = ""
    partial: Graph | None = None


def capture(model: torch.nn.Module, inputs: Mapping[str, Any], *, recorded: bool = False) -> Graph:
    """Trace ``model(**inputs)`` in eval mode; sizes are those of the inputs. The model is left as it was.

    One forward is recorded. What a recording cannot show goes through torch.export: slower, and the same graph. With
    ``recorded`` it does not: for a model that is like one which could be recorded.

    Raises:
        CaptureError: the model cannot be traced with these inputs.
    """
    name = type(model).__name__
    with untouched(model), whole_experts(model):
        for module in model.modules():
            module.training = False  # as eval() sets it, which some classes override to do more
        try:
            if record is None:
                raise CannotRecord("this torch cannot be recorded")
            with quiet():
                return record(model, inputs)
        except CannotRecord as refused:
            stopped = refused
        log.debug("%s goes through torch.export: %s", name, _first_line(stopped))
        try:
            if recorded:
                raise stopped
            with quiet():
                return export(model, inputs)
        except Exception as error:
            given = f"with inputs {', '.join(inputs)}" if inputs else "without inputs"
            reason = _reason(stopped, error)
            failed = CaptureError(f"{name} cannot be traced {given}: {reason}")
            failed.reason, failed.partial = reason, stopped.partial
            raise failed from error


def export(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Graph:
    """The same graph by torch.export; for a model in eval mode."""
    return translate(_program(model, inputs), model)


def exported(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[torch.export.ExportedProgram, Graph]:
    """``model(**inputs)`` in eval mode as a program that can be run, and its graph. Raises CaptureError."""
    training = {module: module.training for module in model.modules()}
    try:
        with quiet(), whole_experts(model):
            program = _program(model.eval(), inputs)
            return program, translate(program, model)
    except Exception as error:
        name = type(model).__name__
        raise CaptureError(
            f"{name} cannot be exported with inputs {', '.join(inputs)}: {_first_line(error)}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _program(model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model, (), dict(inputs), strict=False)


def _reason(stopped: CannotRecord, error: Exception) -> str:
    """Why neither way works, and where."""
    cause = stopped.cause
    if isinstance(cause, NotImplementedError):  # the recording's own limit; what export said counts
        return _first_line(error)
    if isinstance(cause, DataDependentOutputException):
        reason = "its control flow depends on data: a number is read out of a tensor"
    elif isinstance(cause, DynamicOutputShapeException):
        reason = f"a shape depends on data: {cause.func}"
    else:
        reason = _first_line(cause if isinstance(cause, Exception) else stopped).rstrip(".")
    return reason + (f" in module {stopped.module}" if stopped.module else "")


def _first_line(error: Exception) -> str:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return said if " " in said else f"{type(error).__name__} {said}".rstrip()
