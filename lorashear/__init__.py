"""LoRAShear: structured pruning of language models as a graph compiler.

result = lorashear.compile("folder", ratio=0.2, out="smaller", text=["text.jsonl"], one_shot=True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lorashear.emission import registering
from lorashear.errors import LorashearError

if TYPE_CHECKING:
    import lorashear_ir as ir
    import lorashear_passes as passes
    from lorashear.applying import apply
    from lorashear.compiler import CompileResult, compile
    from lorashear.engines.exporter import export
    from lorashear.evaluation.evaluator import Evaluation, evaluate
    from lorashear.loading import load
    from lorashear.models import groups, trace
    from lorashear.plans import Plan, plan
    from lorashear.pruning import prune
    from lorashear.recoverer import recover
    from lorashear.viewer.writing import view
    from lorashear_ir.groups import Group, Groups
    from lorashear_ir.text import parse

__version__ = "0.1.0"

# Where each name lives. They are imported on first use, so that `lorashear apply` needs no torch.
_HOMES = {
    "CompileResult": "lorashear.compiler",
    "Evaluation": "lorashear.evaluation.evaluator",
    "Group": "lorashear_ir.groups",
    "Groups": "lorashear_ir.groups",
    "Plan": "lorashear.plans",
    "apply": "lorashear.applying",
    "compile": "lorashear.compiler",
    "evaluate": "lorashear.evaluation.evaluator",
    "export": "lorashear.engines.exporter",
    "groups": "lorashear.models",
    "load": "lorashear.loading",
    "parse": "lorashear_ir.text",
    "plan": "lorashear.plans",
    "prune": "lorashear.pruning",
    "recover": "lorashear.recoverer",
    "trace": "lorashear.models",
    "view": "lorashear.viewer.writing",
}
_PACKAGES = {"ir": "lorashear_ir", "passes": "lorashear_passes"}

__all__ = [
    "CompileResult",
    "Evaluation",
    "Group",
    "Groups",
    "LorashearError",
    "Plan",
    "apply",
    "compile",
    "evaluate",
    "export",
    "groups",
    "ir",
    "load",
    "parse",
    "passes",
    "plan",
    "prune",
    "recover",
    "trace",
    "view",
]


registering.register()


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(_PACKAGES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"lorashear has no {name}")


def __dir__() -> list[str]:
    return sorted(__all__)
