"""The most memory that a run takes: on a CPU measured in a process of its own, on a GPU as its allocator counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lorashear.errors import LorashearError
from lorashear.evaluation import memory
from lorashear.evaluation.limits import weight_bytes
from lorashear.evaluation.memory import peak_bytes

LIBRARIES = 30 * 2**20
"""At most, of code that a first run touches, and of what it computes with in these shapes."""
RUN = {"batch": 1, "prompt": 16, "tokens": 2}


def saved(folder: Path, middle: int) -> int:
    """Writes a model of a few wide layers in float32 and gives the bytes of its weights."""
    shape = {"vocab_size": 500, "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**shape, intermediate_size=middle, max_position_embeddings=64, tie_word_embeddings=True)
    with torch.no_grad():
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
    return weight_bytes(model)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("dense")
    return folder, saved(folder, 20_000)


@pytest.mark.slow
class TestOnACpu:
    def test_weights_and_little_else(self, dense: tuple[Path, int], tmp_path: Path) -> None:
        """The larger model has so many bytes more, whatever the libraries take."""
        folder, weights = dense
        fewer = saved(tmp_path, 5_000)
        assert weights - fewer > 90e6
        most = peak_bytes(folder, **RUN)
        least = peak_bytes(tmp_path, **RUN)
        assert most is not None and least is not None
        assert weights <= most < weights + LIBRARIES
        assert fewer <= least < fewer + LIBRARIES
        assert most - least == pytest.approx(weights - fewer, rel=0.1)

    def test_weights_as_they_are_computed_with(self, dense: tuple[Path, int]) -> None:
        """And from a script that guards nothing, in a process that knows the package by its path alone."""
        folder, weights = dense
        script = (
            f"import sys; sys.path[:0] = {sys.path!r}\n"
            "from lorashear.evaluation.memory import peak_bytes\n"
            f"print(peak_bytes({str(folder)!r}, batch=2, prompt=16, tokens=2, dtype='bfloat16'))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert weights / 2 <= int(done.stdout) < weights / 2 + LIBRARIES

    def test_too_few_positions(self, dense: tuple[Path, int]) -> None:
        with pytest.raises(LorashearError, match="has 64 positions, and a prompt of 60 and 5 more tokens need 65"):
            peak_bytes(dense[0], prompt=60, tokens=5)


class TestWhatCannotBeHad:
    def test_a_model_on_a_cpu(self) -> None:
        said: list[str] = []
        assert peak_bytes(torch.nn.Linear(2, 2), say=said.append) is None
        assert said == ["on a CPU memory is measured in a process of its own, which needs the model's folder"]

    def test_another_kind_of_device(self) -> None:
        said: list[str] = []
        assert peak_bytes(torch.nn.Linear(2, 2, device="meta"), say=said.append) is None
        assert said == ["nothing here counts the memory of a device of kind meta"]

    def test_a_process_that_ends_before_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/bin/false")
        said: list[str] = []
        assert peak_bytes("anything", say=said.append) is None
        assert said == ["the process that measured memory ended with status 1: it said nothing"]

    def test_a_dtype_that_nobody_knows(self) -> None:
        with pytest.raises(LorashearError, match="dtype is float7; there are float32"):
            peak_bytes("anything", dtype="float7")


def test_on_a_gpu_what_others_hold_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic, with an allocator that is given: others hold 5 GB, and the run takes 300 bytes beyond what was there."""
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    before, done = 5 * 10**9 + weight_bytes(model), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: before)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: before + 300)
    monkeypatch.setattr(memory, "run", lambda model, ids, tokens: done.append((tuple(ids.shape), tokens)))
    assert memory._on_a_gpu(model, torch.device("cuda"), 2, 5, 3) == weight_bytes(model) + 300
    assert done == ["reset", ((2, 5), 3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(dense: tuple[Path, int]) -> None:
    folder, weights = dense
    kept = torch.empty(2**28, device="cuda")
    found = peak_bytes(folder, device="cuda", dtype="float32", **RUN)
    assert found is not None and weights < found < weights + LIBRARIES < kept.nbytes
