"""What a run did, for machines (report.json) and for people (the model card)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lorashear.learning import recovery_curves
from lorashear.learning.curves import PICTURE
from lorashear.learning.drawing import legible
from lorashear_ir.groups import Groups

CARD_FILE = "README.md"
CARD = """# {name}{smaller}

Structured pruning of `{name}`{revision} by [LoRAShear](https://arxiv.org/abs/2310.18356): {sizes} parameters.

{table}

{loading}

Widths left: {widths}. Criterion: {criterion}{compensation}.{data} {training} `lorashear/plan.json` holds the kept
indices of every tensor, `lorashear/report.json` the figures; `lorashear verify MODEL .` checks one against the other.
{curves}{recovery}"""
CURVES = """
![{what} at each of {steps:,} steps](lorashear/{picture})
"""
RECOVERY = """
## Recovery

{stages} The table has the loss of held-out pieces of each subset of the text, in nats a token. {compared}
A subset's last share is how much of the tokens drawn at the end came from it.

{table}

![{what} of each subset, and its share of what is drawn, over {steps:,} steps](lorashear/{picture})
"""
COMPARED = (
    "Degradation is how far it lies above that of the dense model, `{dense}`; the shares of what was drawn {followed}."
)
FOLLOWED = ("did not follow it", "followed it")  # those of a static mixture, those of a dynamic one
UNTRAINED = "No training followed."
LOADING = {
    "own": "Loads with plain `AutoModelForCausalLM.from_pretrained`.",
    "mistral": "Loads with plain `AutoModelForCausalLM.from_pretrained`. It is stored as `mistral`, whose tensors and "
    "arithmetic are the same, because `LlamaConfig` refuses a head count that does not divide the hidden size.",
    "generated": "Its widths are such that no config of its class says them: loads with `lorashear.load`, or with "
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
    """What the model card of a result says of what was done; `lorashear.card` has the rest."""
    trained, recovery = report["training"], report.get("recovery")
    parameters = report["parameters"]
    table = f"| | dense | pruned{' and trained' if trained or recovery else ''} |\n|---|---|---|\n"
    table += f"| parameters | {_count(parameters['before'])} | {parameters['after']:,} |\n"
    table += f"| bytes of tensors | {_count(report['bytes']['before'])} | {report['bytes']['after']:,} |\n"
    if report.get("perplexity"):
        p = report["perplexity"]
        untrained = f" ({p['pruned']:.3f} before training)" if "pruned" in p else ""
        dense = f"{p['before']:.3f}" if "before" in p else "–"
        table += f"| perplexity ({p['data']}) | {dense} | {p['after']:.3f}{untrained} |\n"
    kinds: dict[str, set[str]] = {}
    for name, width in report["widths"].items():
        kinds.setdefault(name.rsplit(".", 1)[-1], set()).add(f"{width['before']} → {width['after']}")
    widths = "; ".join(f"{kind} {', '.join(sorted(found))}" for kind, found in kinds.items() if len(found) < 4)
    revision, texts = report.get("revision"), report.get("text")
    return CARD.format(
        name=report["model"],
        revision=f" at `{revision}`" if revision else "",
        data=f" Text: {', '.join(f'`{text}`' for text in texts)}." if texts else "",
        smaller=f", {1 - parameters['after'] / parameters['before']:.1%} smaller"
        if parameters["before"]
        else ", pruned",
        sizes=f"{_count(parameters['before'])} → {parameters['after']:,}",
        table=table.strip(),
        loading=LOADING[route],
        widths=widths or "per layer, see the report",
        criterion=report["criterion"],
        compensation=", compensated by least squares" if report["compensated"] else "",
        training=_training(trained, report["settings"]) if trained else UNTRAINED,
        curves=_curves(trained) if trained else "",
        recovery=_recovery(recovery) if recovery else "",
    )


def _count(number: int | None) -> str:
    """Of a dense model, which nobody has counted where a plan was applied by itself."""
    return "–" if number is None else f"{number:,}"


def _training(trained: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """How a model was trained, in a sentence or two."""
    beside = settings["adapter"] == "keep"
    where = "which lies in `adapter`: load it with `peft`" if beside else "which is merged into the weights"
    distilled = (
        f", {trained['distill']:.0%} of the loss the distance from the dense model" if trained["distill"] else ""
    )
    if settings.get("full"):
        return f"Then all weights were trained on {trained['tokens']:,} tokens (learning rate {trained['rate']:.1e}{distilled})."
    return (
        f"Then a LoRA adapter of rank {trained['rank']} was trained on {trained['tokens']:,} tokens (learning rate "
        f"{trained['rate']:.1e}{distilled}), {where}."
    )


def _curves(trained: Mapping[str, Any]) -> str:
    """The picture of how a model was trained, for those too who cannot see it."""
    what = "Total loss, loss of the text alone and learning rate"
    if trained.get("lhspg"):
        what = "Total loss, loss of the text alone, learning rate and structures removed"
    return CURVES.format(what=what, steps=trained["steps"], picture=PICTURE)


def _recovery(content: Mapping[str, Any]) -> str:
    """How a model recovered, by subsets of the text."""
    head, *rows = _recovery_rows(content)
    lines = [head, ["---", *("---:" for _ in head[1:])], *([_escaped(row[0]), *row[1:]] for row in rows)]
    alone = content["dense"] is None
    return RECOVERY.format(
        stages=recovery_stages(content),
        compared=_sentence(content["why"])
        if alone
        else COMPARED.format(dense=content["dense"], followed=FOLLOWED[content.get("mixture") != "static"]),
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        what="Loss" if alone else "Degradation",
        steps=sum(stage["steps"] for stage in content["stages"]),
        picture=recovery_curves.PICTURE,
    )


def recovery_stages(content: Mapping[str, Any]) -> str:
    """The stages of a recovery in a sentence: steps, tokens, and what stopped one early."""
    said = [
        f"{stage['name']}, {stage['steps']:,} steps on {stage['tokens']:,} tokens"
        + (f" (stopped early: {stage['stopped']})" if stage["stopped"] else "")
        for stage in content["stages"]
    ]
    return f"Trained in {len(said)} stage{'s' if len(said) > 1 else ''}: {'; then '.join(said)}."


def recovery_table(content: Mapping[str, Any]) -> str:
    """What a report calls ``recovery`` as lines, one a subset: losses and degradation in nats a token, and shares."""
    rows = _recovery_rows(content)
    wide = max(len(row[-1]) for row in rows)
    return columns([[*row[:-1], row[-1].rjust(wide)] for row in rows], "<" + ">" * (len(rows[0]) - 2))


def _recovery_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each subset; what is not known, or was not drawn in a stage, is a dash."""
    stages, dense = recovery_curves.in_turn(content["stages"]), content["dense_loss"] or {}
    places = [f" in {stage['name']}" if len(stages) > 1 else "" for stage in content["stages"]]
    alone = content["dense"] is None
    nats = ["before", "after"] if alone else ["dense", "before", "after", "degradation"]
    rows = [["subset", *nats, *(f"last share{place}" for place in places)]]
    for subset in content["subsets"]:
        loss = [value for stage in stages for _, value in stage.points("loss", subset)]
        nats = [_nats(loss[:1]), _nats(loss[-1:])]
        if not alone:
            lost = [value for stage in stages for _, value in stage.points("degradation", subset)]
            nats = [_nats([dense[subset]] if subset in dense else []), *nats, f"{_nats(lost[:1])} → {_nats(lost[-1:])}"]
        shares = [stage.stairs(subset)[-1:] for stage in stages]
        rows.append([legible(subset), *nats, *(f"{last[0][1]:.1%}" if last else "–" for last in shares)])
    return rows


def _nats(found: Sequence[float]) -> str:
    return f"{found[0]:.3f}" if found else "–"


def _sentence(said: str) -> str:
    return f"{said[:1].upper()}{said[1:].rstrip('.')}."


def _escaped(name: str) -> str:
    """A name in Markdown, where marks within it are to be letters only."""
    return re.sub(r"[\\`*\[\]<>|~&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", legible(name))


def table(groups: Groups) -> str:
    """The groups as lines: name, kind, structures, weights a structure, prunable or why not."""
    rows = [("group", "kind", "structures", "weights each", "prunable")]
    rows += [
        (g.name, g.kind, str(g.size), str(g.parameters), "yes" if g.prunable else g.reason) for g in groups.values()
    ]
    return columns(rows, "<<>>")


def operator_table(groups: Groups) -> str:
    """The operators that meet weights as lines: module, operator, the types of its weights, all groups it stands in."""
    rows = [("module", "operator", "weights", "groups")]
    for each in groups.operators():
        types = (f"{name.removeprefix(each.module + '.')} {type_}" for name, type_ in each.weights.items())
        rows.append((each.module, each.op, ", ".join(types), ", ".join(each.groups)))
    return columns(rows, "<<<")


def columns(rows: Sequence[Sequence[str]], sides: str) -> str:
    """Rows as lines; every column but the last as wide as its widest cell, text at the left ("<") or right (">")."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(sides))]
    return "\n".join(
        "  ".join([*(f"{c:{side}{width}}" for c, side, width in zip(row, sides, widths, strict=False)), row[-1]])
        for row in rows
    )


def group_rows(groups: Groups) -> list[dict[str, Any]]:
    """The groups for machines; ``operators`` are the modules whose operators meet weights and stand in the group."""
    modules: dict[str, dict[str, None]] = {name: {} for name in groups}
    for each in groups.operators():
        for name in each.groups:
            modules[name][each.module] = None
    return [
        {
            "name": g.name,
            "kind": g.kind,
            "size": g.size,
            "blocks": g.blocks,
            "parameters": g.parameters,
            "prunable": g.prunable,
            "reason": g.reason,
            "slots": [list(slot) for slot in g.slots],
            "operators": list(modules[g.name]),
        }
        for g in groups.values()
    ]


def operator_rows(groups: Groups) -> list[dict[str, Any]]:
    """The operators that meet weights, for machines: the type of each weight and all groups it stands in."""
    return [asdict(each) for each in groups.operators()]
