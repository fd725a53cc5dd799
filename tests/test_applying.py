"""`apply` is stopped in every way, and goes on: the source stays, nothing half stands under the final name."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear import applying
from lorashear.cli import main
from lorashear.disk import output, slicing
from lorashear.disk.checkpoint import Checkpoint
from lorashear.errors import LorashearError
from lorashear.plans import Plan
from lorashear.verifying import verify

SLOWLY = """
import sys, time
from lorashear.disk import output
from lorashear.disk import slicing
slicing.SYNC_BYTES, slicing._BLOCK = 2000, 1000
write = output.NewFile.write
def slowly(self, block):
    if not begun:
        begun.append(print("begin", flush=True))
    write(self, block)
    time.sleep(PAUSE)
begun = []
output.NewFile.write = slowly
from lorashear.disk.checkpoint import Checkpoint
from lorashear.cli import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in four shards."""
    folder = tmp_path_factory.mktemp("apply") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("model-*"))) > 3
    return folder


@pytest.fixture(scope="module")
def plan(model: Path) -> Path:
    removed = {f"model.layers.{i}.mlp.ffn": [i, 5, 7, 30] for i in range(2)}
    path = model.parent / "plan.json"
    lorashear.plan(model, removed).save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def wanted(model: Path, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What comes out undisturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    applying.apply(Plan.load(plan), model, out, shard_bytes=9000)
    found = contents(out)
    assert len([name for name in found if name.endswith(".safetensors")]) > 3
    return found


def started(model: Path, plan: Path, out: Path, *more: str, pause: float = 0.004) -> subprocess.Popen[str]:
    """Running, with a pause in seconds after every block."""
    script = SLOWLY.replace("PAUSE", str(pause))
    command = [sys.executable, "-c", script, "apply", plan, model, "--out", out, "--shard-size", "9000", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [str(each) for each in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(
    model: Path, plan: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    before, out, rng = contents(model), tmp_path / "out", random.Random(0)
    reached: list[int] = []
    for _ in range(40):
        with started(model, plan, out, "--resume") as process:
            time.sleep(rng.uniform(0.0, 0.1))
            process.kill()
        assert contents(model) == before
        if out.exists():
            break
        notes = tmp_path / ".out.lorashear.json"
        reached.append(sum(json.loads(notes.read_text())["positions"].values()) if notes.exists() else 0)
    assert len({position for position in reached if position}) > 1, "never stopped midway"
    assert reached == sorted(reached)
    assert contents(out) == wanted
    assert os.listdir(tmp_path) == ["out"]


def test_ctrl_c_says_how_to_go_on(model: Path, plan: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    notes = tmp_path / ".out.lorashear.json"
    with started(model, plan, tmp_path / "out", pause=0.05) as process:
        while "00002" not in notes.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.strip().endswith(
        "lorashear: stopped; nothing was written under the final name; --resume goes on from here"
    )
    assert not (tmp_path / "out").exists()
    applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, resume=True)
    assert contents(tmp_path / "out") == wanted


def test_a_full_disk(
    model: Path, plan: Path, wanted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, write = [0], os.pwrite

    def full(descriptor: int, block: Any, position: int) -> int:
        if taken[0] > 20_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken[0] += (count := write(descriptor, block, position))
        return count

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "pwrite", full)
        with pytest.raises(LorashearError, match="cannot be written: No space left on device; make room, or choose"):
            applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000)
    assert not (tmp_path / "out").exists()
    applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, resume=True)
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_shard_that_vanishes(model: Path, plan: Path, wanted: dict[str, bytes], tmp_path: Path, how: str) -> None:
    last = max(model.glob("model-*.safetensors"))
    whole, times = last.read_bytes(), (last.stat().st_atime_ns, last.stat().st_mtime_ns)

    def vanish(done: int, total: int) -> None:
        if how == "gone":
            last.unlink(missing_ok=True)
        else:
            os.truncate(last, 100)

    try:
        with pytest.raises(LorashearError, match=f"{last.name}' was there and sound, and cannot be read any more"):
            applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, progress=vanish)
    finally:
        last.write_bytes(whole)
        os.utime(last, ns=times)
    assert not (tmp_path / "out").exists()
    applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, resume=True)
    assert contents(tmp_path / "out") == wanted


def stopped(model: Path, plan: Path, out: Path, after: int = 20_000) -> None:
    """A run that stops after some bytes."""

    def stop(done: int, total: int) -> None:
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        applying.apply(Plan.load(plan), model, out, shard_bytes=9000, progress=stop)


def test_going_on_with_another_job_is_refused(
    model: Path, plan: Path, wanted: dict[str, bytes], tmp_path: Path
) -> None:
    out, loaded = tmp_path / "out", Plan.load(plan)
    stopped(model, plan, out)
    with pytest.raises(LorashearError, match="is of another request, or the files that it names have changed"):
        applying.apply(loaded, model, out, shard_bytes=8000, resume=True)
    (tmp_path / ".out.lorashear.json").write_text("{")
    with pytest.raises(
        LorashearError, match="does not say how far an earlier run was: leave --resume out to start again"
    ):
        applying.apply(loaded, model, out, shard_bytes=9000, resume=True)
    applying.apply(loaded, model, out, shard_bytes=9000)
    assert contents(out) == wanted
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_there_must_be_as_long_as_was_noted(model: Path, plan: Path, tmp_path: Path) -> None:
    stopped(model, plan, tmp_path / "out")
    first = min((tmp_path / ".out.lorashear").glob("model-*"))
    os.truncate(first, 10)
    with pytest.raises(
        LorashearError, match=f"{first.name}' is shorter than was noted when it was written: leave --resu"
    ):
        applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, resume=True)


def test_nothing_stays_of_a_run_that_was_stopped_before_it_wrote(
    model: Path, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(applying, "write_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        applying.apply(Plan.load(plan), model, tmp_path / "deep" / "out")
    assert os.listdir(tmp_path) == []


def test_two_at_once_are_refused(model: Path, plan: Path, tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000)

    with pytest.raises(LorashearError, match=r"another process is writing into '.*\.out\.lorashear'; wait for it"):
        applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, progress=again)


def test_the_estimate_is_what_it_takes(
    model: Path,
    plan: Path,
    wanted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    estimate = applying.apply(Plan.load(plan), model, tmp_path / "out", shard_bytes=9000, dry_run=True)
    assert os.listdir(tmp_path) == []
    assert estimate.written == sum(len(b) for name, b in wanted.items() if name.startswith("model"))
    assert estimate.read == lorashear.disk.checkpoint.Checkpoint.open(model).bytes
    command = ["lorashear", "apply", str(plan), str(model), "--out", str(tmp_path / "out"), "--dry-run"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    said = capsys.readouterr()
    assert re.match(r"reads [\d.]+ kB at most, writes [\d.]+ kB \(", said.err)
    assert os.listdir(tmp_path) == []


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Private memory beyond the interpreter and its imports, read by the process itself as it goes."""
    config = LlamaConfig(
        **{"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8},
        **{"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64},
    )
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).state_dict()
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    from safetensors.torch import save_file

    save_file({n: torch.zeros(t.shape, dtype=torch.bfloat16) for n, t in shapes.items()}, folder / "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    assert size > 250_000_000
    every_third = list(range(0, 4096, 3))
    lorashear.plan(folder, {f"model.layers.{i}.mlp.ffn": every_third for i in range(8)}).save(tmp_path / "plan.json")
    child = """
import re, sys
from pathlib import Path
from lorashear.applying import apply
from lorashear.plans import Plan
def private():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
start, most = private(), [0]
def progress(done, total):
    most[0] = max(most[0], private())
estimate = apply(Plan.load(sys.argv[1]), sys.argv[2], sys.argv[3], progress=progress)
assert "torch" not in sys.modules
print(most[0] - start, estimate.memory)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-c", child, tmp_path / "plan.json", folder, tmp_path / "out"]
    made = subprocess.run([str(a) for a in arguments], env=environment, capture_output=True, text=True, check=True)
    taken, estimated = map(int, made.stdout.split())
    assert taken < 30_000_000, taken
    assert estimated < 30_000_000

    assert slicing.SYNC_BYTES < size  # it was flushed on the way


def test_the_weights_can_be_held_against_the_plan(model: Path, plan: Path, tmp_path: Path) -> None:
    loaded = Plan.load(plan)
    with pytest.raises(LorashearError, match="has no hash of the weights that it was made for"):
        applying.apply(loaded, model, tmp_path / "out", check_contents=True)
    known = dataclasses.replace(loaded, contents=Checkpoint.open(model).contents())
    applying.apply(known, model, tmp_path / "out", check_contents=True)
    other = tmp_path / "other"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig.from_pretrained(model)).bfloat16().save_pretrained(other, max_shard_size="12KB")
    shutil.copyfile(model / "config.json", other / "config.json")
    applying.apply(known, other, tmp_path / "unchecked")
    with pytest.raises(LorashearError, match="was made for other weights than those in .* names and shapes agree"):
        applying.apply(known, other, tmp_path / "checked", check_contents=True)
    assert not (tmp_path / "checked").exists()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    """Some checkpoints hold both names of a tied weight."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    assert "lm_head.weight" not in weights
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    removed = {"model.hidden": [3], "model.layers.0.mlp.ffn": [0]}
    lorashear.apply(lorashear.plan(tmp_path / "model", removed), tmp_path / "model", tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(weights)
    small = lorashear.load(tmp_path / "out")
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert "differ by" in verify(tmp_path / "model", tmp_path / "out")[-1]


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_tied_weight_gets_the_name_that_engines_look_for(
    per_layer: bool, text: Path, folder: Path, tmp_path: Path
) -> None:
    """Some checkpoints hold only the output head of a tied pair, which transformers understands, and others do not."""
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    weights = load_file(model / "model.safetensors")
    names = set(weights)
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    made = [tmp_path / "compiled", tmp_path / "applied"]
    # hidden channels too, and refitted weights, trained ones and what is cut from them
    kinds = ("hidden", "ffn")
    lorashear.compile(model, 0.3, made[0], text=text, tokens=2000, context=32, prune=kinds, per_layer=per_layer)
    removed = {"model.hidden": [3], "model.layers.0.mlp.ffn": [0] if per_layer else [], "model.layers.1.mlp.ffn": []}
    lorashear.apply(lorashear.plan(model, removed), model, made[1])
    for out in made:
        assert set(load_file(out / "model.safetensors")) == names
        small = lorashear.load(out)
        assert small.lm_head.weight is small.model.embed_tokens.weight
        assert "differ by" in verify(model, out)[-1]
