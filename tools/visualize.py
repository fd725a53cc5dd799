"""The page of `lorashear view`, also for a model that only Python can make.

python tools/visualize.py MODEL --out graph.html [--plan PLAN] [--report REPORT ...] [--overwrite]

MODEL is a folder, a hub id, or FILE.py:NAME, where NAME is a function without arguments that returns a module, or a module and its
inputs (as `lorashear.trace` takes them): a PEFT model, a convolutional net.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import lorashear


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--report", type=Path, action="append", default=[])
    parser.add_argument("--overwrite", action="store_true")
    asked = parser.parse_args()
    try:
        model, inputs = made(asked.model)
        lorashear.view(model, asked.out, inputs, plan=asked.plan, reports=asked.report, overwrite=asked.overwrite)
    except lorashear.LorashearError as error:
        raise SystemExit(f"visualize: {error}") from None
    print(f"written to {asked.out}")


def made(model: str) -> tuple[Any, Any]:
    """A model and its inputs, None where it knows them itself."""
    file, _, name = model.rpartition(":")
    if not file.endswith(".py"):
        return model, None
    spec = importlib.util.spec_from_file_location("visualized", file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise SystemExit(f"visualize: there is no file {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise SystemExit(f"visualize: {file} has no function {name}")
    result = found()
    return result if isinstance(result, tuple) else (result, None)


if __name__ == "__main__":
    main()
