"""Every family of language model as a folder that loads: `make round-trips` prints the table in docs/round-trips.md.

A tiny model of a family is saved, pruned to another number of structures in every layer, written by `lorashear.apply`, and
used in a process that has transformers alone (`load_alone.py`): the logits must be those of the model pruned in memory,
which `families.py` holds against the zeroed one, and greedy decoding and saving again must work.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import lorashear
from lorashear.disk.checkpoint import Checkpoint
from lorashear.models import build_twin, read_config
from lorashear.planning import lower
from lorashear.pruning import pruned as in_memory
from lorashear_ir.groups import Groups
from tools.cases import NAMED, TOKENS, Case, case_of, causal
from tools.families import TOLERANCE
from tools.load_alone import logits
from tools.rows import TooLong, limited, printed, sentence

LOADER = Path(__file__).with_name("load_alone.py")
APART: dict[str, dict[str, int]] = {"gptj": {"rotary_dim": 2}}
"""Numbers that must not equal a width which the class reads from nowhere: they would be taken for it."""

LOADING = 300  # seconds for a folder
LEAST = 1e-3  # of the largest logit, by which a plan must move the logits


@dataclass(frozen=True)
class Loaded:
    """What a folder did with transformers alone; ``greedy`` and ``again`` say what was wrong with that step."""

    name: str
    difference: float  # from the logits wanted, relative to the largest
    greedy: str
    again: str


def apart(name: str) -> Case:
    """The language model of that name, with numbers that are `APART`."""
    case = case_of(name)
    return causal(name, **APART.get(name, {})) if name in APART or case.inputs else case


def saved(case: Case, folder: Path) -> Path:
    """A family's model with random weights, as a folder."""
    torch.manual_seed(0)
    model = case.make().float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def chosen(groups: Groups) -> dict[str, list[int]]:
    """Structures of every prunable group: as many of a kind within a layer, another number in each layer."""
    rng = random.Random(1)
    removed: dict[str, list[int]] = {}
    for name, each in groups.items():
        layer = re.search(r"\.(\d+)\.", name)
        most = each.axis.size - max(each.least, 1)
        if each.prunable and most > 0:
            take = random.Random(str((each.kind, each.axis.size, layer and layer[1]))).randint(0, most)
            removed[name] = [
                b * each.axis.size + i for b in range(each.blocks) for i in rng.sample(range(each.axis.size), take)
            ]
    return {name: indices for name, indices in removed.items() if indices}


def pruned(case: Case, work: Path) -> Path:
    """The folder of a pruned family, with the logits of the model pruned in memory beside it.

    Raises LorashearError as `lorashear.apply` does, and AssertionError where the plan removes nothing that matters.
    """
    source = saved(case, work / "source")
    twin = build_twin(read_config(source))
    groups = lorashear.groups(twin)  # once for the plan and for the model in memory
    removed = chosen(groups)
    assert removed, "nothing is prunable"
    lorashear.apply(lower(Checkpoint.open(source), twin, groups, removed, {}), source, work / "out")
    dense = AutoModelForCausalLM.from_pretrained(source).eval()
    small = in_memory(dense, dense.config, groups, removed)
    before, after = (logits(model, TOKENS) for model in (dense, small))
    assert (before - after).abs().max() > LEAST * before.abs().max(), "the plan changes nothing"
    save_file({"logits": after.contiguous()}, work / "out" / "want.safetensors")
    return work / "out"


def loaded_alone(folders: Sequence[Path]) -> list[Loaded]:
    """What the folders do in a process of transformers alone. Raises RuntimeError where one cannot be loaded."""
    command = [sys.executable, LOADER, json.dumps(TOKENS.tolist()), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOADING * len(folders))
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return [Loaded(**json.loads(line)) for line in done.stdout.splitlines()]


def row(name: str) -> str:
    """One line of the table."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        try:
            with limited():
                [found] = loaded_alone([pruned(apart(name), folder)])
        except (Exception, TooLong) as error:  # whatever a family fails with is what the table is for
            dense = _dense(folder) if (folder / "source").exists() else None
            return f"| {name} | | | | | {_outcome(sentence(error), dense if isinstance(dense, str) else '')} |"
        dense = _dense(folder) if found.greedy or found.again else found
    verdict = "equal" if found.difference < TOLERANCE else "wrong"
    steps = [found.greedy, found.again]
    theirs = [dense.greedy, dense.again] if isinstance(dense, Loaded) else [dense] * 2
    shown = " | ".join(map(_outcome, steps, theirs))
    seconds = time.process_time() - start
    return f"| {name} | {found.name} | {seconds:.1f} | {shown} | {found.difference:.0e}, {verdict} |"


def _dense(folder: Path) -> Loaded | str:
    """What the unpruned model does, or why it does nothing."""
    try:
        return loaded_alone([folder / "source"])[0]
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return sentence(error)


def _outcome(wrong: str, dense: str) -> str:
    """Of a step; what the dense model fails in itself is no fault of the result."""
    if not wrong:
        return "equal"
    return f"as unpruned: {wrong}" if dense else wrong


if __name__ == "__main__":
    printed(
        "| family | class | CPU seconds | greedy, with and without a cache | saved again | logits, or why not |\n"
        "|---|---|---:|---|---|---|",
        row,
        NAMED,
        __doc__,
    )
