"""The other side of the theorem: a captured program with structures at their neutral value.

1. What they own of the weights is zero.
2. Scores that are compared (softmax, sigmoid, top-k) are −∞ for what top-k shall not choose.
3. What was removed divides by 1, so that 0/0 counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorashear_ir.axes import Axis, axes_of, product
from lorashear_ir.graph import Node, Ref
from lorashear_ir.groups import Groups, Selection, TensorCut, block_axes
from lorashear_ir.ops.base import Dims, argument
from lorashear_ir.ops.index import chosen_axes
from lorashear_passes.aten import op_name
from lorashear_passes.neutral import SELECTS, routed
from lorashear_passes.program import Program, Removed, replace_tensor, runnable, tensors

DIVISIONS = {"div", "true_divide"}


def neutralised(program: Program, groups: Groups, removed: Removed) -> torch.fx.GraphModule:
    """The program with the structures at their neutral value. Raises SelectionError."""
    module = runnable(program)
    cuts = groups.cuts(removed)
    with torch.no_grad():
        for name, tensor in tensors(module):
            cut = cuts.get(groups.tied.get(name, name))
            if cut is not None:
                replace_tensor(module, name, zeroed(tensor.detach(), cut))
    dims: dict[str, Dims] = {value.name: value.dims or () for value in program.graph.values()}
    gone = frozenset(groups[name].axis for name, indices in removed.items() if indices)
    blocks = frozenset(axis for n in removed if groups[n].blocks > 1 for axis in block_axes(groups[n]))
    masks = Masks(dims, groups.selection(removed), gone, blocks)
    compared = Masks(dims, masks.selection, gone & {a for d in routed(program.graph, dims) for a in axes_of(d)}, blocks)
    nodes = {node.outputs[0].name.partition(".")[0]: node for node in program.graph.nodes if node.op in SELECTS}
    for fx_node in list(module.graph.nodes):
        if fx_node.op != "call_function":
            continue
        if fx_node.name in nodes:
            node = nodes[fx_node.name]
            (source,) = (a.name for a in node.arguments if isinstance(a, Ref))
            _fill(module, fx_node, 0, compared.of(source, _places(node, dims)), float("-inf"))
        elif op_name(fx_node.target).rstrip("_") in DIVISIONS:
            below = _named(fx_node.args[1], dims)
            if below is not None:
                _fill(module, fx_node, 1, masks.of(below, range(len(dims[below]))), 1.0)
    module.recompile()
    return module


def zeroed(tensor: torch.Tensor, cut: TensorCut) -> torch.Tensor:
    """A copy, zero at every index that a cut does not keep."""
    result = tensor.clone()
    for dim, kept in cut.keep.items():
        gone = sorted(set(range(tensor.shape[dim])) - set(kept))
        result.index_fill_(dim, torch.tensor(gone, device=tensor.device, dtype=torch.long), 0)
    return result


@dataclass(frozen=True)
class Masks:
    """Where in a value the removed indices of some axes are."""

    dims: Mapping[str, Dims]
    selection: Selection
    axes: frozenset[Axis]
    blocks: frozenset[Axis]

    def of(self, name: str, places: Any) -> list[torch.Tensor]:
        """For each dim that has one of the axes a mask that broadcasts to the value, true where an index was removed."""
        return [
            self._at(self.dims[name], place) for place in places if self.axes & set(axes_of(self.dims[name][place]))
        ]

    def _at(self, dims: Dims, place: int) -> torch.Tensor:
        # Which index of a block goes depends on the block, which may be a dim further left.
        first = min([place, *(i for i, d in enumerate(dims) if self.blocks & set(axes_of(d)))])
        together = dims[first : place + 1]
        mask = torch.ones(math.prod(d.size for d in together), dtype=torch.bool)
        mask[self.selection.kept(product(together))] = False
        return mask.reshape([*(d.size for d in together), *[1] * (len(dims) - 1 - place)])


def _fill(
    module: torch.fx.GraphModule, fx_node: torch.fx.Node, position: int, masks: list[torch.Tensor], value: float
) -> None:
    """Let an operator see ``value`` in place of what the masks hide of one of its arguments."""
    for number, mask in enumerate(masks):
        name = f"mask_{fx_node.name}_{number}"
        module.register_buffer(name, mask, persistent=False)
        arguments: list[Any] = list(fx_node.args)
        with module.graph.inserting_before(fx_node):
            held = module.graph.get_attr(name)
            filled = (arguments[position], held, value)
            arguments[position] = module.graph.call_function(torch.ops.aten.masked_fill.Scalar, filled)
        fx_node.args = tuple(arguments)


def _places(node: Node, dims: Mapping[str, Dims]) -> list[int]:
    """The dims along which an operator compares: all that it has for sigmoid, which compares each score with others later."""
    (source,) = (a.name for a in node.arguments if isinstance(a, Ref))
    if node.op.startswith("sigmoid"):
        return list(range(len(dims[source])))
    chosen = chosen_axes(node, dims)
    if chosen is not None:
        return [next(i for i, d in enumerate(dims[source]) if d is chosen)]
    along = argument(node, 1)
    assert isinstance(along, int)
    return [along % len(dims[source])]


def _named(value: Any, dims: Mapping[str, Dims]) -> str | None:
    """The name of a value in the graph, looking through the copies that the graph leaves out."""
    while isinstance(value, torch.fx.Node) and value.name not in dims and value.args:
        value = value.args[0]
    return value.name if isinstance(value, torch.fx.Node) and value.name in dims else None
