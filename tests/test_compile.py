"""The whole path on a tiny model: one folder in, one ordinary folder out, and nothing written where the input is bad."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lorashear
from lorashear.cli import main
from lorashear.verifying import verify


def compile(folder: Path, out: Path, text: Path | None, ratio: float = 0.2, **more: object) -> lorashear.CompileResult:
    files = [] if text is None else [text]
    return lorashear.compile(str(folder), ratio, out, text=files, one_shot=True, windows=8, **more)


@pytest.fixture(scope="module")
def compiled(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "small"
    compile(folder, out, text)
    return out


def stored_parameters(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def test_results_load_with_transformers_alone(folder: Path, text: Path, tmp_path: Path) -> None:
    """All in one process, whose imports take longer than what it is to do."""
    made: list[tuple[str, bool]] = []
    before = stored_parameters(folder)
    for per_layer, ratio in itertools.product((False, True), (0.1, 0.3)):
        out = tmp_path / f"{per_layer} {ratio}"
        result = compile(folder, out, text, ratio, per_layer=per_layer)
        after = stored_parameters(out)
        assert before - after >= ratio * before
        assert before - after - ratio * before < 3 * 32 * (1 if per_layer else 2)
        assert result.report["parameters"] == {"before": before, "after": after}
        assert (
            repr(result)
            == f"CompileResult({str(result.folder)!r}, {before:,} → {after:,} parameters, {result.plan.route})"
        )
        lines = verify(folder, out)
        assert "bit for bit as planned" in lines[0]
        assert "differ by" in lines[-1]
        made.append((str(out), result.plan.route == "generated"))
    script = f"""
import sys, torch
for name in ("lorashear", "lorashear_ir", "lorashear_passes"):
    sys.modules[name] = None  # as if it were not installed: importing it fails
from transformers import AutoModelForCausalLM, AutoTokenizer
for out, remote in {made}:
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=remote).float()
    ids = AutoTokenizer.from_pretrained(out, trust_remote_code=remote)("w1 w2 w3", return_tensors="pt").input_ids
    ways = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=c, eos_token_id=None) for c in (True, False))
    a, b = ways
    assert torch.equal(a, b), (out, a, b)
    assert a.shape[1] == ids.shape[1] + 12, out
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ratio", [0.07, 0.23, 0.41])
@pytest.mark.parametrize("per_layer", [False, True], ids=["uniform", "per layer"])
@pytest.mark.parametrize("prune", ["ffn", "head,query,ffn", "head,query,ffn,hidden", "hidden"])
def test_no_structure_could_be_given_back(
    folder: Path, tmp_path: Path, prune: str, per_layer: bool, ratio: float
) -> None:
    """Counted on disk the ratio is reached, and one structure more in any family (times the layers) would miss it."""
    groups = lorashear.groups(folder)
    request = {"per_layer": per_layer, "prune": prune.split(",")}
    if (prune, ratio) == ("ffn", 0.41):
        with pytest.raises(lorashear.LorashearError, match="36.48% at most, since 2 ffn group"):
            compile(folder, tmp_path / "out", None, ratio, **request)
        return
    report = compile(folder, tmp_path / "out", None, ratio, **request).report
    widths = {name: width["after"] for name, width in report["widths"].items()}
    most = (1 - ratio) * groups.count()
    assert stored_parameters(tmp_path / "out") == groups.count(widths) <= most
    families: dict[tuple[str, str], list[str]] = {}
    for name in widths:
        if groups[name].kind in prune.split(","):
            families.setdefault((groups[name].kind, name if per_layer else ""), []).append(name)
    for names in families.values():
        wider = {name: widths[name] + 1 for name in names}
        if all(wider[name] <= groups[name].axis.size for name in names):
            assert groups.count({**widths, **wider}) > most


