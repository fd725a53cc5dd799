"""The Python standard library's own source, as train, validation and test text.

    python examples/stdlib_text.py FOLDER        writes train.jsonl, valid.jsonl and test.jsonl

The text lies on every machine that has Python, so no text is shipped with the repository. Tests and idlelib are
left out. A module goes to a split by the hash of its name, so the splits agree between Python versions.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
import tokenize
from pathlib import Path

SPLITS = ("train", "valid", "test")
LEFT_OUT = {"site-packages", "dist-packages", "idlelib", "test", "tests", "idle_test", "__pycache__"}


def split_of(module: str) -> str:
    """Ninety modules of a hundred are for training, five for validation, five for the test."""
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 90 else "valid" if bucket < 95 else "test"


def modules() -> dict[str, str]:
    """Source text by dotted module name, in name order."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if LEFT_OUT.isdisjoint(parts):
            with tokenize.open(path) as file:  # honours a coding line
                text = file.read().strip()
            if text:
                found[".".join(parts)] = text
    return dict(sorted(found.items()))


def text_hash(texts: dict[str, str]) -> str:
    """SHA-256 over names and texts, so that a model card can say what was read."""
    digest = hashlib.sha256()
    for name, text in texts.items():
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()


def write(folder: Path) -> dict[str, Path]:
    """Write one .jsonl a split (fields ``module``, ``text``); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    texts = modules()
    for split, path in paths.items():
        with path.open("w", encoding="utf-8") as file:
            for name, text in texts.items():
                if split_of(name) == split:
                    file.write(json.dumps({"module": name, "text": text}) + "\n")
    return paths


if __name__ == "__main__":
    for split, path in write(Path(sys.argv[1])).items():
        print(f"{split:5} {path} {path.stat().st_size:>10,} bytes")
