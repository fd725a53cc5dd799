"""The model card of a result, as a person would publish it: what hubs read of it, what was done, how each engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from lorashear import report
from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE
from lorashear.engines.exporter import refusals
from lorashear.engines.llama import Llama
from lorashear.errors import LorashearError
from lorashear.plans import Plan
from lorashear.recipes import record
from lorashear.recipes.words import COMPILE, VERB

INHERITED = ("license", "license_name", "license_link", "language")
"""What a card's front matter says of a model that is true of what is made from it."""
IN_PYTHON = """```python
{imports}

model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
```"""
WITH_ADAPTER = 'model = PeftModel.from_pretrained(model, "{name}/adapter")\n```'
RECIPE = """`lorashear {verb} --recipe {file} --out DIR` repeats {what}. That file says, beside what is as by default:

```yaml
{content}```"""
EXPORTED = {
    "gguf": ("llama.cpp", "lorashear export {name} --to gguf --out {name}.gguf && llama-cli -m {name}.gguf"),
    "onnx": ("ONNX Runtime and onnxruntime-genai", "lorashear export {name} --to onnx --out {name}-onnx"),
    "openvino": ("OpenVINO", "lorashear export {name} --to openvino --out {name}-openvino"),
    "mlx": ("mlx-lm", "lorashear export {name} --to mlx --out {name}-mlx && mlx_lm.generate --model {name}-mlx"),
}
"""How a result gets to an engine, by format."""


def inherited(folder: Path) -> dict[str, Any]:
    """Licence and language, as the card of the dense model in a folder has them; nothing where it has none."""
    try:
        text = (folder / report.CARD_FILE).read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return {name: found[name] for name in INHERITED if name in found} if isinstance(found, dict) else {}


def card(content: Mapping[str, Any], plan: Plan, folder: Path) -> str:
    """The card of the result in a folder.

    Args:
        content: its report.
    """
    digest = sha256((folder / "lorashear" / "plan.json").read_bytes()).hexdigest()
    return (
        f"---\n{_front(content)}---\n{report.card(content, plan.route)}\n{_recipes(folder)}"
        f"## Use it\n\n{_uses(plan, folder)}\n\n"
        f"`lorashear/plan.json` has the SHA-256 `{digest}`.\n"
    )


def _recipes(folder: Path) -> str:
    """What makes it again, step by step; nothing where no recipe lies there."""
    steps = record.steps(folder)
    said: list[str] = []
    for number, path in enumerate(steps, 1):
        text = record.essential(path.read_text(encoding="utf-8"))
        verb = (yaml.safe_load(text) or {}).get(VERB, COMPILE)
        what = "the run" if len(steps) == 1 else f"step {number} of {len(steps)}"
        said.append(RECIPE.format(verb=verb, file=path.relative_to(folder), what=what, content=text))
    return "## Recipe\n\n" + "\n\n".join(said) + "\n\n" if said else ""


def _front(content: Mapping[str, Any]) -> str:
    base = {"base_model": content["model"]} if "/" in content["model"] else {}  # a local folder is nobody else's
    datasets = [text.rpartition("=")[2].partition(":")[0] for text in content.get("text") or () if "/" in text]
    found = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **base,
        **(content.get("inherited") or {}),
        **({"datasets": list(dict.fromkeys(datasets))} if datasets else {}),
        "tags": ["lorashear", "pruned"],
    }
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _uses(plan: Plan, folder: Path) -> str:
    """A snippet for each engine that can load it, with the folder's name for what it is called by then."""
    name = "FOLDER"
    own_code = plan.route == "generated"
    beside = (folder / BESIDE).is_dir()
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    python = IN_PYTHON.format(
        name=name,
        trust=", trust_remote_code=True" if own_code else "",
        imports=f"from peft import PeftModel\n{imports}" if beside else imports,
    )
    if not any(folder.glob("tokenizer*")):
        python = "\n".join(line for line in python.splitlines() if not line.startswith("tokenizer = "))
        python = python.replace(", AutoTokenizer", "")
    if beside:
        python = python.removesuffix("```") + WITH_ADAPTER.format(name=name)
    lines: list[str] = []
    if _is_llama(folder):
        lora = f" --enable-lora --lora-modules adapter={name}/adapter" if beside else ""
        code = " --trust-remote-code --model-impl transformers" if own_code else ""
        lines.append(f"vllm serve {name}{code}{lora}  # vLLM")
    held = refusals(folder)
    lines += [f"{said.format(name=name)}  # {engine}" for to, (engine, said) in EXPORTED.items() if held[to] is None]
    shell = "\n".join(lines)
    return f"{python}\n\n```\n{shell}\n```" if shell else python


def _is_llama(folder: Path) -> bool:
    try:
        Llama.of(Checkpoint.open(folder))
    except LorashearError:
        return False
    return True
