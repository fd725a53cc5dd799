"""Composition: subgraphs that are one operator to a reader become one node, which `expand` takes apart again.

In this order, since an MLP may be made of LoRA linears. A graph with types keeps them; bodies of functions have none.
"""

from __future__ import annotations

from lorashear_ir.graph import Graph
from lorashear_passes.flow import Flow
from lorashear_passes.outline import outline
from lorashear_passes.patterns.attention import attentions
from lorashear_passes.patterns.experts import experts
from lorashear_passes.patterns.linear import gated_mlps, lora_linears, mlps
from lorashear_passes.patterns.norm import layer_norms, rms_norms
from lorashear_passes.patterns.rope import ropes

PATTERNS = {
    "lora_linear": lora_linears,
    "rms_norm": rms_norms,
    "layer_norm": layer_norms,
    "rope": ropes,
    "experts": experts,
    "attention": attentions,
    "gated_mlp": gated_mlps,
    "mlp": mlps,
}


def compose(graph: Graph) -> Graph:
    """The graph with every composed operator as a call of a function. What is no such operator stays as it is."""
    for kind, find in PATTERNS.items():
        flow = Flow(graph)
        graph = outline(flow, kind, find(flow))
    return graph
