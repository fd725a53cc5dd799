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
from lorashear.evaluation.bandwidth import weight_bytes
from lorashear.evaluation.memory import peak_bytes
from lorashear.evaluation.speed import measure

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

    def test_it_stands_beside_the_speed(self, dense: tuple[Path, int]) -> None:
        """In the dtype that the model has in memory, which is not the one that is stored."""
        folder, weights = dense
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        (cost,) = measure({"dense": model}, prompt=16, tokens=2, rounds=1, warm_up=0, folders={"dense": folder})
        assert cost.peak_bytes is not None and cost.no_peak is None
        assert weights / 2 <= cost.peak_bytes < weights / 2 + LIBRARIES


def test_what_the_process_refuses_is_said_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process in all but name: the request goes in as its argument, and its last line comes back."""

    def within(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-P", "-m", "lorashear.evaluation.memory"]
        monkeypatch.setattr(sys, "argv", command[3:])
        print("something that a library says")
        memory.main()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(subprocess, "run", within)
    with pytest.raises(LorashearError, match="has 64 positions, and a prompt of 60 and 5 more tokens need 65"):
        peak_bytes(folder, prompt=60, tokens=5)


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

    def test_no_tokens(self) -> None:
        with pytest.raises(LorashearError, match="tokens is 0, which leaves nothing to measure"):
            peak_bytes("anything", tokens=0)


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
