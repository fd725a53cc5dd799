"""Pruned, then quantised: sizes and perplexities in llama.cpp, of the model before pruning and after, in f16 and in K-quants.

    python tools/quantise_after.py [--model FOLDER] [--ratio 0.3] [--type Q4_K_M] [--text FILE] [--keep FOLDER]

llama.cpp quantises and computes every row, on the same windows of held-out text, one after the other, with bos before each
text where the tokenizer adds it. `make test-llama-cpp` builds llama.cpp. Without --text, the text is that of the shipped model.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import lorashear  # noqa: E402
from lorashear.errors import LorashearError  # noqa: E402
from lorashear.text.data import read_texts  # noqa: E402
from stdlib_text import write  # noqa: E402


def main() -> None:
    asked = _arguments()
    llama_cpp = _llama_cpp()
    with tempfile.TemporaryDirectory(prefix="lorashear-") as scratch:
        out = Path(asked.keep or scratch)
        out.mkdir(parents=True, exist_ok=True)
        text = {"train": None, "test": asked.text} if asked.text else write(out / "text")
        lorashear.compile(
            asked.model, asked.ratio, out / "pruned", text=text["train"], one_shot=True, per_layer=asked.per_layer,
            target="llama.cpp", overwrite=True,
        )  # fmt: skip
        texts = list(read_texts([text["test"]]))
        print(f"{'':20} {'bytes':>12} {'perplexity':>11}")
        for name, folder in (("dense", Path(asked.model)), (f"{asked.ratio:.0%} pruned", out / "pruned")):
            whole, small = (out / f"{folder.name}-{kind}.gguf" for kind in ("f16", asked.type))
            lorashear.export(folder, "gguf", whole, dtype="f16", overwrite=True)
            _quantise(llama_cpp, whole, small, asked.type)
            for kind, file in (("f16", whole), (asked.type, small)):
                found = _perplexity(llama_cpp, file, texts, asked.context, asked.windows)
                print(f"{name + ', ' + kind:20} {file.stat().st_size:12,} {found:11.3f}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ROOT / "examples" / "stdlib-llama-2.8m", type=Path)
    parser.add_argument("--ratio", default=0.3, type=float)
    parser.add_argument("--per-layer", action="store_true")
    parser.add_argument("--type", default="Q4_K_M", help="of llama.cpp, as Q4_K_M, Q5_K_M, Q8_0")
    parser.add_argument("--text", type=Path, help="held out; pruning then measures on text that the model itself tells")
    parser.add_argument("--context", default=256, type=int)
    parser.add_argument("--windows", default=130, type=int)
    parser.add_argument("--keep", type=Path, help="where the files go; by default they are removed")
    return parser.parse_args()


def _llama_cpp() -> Any:
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LorashearError("llama.cpp is not installed: pip install llama-cpp-python builds it") from error
    return llama_cpp


def _quantise(llama_cpp: Any, whole: Path, small: Path, kind: str) -> None:
    """As the program llama-quantize does."""
    number = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if number is None:
        raise LorashearError(f"llama.cpp has no type {kind}; name one as Q4_K_M, Q5_K_M or Q8_0")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = number
    if llama_cpp.llama_model_quantize(str(whole).encode(), str(small).encode(), ctypes.byref(settings)):
        raise LorashearError(f"llama.cpp did not quantise '{whole}' to {kind}; what it said is above this line")


def _perplexity(llama_cpp: Any, file: Path, texts: Iterable[str], context: int, count: int) -> float:
    """Of every token but the first of each window."""
    model = llama_cpp.Llama(str(file), n_ctx=context, n_batch=context, logits_all=True, verbose=False)
    ids = [token for text in texts for token in model.tokenize(text.encode(), add_bos=True)]
    lost = scored = 0.0
    for at in range(0, min(len(ids) // context, count) * context, context):
        window = ids[at : at + context]
        model.reset()
        model.eval(window)
        logits = np.asarray(model.scores[: context - 1], np.float64)
        logits -= logits.max(1, keepdims=True)
        told = logits[np.arange(context - 1), window[1:]]
        lost += float((np.log(np.exp(logits).sum(1)) - told).sum())
        scored += context - 1
    model.close()
    if not scored:
        raise LorashearError(
            f"the text has {len(ids)} tokens, and a window has {context}: give more text, or --context"
        )
    return math.exp(lost / scored)


if __name__ == "__main__":
    main()
