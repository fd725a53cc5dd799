"""Make a plan on one machine, read it as JSON, apply it on another that has no torch, and verify what came out.

    python examples/06_plan_elsewhere.py [FOLDER]        results go to FOLDER, by default ./out/elsewhere

A plan needs no weights: config and shapes of the checkpoint are enough. It is a small JSON file, which can be reviewed,
compared and sent; with the checkpoint it gives the same bytes everywhere. The other machine is played by a process in which
torch and transformers cannot be imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

import lorashear
from lorashear.verifying import verify

MODEL = Path(__file__).with_name("stdlib-llama-2.8m")
ELSEWHERE = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # an import of either is an error from here on
import lorashear
lorashear.apply(lorashear.Plan.load(sys.argv[1]), sys.argv[2], sys.argv[3], overwrite=True)
"""


def main() -> None:
    disable_progress_bar()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    path, folder = out / "plan.json", out / "smaller"

    groups = lorashear.groups(MODEL)  # every other MLP channel goes, and the last KV head with its queries
    removed: dict[str, list[int]] = {}
    for name, group in groups.items():
        if group.kind == "ffn":
            removed[name] = list(range(0, group.size, 2))
        elif group.kind == "head":
            removed[name] = [group.size - 1]
    lorashear.plan(MODEL, removed).save(path)

    plan = json.loads(path.read_text(encoding="utf-8"))
    print(f"{path}: {path.stat().st_size:,} bytes, {len(plan['tensors'])} tensors are cut")
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        print(f"  {name} keeps {plan['tensors'][name]['keep']}")
    fields = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    print("  config.json gets", {field: plan["config"][field] for field in fields})

    subprocess.run([sys.executable, "-c", ELSEWHERE, str(path), str(MODEL), str(folder)], check=True)
    for line in verify(MODEL, folder):
        print(line)
    print(f"{folder} is what the plan says, bit for bit")


if __name__ == "__main__":
    main()
