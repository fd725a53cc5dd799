"""What all tests share. The environment is set before anything imports torch or transformers."""

# ruff: noqa: E402

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the suite was started in the background
if IN_WORKER:  # before torch makes its thread pool: two workers on two cores, one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
WORDS = [f"w{i}" for i in range(94)]
LAYER = "model.layers.{}.{}"
REMOVED = {
    "uniform": {"self_attn.head": ([0], [2]), "mlp.ffn": ([1, 7], [3, 4])},
    "hidden": {"self_attn.head": ([0], [2]), "mlp.ffn": ([1, 7], [3, 4])},
    "layers": {"self_attn.head": ([0], [2, 3]), "self_attn.query": ([], [0, 3]), "mlp.ffn": ([1, 7], [3, 4, 8, 30])},
}
os.environ["LORASHEAR_CACHE"] = mkdtemp(prefix="lorashear-cache-")
logging.disable_progress_bar()
torch.set_num_threads(1 if IN_WORKER else 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the expected texts")


def pytest_collection_finish() -> None:
    """What was imported lives to the end: the garbage collector need not go through it time and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits, for seconds where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``../shared/data``: small public checkpoints, text and tables to check against. Not everyone has it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return folder


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The trained model that comes with the repository."""
    return ROOT / "examples" / "stdlib-llama-2.8m"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random grouped-query LLaMA with a word tokenizer."""
    path = tmp_path_factory.mktemp("source") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.3)
    model.bfloat16().save_pretrained(path)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rows = [" ".join(WORDS[(i * j + j * j) % 94] for j in range(200)) for i in range(40)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is left of `folder`: with equal widths, with fewer channels too, and with widths of its own in each layer."""
    import lorashear

    made: dict[str, Path] = {}
    for name, by_kind in REMOVED.items():
        removed = {LAYER.format(at, kind): some for kind, layers in by_kind.items() for at, some in enumerate(layers)}
        if name == "hidden":
            removed["model.hidden"] = [4, 9]
        made[name] = tmp_path_factory.mktemp("results") / name
        lorashear.apply(lorashear.plan(folder, removed), folder, made[name])
    return made
