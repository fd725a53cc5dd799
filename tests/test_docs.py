"""What README.md and the documents show runs as it stands, from the root of the repository, and prints what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from blocks import ROOT, Block, Reader, blocks, commands, missing
from lorashear_ir.ops import TABLE

DOCUMENTS = 4
"""Of the text of the demo, so that training and calibration have enough, and are quick."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("text")
    Reader(folder).command(f"python {ROOT}/examples/stdlib_text.py text", 0, 0)
    split = {path.name: path.read_text(encoding="utf-8") for path in (folder / "text").iterdir()}
    return {**split, "train.jsonl": "".join(split["train.jsonl"].splitlines(keepends=True)[:DOCUMENTS])}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, text: dict[str, str]) -> Path:
    """What the pages take from the hub, as folders: models of the same classes that are small and random, and a little text."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    small: dict[str, Any] = {
        **{"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    }
    for name, model in {
        "meta-llama/Llama-3.2-3B": LlamaForCausalLM(LlamaConfig(**small)),
        "Qwen/Qwen3-4B": Qwen3ForCausalLM(Qwen3Config(**small)),
    }.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(ROOT / "examples/stdlib-llama-2.8m").save_pretrained(folder / name)
    for name, split in {"HuggingFaceFW/fineweb-edu": "train", "Salesforce/wikitext": "test"}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / f"{split}.jsonl").write_text(
            "".join(text["valid.jsonl"].splitlines(keepends=True)[:3]), encoding="utf-8"
        )
    return folder


@pytest.fixture
def place(tmp_path: Path, text: dict[str, str], hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like the repository to a relative path, after `make demo` wrote the text; in it lie, under their ids,
    the models of the hub. Where there is no GPU, the CPU stands in for it."""
    for name in ("examples", "docs", "tools", "tests", "plugins", "lorashear", "ir", "passes", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "out/demo/text").mkdir(parents=True)
    for name, content in text.items():
        (tmp_path / "out/demo/text" / name).write_text(content, encoding="utf-8")
    for name in ("meta-llama", "Qwen"):
        (tmp_path / name).symlink_to(hub / name)
    builder = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, *config: builder(str(hub / name)))
    monkeypatch.chdir(tmp_path)
    with patch.dict(TABLE):  # to which documents add
        yield tmp_path


def test_it_opens_with_a_sentence_the_two_commands_and_the_table() -> None:
    parts = README.split("\n\n")
    assert parts[0].endswith(".")
    assert "\n" not in parts[0]
    assert re.findall(r"^make (\w+)", parts[1], re.MULTILINE) == ["demo", "test"]
    assert README.index("| dense") < README.index("```python")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_block_runs(page: Path, place: Path) -> None:
    Reader(place).read(page.read_text(encoding="utf-8"))


def test_blocks_are_found() -> None:
    document = "a\n```sh\nx\n```\n- b\n\n  ```python\n  y\n  ```\n\n```\nz\n```\n"
    assert blocks(document) == [Block("sh", "x\n", 2), Block("python", "y\n", 7), Block("", "z\n", 11)]


def test_commands_are_told_apart() -> None:
    block = "# only a comment\na b \\\n  c  # said\nlorashear x  # exit code 2\necho a#b\n"
    assert commands(block) == [("a b c", 0), ("lorashear x", 2), ("echo a#b", 0)]


def test_what_is_shown_must_be_printed_but_for_figures() -> None:
    printed = "first  12 of 3\nsecond -4.5 %\nthird | 1e-5 |\n"
    assert missing("first 7 of 8\n...\nthird   | 3.1e-7   |\n", printed) is None
    assert missing("third | 1 |\nfirst 1 of 1\n", printed) == "first 1 of 1"
    assert missing("second 4 percent\n", printed) == "second 4 percent"
    assert missing("second …\n", printed) is None
    assert missing("seconds …\n", printed) == "seconds …"


def test_a_document_that_says_what_is_not_so_fails(place: Path) -> None:
    for wrong in (
        "```sh\nlorashear groups nothing-here\n```\n",
        "```sh\nlorashear recipe list  # exit code 2\n```\n",
        "```sh\nmake nothing-here\n```\n",
        "```sh\npip install 'lorashear[nothing]'\n```\n",
        "```python\nassert 1 == 2\n```\n",
        "```python\nprint('a')\n```\n\n```text\nb\n```\n",
        "```yaml\nper-layr: true\n```\n",
        "```fortran\n```\n",
    ):
        with pytest.raises(AssertionError):
            Reader(place).read(wrong)