def spoiled(path: Path, change) -> None:
    """One tensor or the JSON of a result changed behind its back."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


GATE, DOWN = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("model.safetensors", lambda t: t["model.norm.weight"].view(torch.int16)[3].bitwise_xor_(1), "bit for bit"),
        ("model.safetensors", lambda t: t[GATE].view(torch.int16)[0, 0].bitwise_xor_(1), "bit for bit"),
        (
            "model.safetensors",
            lambda t: t[DOWN].view(torch.int16)[0, 0].bitwise_xor_(1),
            "was changed by compensation, but",
        ),
        ("model.safetensors", lambda t: t.update({GATE: t[GATE][1:].contiguous()}), "the plan says"),
        ("model.safetensors", lambda t: t.pop(GATE), "is in only one of"),
        ("config.json", lambda c: c.update(rms_norm_eps=0.5), "config.json"),
        ("lorashear/plan.json", lambda p: p["tensors"][GATE]["keep"].update({"0": "0-7"}), GATE),
        ("lorashear/plan.json", lambda p: p["removed"].popitem(), "does not follow from the structures"),
        ("lorashear/plan.json", lambda p: p["config"].update(intermediate_size=1), "config.json"),
        ("lorashear/plan.json", lambda p: p.update(source="0" * 64), "was not made from"),
    ],
)
def test_verify_sees_what_was_changed_behind_its_back(
    folder: Path, compiled: Path, tmp_path: Path, file: str, change, words: str
) -> None:
    small = tmp_path / "small"
    shutil.copytree(compiled, small)
    spoiled(small / file, change)
    with pytest.raises(lorashear.LorashearError, match=words):
        verify(folder, small)


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


def test_a_refusal_leaves_with_exit_code_2(folder: Path, tmp_path: Path) -> None:
    """The real process once; the sentences are in test_bad_input.py."""
    done = run("compile", folder, "--ratio", "0.99", "--one-shot", "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "lorashear: cannot remove 99.00% of the parameters: 77.88% at most, since 2 head group(s) keep 1 of 4"
    )
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_groups_and_trace_print_what_the_functions_give(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of a graph is the same in another process."""
    monkeypatch.setattr("sys.argv", ["lorashear", "groups", str(folder)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("model.layers.1.self_attn.query"))
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


def test_rope_fields_are_written_in_both_spellings(folder: Path, tmp_path: Path) -> None:
    """Engines that read only the legacy one would fall back to theta 10000 without a word."""
    scaled = tmp_path / "scaled"
    shutil.copytree(folder, scaled)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    spoiled(scaled / "config.json", lambda content: content.update(rope_parameters=rope))
    removed = {name: [0] for name, group in lorashear.groups(scaled).items() if group.kind == "ffn"}
    lorashear.apply(lorashear.plan(scaled, removed), scaled, tmp_path / "small")
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert written["rope_parameters"] == rope
    assert written["rope_theta"] == 500000.0
    assert written["rope_scaling"] == {name: value for name, value in rope.items() if name != "rope_theta"}
    tokens = torch.arange(20).reshape(1, 20)
    with torch.inference_mode():
        want = lorashear.prune(lorashear.load(scaled), removed)(input_ids=tokens).logits
        assert torch.equal(lorashear.load(tmp_path / "small")(input_ids=tokens).logits, want)


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_result_can_be_pushed_to_the_hub(folder: Path, tmp_path: Path, per_layer: bool) -> None:
    """Plain files with plain names, no pickle, nothing that leaves the folder, and a card whose front matter is sound."""
    out = tmp_path / "small"
    compile(folder, out, None, per_layer=per_layer)
    files = [path for path in out.rglob("*") if not path.is_dir()]
    assert all(path.is_file() and not path.is_symlink() for path in files)
    names = [str(path.relative_to(out)) for path in files]
    assert all(re.fullmatch(r"[\w./-]+", name) and not name.startswith((".", "/")) for name in names)
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".ckpt")) for name in names)
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict() == {
        **{"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lorashear", "pruned"]},
    }
    assert str(tmp_path) not in card.content and str(folder) not in card.content
    assert not any(str(folder.parent) in (out / name).read_text() for name in names if name.endswith(".json"))
