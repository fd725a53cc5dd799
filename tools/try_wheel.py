"""Build the wheel, look into it, and use it as a stranger would: in a fresh environment, from another folder.

python tools/try_wheel.py        (make wheel)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "stdlib-llama-2.8m"
PACKAGES = {"lorashear", "lorashear_ir", "lorashear_passes"}
NEEDED = (
    "lorashear/modeling_lorashear.py",
    "lorashear/py.typed",
    "lorashear/viewer/built/page.js",
    "lorashear/recipes/shipped/one-shot.yaml",
)
# Some pages of text that lie wherever Python does.
TEXT_MODULES = ("textwrap", "tokenize")

WRITE_TEXT = """
import importlib, inspect, json, pathlib, sys
texts = [inspect.getsource(importlib.import_module(name)) for name in sys.argv[2:]]
pathlib.Path(sys.argv[1]).write_text("".join(json.dumps({"text": text}) + "\\n" for text in texts))
"""
GENERATE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("import os\\n\\ndef ", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
assert "lorashear" not in sys.modules
print(type(model).__name__, f"{model.num_parameters():,} parameters", repr(tokenizer.decode(output[0])))
"""


class Failure(Exception):
    """What is wrong with the wheel, in a sentence."""


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """Standard output of a command that must succeed; nothing of this checkout or environment is on its path."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        shown = " ".join(str(part) for part in command if "\n" not in str(part))
        raise Failure(f"exit code {done.returncode} of: {shown}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def build(folder: Path) -> Path:
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def inspect_wheel(wheel: Path) -> int:
    """Refuse a wheel with anything but the three packages; returns how many files they hold."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    extra = {top for top in tops - PACKAGES if not top.endswith(".dist-info")}
    if extra or not tops >= PACKAGES:
        raise Failure(f"the wheel holds {sorted(tops)}; wanted are {sorted(PACKAGES)} and the dist-info")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise Failure(f"the wheel lacks {', '.join(missing)}")
    return sum(not name.partition("/")[0].endswith(".dist-info") for name in names)


def install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel and its dependencies as pinned; returns its folder of programs."""
    run([sys.executable, "-m", "venv", folder], cwd=folder.parent)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    constraints = ROOT / "constraints.txt"
    # Compiling all of torch to bytecode takes longer than unpacking it, and little of it is imported here.
    options = ["-q", "--no-compile", "-c", constraints]
    run([programs / "python", "-m", "pip", "install", *options, wheel], cwd=folder.parent)
    return programs


def try_out(programs: Path, folder: Path) -> None:
    """One compile on the shipped model by the installed program, and a look at the result without LoRAShear."""
    python, lorashear = programs / "python", programs / "lorashear"
    where = Path(run([python, "-c", "import lorashear; print(lorashear.__file__)"], cwd=folder))
    if ROOT in where.parents and programs.parent not in where.parents:
        raise Failure(f"import lorashear found {where}, not the installed wheel")
    print("import lorashear: the installed one")
    print("lorashear --help:", run([lorashear, "--help"], cwd=folder).splitlines()[0].strip())
    text, small = folder / "text.jsonl", folder / "small"
    run([python, "-c", WRITE_TEXT, text, *TEXT_MODULES], cwd=folder)
    options = ["--ratio", "0.2", "--text", text, "--one-shot", "--out", small]
    run([lorashear, "compile", MODEL, *options], cwd=folder)
    held = sorted(path.name for path in small.iterdir())
    print(f"lorashear compile --ratio 0.2 --one-shot wrote {', '.join(held)}")
    architecture = json.loads((small / "config.json").read_text())["architectures"][0]
    print(f"plain transformers loads it ({architecture}):", run([python, "-c", GENERATE, small], cwd=folder))


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lorashear-wheel-") as name:
        folder = Path(name)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        try:
            wheel = build(folder)
            print(f"built {wheel.name}: {inspect_wheel(wheel)} files in {', '.join(sorted(PACKAGES))}", flush=True)
            programs = install(wheel, folder / "fresh")
            print("installed in a fresh environment under constraints.txt", flush=True)
            try_out(programs, elsewhere)
        except Failure as failure:
            print(f"the wheel does not do: {failure}", file=sys.stderr)
            return 1
    print("the wheel works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
