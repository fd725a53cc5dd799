"""What a run did, for machines (report.json) and for people (the model card)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorashear_ir.groups import Groups

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [lorashear, pruned]
---
# {name}, {share:.1%} smaller

Structured pruning of `{name}` by [LoRAShear](https://arxiv.org/abs/2310.18356): {before:,} → {after:,} parameters.

{table}

{loading}

Widths left: {widths}. Criterion: {criterion}{compensation}. No training followed. `lorashear/plan.json` holds the kept
indices of every tensor, `lorashear/report.json` the figures; `lorashear verify MODEL .` checks one against the other.
"""
LOADING = {
    "own": "Loads with plain `AutoModelForCausalLM.from_pretrained`.",
    "mistral": "Loads with plain `AutoModelForCausalLM.from_pretrained`. It is stored as `mistral`, whose tensors and "
    "arithmetic are the same, because `LlamaConfig` refuses a head count that does not divide the hidden size.",
    "per-layer": "Layers have widths of their own: loads with `lorashear.load`, or with "
    "`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` from the modelling file in this folder, and its "
    "tokenizer with `AutoTokenizer.from_pretrained(..., trust_remote_code=True)`.",
}


def layer_widths(groups: Groups, removed: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """For each prunable group: its width before and after (for query groups: queries for each KV head)."""
    left = groups.widths(removed)
    return {
        name: {"before": group.axis.size, "after": left.get(name, group.axis.size)}
        for name, group in groups.items()
        if group.prunable
    }


def card(report: Mapping[str, Any], route: str) -> str:
    """The model card of a result."""
    table = "| | dense | pruned |\n|---|---|---|\n"
    table += f"| parameters | {report['parameters']['before']:,} | {report['parameters']['after']:,} |\n"
    table += f"| bytes of tensors | {report['bytes']['before']:,} | {report['bytes']['after']:,} |\n"
    if report.get("perplexity"):
        p = report["perplexity"]
        table += f"| perplexity ({p['data']}) | {p['before']:.3f} | {p['after']:.3f} |\n"
    kinds: dict[str, set[str]] = {}
    for name, width in report["widths"].items():
        kinds.setdefault(name.rsplit(".", 1)[-1], set()).add(f"{width['before']} → {width['after']}")
    widths = "; ".join(f"{kind} {', '.join(sorted(found))}" for kind, found in kinds.items() if len(found) < 4)
    return CARD.format(
        name=report["model"],
        share=report["ratio"]["reached"],
        before=report["parameters"]["before"],
        after=report["parameters"]["after"],
        table=table.strip(),
        loading=LOADING[route],
        widths=widths or "per layer, see the report",
        criterion=report["criterion"],
        compensation=", compensated by least squares" if report["compensated"] else "",
    )


def table(groups: Groups) -> str:
    """The groups as lines: name, kind, structures, weights a structure, prunable or why not."""
    rows = [("group", "kind", "structures", "weights each", "prunable")]
    rows += [
        (g.name, g.kind, str(g.size), str(g.parameters), "yes" if g.prunable else g.reason) for g in groups.values()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        f"{r[0]:{widths[0]}}  {r[1]:{widths[1]}}  {r[2]:>{widths[2]}}  {r[3]:>{widths[3]}}  {r[4]}" for r in rows
    )
