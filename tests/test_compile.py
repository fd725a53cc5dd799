"""The whole path on a tiny model: one folder in, one ordinary folder out, and nothing written where the input is bad."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

import lorashear
from lorashear.verifying import verify


def compile(folder: Path, out: Path, text: Path | None, ratio: float = 0.2, **more: object) -> lorashear.CompileResult:
    files = [] if text is None else [text]
    return lorashear.compile(str(folder), ratio, out, text=files, one_shot=True, windows=8, **more)


def stored_parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("ratio", [0.1, 0.3])
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_result_loads_with_transformers_alone(
    folder: Path, text: Path, tmp_path: Path, per_layer: bool, ratio: float
) -> None:
    out = tmp_path / "small"
    result = compile(folder, out, text, ratio, per_layer=per_layer)
    before, after = stored_parameters(folder), stored_parameters(out)
    step = min(3 * 32 * (1 if per_layer else 2), 10**9)
    assert before - after >= ratio * before
    assert before - after - ratio * before < step
    assert result.report["parameters"] == {"before": before, "after": after}
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code={result.plan.route == "per-layer"}).float()
ids = AutoTokenizer.from_pretrained({str(out)!r})("w1 w2 w3", return_tensors="pt").input_ids
a, b = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=c, eos_token_id=None) for c in (True, False))
assert torch.equal(a, b), (a, b)
assert a.shape[1] == ids.shape[1] + 12
assert not any(name.startswith("lorashear") and not name.startswith("lorashear_llama") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = verify(folder, out)
    assert "bit for bit as planned" in lines[0]
    assert "differ by" in lines[-1]


def test_hidden_channels_too(folder: Path, text: Path, tmp_path: Path) -> None:
    result = compile(folder, tmp_path / "small", text, 0.4, prune=("head", "query", "ffn", "hidden"))
    assert result.report["ratio"]["reached"] >= 0.4
    assert "differ by" in verify(folder, tmp_path / "small")[-1]


def test_a_head_count_that_llama_refuses_goes_to_mistral(folder: Path, tmp_path: Path) -> None:
    groups = lorashear.groups(folder)
    removed = {name: [0] for name, group in groups.items() if group.kind == "head"}
    plan = lorashear.plan(folder, removed)
    assert plan.route == "mistral"  # 6 heads do not divide 32
    lorashear.apply(plan, folder, tmp_path / "small")
    assert "differ by" in verify(folder, tmp_path / "small")[-1]
    assert type(lorashear.load(tmp_path / "small")).__name__ == "MistralForCausalLM"


def test_the_same_seed_gives_the_same_bytes(folder: Path, text: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile(folder, tmp_path / name, text)
    for file in ("lorashear/plan.json", "model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_plan_survives_its_file_and_applies_without_torch(folder: Path, tmp_path: Path) -> None:
    result = compile(folder, tmp_path / "a", None)
    assert result.report["criterion"] == "magnitude"
    assert "no text was given" in result.report["note"]
    plan = lorashear.Plan.load(tmp_path / "a" / "lorashear" / "plan.json")
    assert plan == result.plan
    script = f"""
import sys, lorashear
lorashear.apply(lorashear.Plan.load({str(tmp_path / "a/lorashear/plan.json")!r}), {str(folder)!r}, {str(tmp_path / "b")!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def _environment() -> dict[str, str]:
    import os

    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, root / "ir", root / "passes")))}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorashear", *map(str, arguments)], capture_output=True, text=True, env=_environment()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ratio", "1.5", "--one-shot"], "between 0 and 1"),
        (["--ratio", "0.2"], "pass one_shot=True (--one-shot)"),
        (["--ratio", "0.99", "--one-shot"], "77.88% at most, held back by head widths"),
        (["--ratio", "0.2", "--one-shot", "--text", "nowhere.txt"], "nowhere.txt"),
        (["--ratio", "0.2", "--one-shot", "--prune", "layers"], "the kinds are head, query, ffn, hidden"),
    ],
)
def test_a_bad_request_is_one_sentence_and_exit_code_2(
    folder: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run("compile", folder, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lorashear: ")
    assert words in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_model_folder(tmp_path: Path) -> None:
    done = run("compile", tmp_path / "none", "--ratio", "0.2", "--one-shot", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "no model folder" in done.stderr


def test_groups_and_trace_print_what_the_functions_give(folder: Path) -> None:
    done = run("groups", folder)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("model.layers.1.self_attn.query"))
    assert line.split() == ["model.layers.1.self_attn.query", "query", "8", "512", "yes"]
    graph = lorashear.parse(run("trace", folder).stdout)
    assert graph == lorashear.trace(folder)


def test_dump_and_debug(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("LORASHEAR_DUMP", str(tmp_path / "dump"))
    monkeypatch.setenv("LORASHEAR_DEBUG", "1")
    compile(folder, tmp_path / "small", None)
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert [name.split("-")[1] for name in names] == ["capture.txt", "infer.txt", "groups.txt", "plan.txt"]
    assert lorashear.parse((tmp_path / "dump" / names[1]).read_text()) == lorashear.trace(folder)
    assert "infer:" in capsys.readouterr().err


def test_the_face_is_what_it_says() -> None:
    assert sorted(lorashear.__all__) == dir(lorashear)
    for name in lorashear.__all__:
        assert getattr(lorashear, name) is not None
