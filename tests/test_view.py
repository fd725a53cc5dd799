"""The content of the page: every operator, the types, what a plan removes, what reports say; its forms on disk and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import lorashear
from lorashear import models
from lorashear.cli import main
from lorashear.viewer.content import FORMAT, content
from lorashear.viewer.cut import token_bytes
from lorashear.viewer.page import data
from lorashear.viewer.program import alike
from lorashear_ir.functions import expand
from lorashear_passes.compose import compose

DOCS = Path(__file__).resolve().parent.parent / "docs" / "view.md"


@pytest.fixture(scope="module")
def seen(folder: Path, results: dict[str, Path]) -> dict[str, Any]:
    return content(folder, plan=results["layers"])


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["lorashear", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_every_operator_is_there_once_with_its_types_and_groups(folder: Path, seen: dict[str, Any]) -> None:
    found = models.groups(folder)
    assert found.typed is not None
    composed = compose(found.typed)
    whole = models.typed(expand(composed))
    operators = seen["program"]["operators"]
    assert [each["name"] for each in operators] == [f"%{node.outputs[0].name}" for node in composed.nodes]
    flat = [part for each in operators for part in each.get("parts", [each])]
    assert [part["name"] for part in flat] == [f"%{node.outputs[0].name}" for node in whole.nodes]
    for part, node in zip(flat, whole.nodes, strict=True):
        assert part["type"] == [f"({', '.join(map(str, out.dims or ()))})" for out in node.outputs]
        assert part["op"] == node.op and part["module"] == node.module
    standing = {each.name: each for each in found.operators()}
    plain = {each["name"]: each for each in operators if "parts" not in each}
    assert standing.keys() & plain.keys()
    for name in standing.keys() & plain.keys():
        assert plain[name]["groups"] == list(standing[name].groups)
        assert plain[name]["weights"] == list(standing[name].weights)


def test_what_is_read_is_there_and_comes_before(seen: dict[str, Any]) -> None:
    program = seen["program"]
    known = set(program["given"])
    for each in program["operators"]:
        assert set(each["reads"]) <= known
        within = set(known)
        for part in each.get("parts", []):
            assert set(part["reads"]) <= within
            within.add(part["name"])
        known.add(each["name"])
    assert set(program["outputs"]) <= known


def test_types_of_weights_are_those_of_the_groups(folder: Path, seen: dict[str, Any]) -> None:
    found = models.groups(folder)
    weights, axes = seen["program"]["weights"], seen["program"]["axes"]

    def text(dim: Any) -> str:
        if isinstance(dim, int):
            return axes[dim]["name"]
        if "+" in dim:
            return " + ".join(map(text, dim["+"]))
        return " × ".join(f"({text(f)})" if isinstance(f, dict) and "+" in f else text(f) for f in dim["x"]) or "1"

    assert set(weights) == set(found.tensors)
    for name, dims in found.tensors.items():
        assert weights[name]["type"] == [str(dim) for dim in dims] == [text(dim) for dim in weights[name]["dims"]]
        assert weights[name]["shape"] == [dim.size for dim in dims]
    for each in seen["groups"]:
        group = found[each["name"]]
        assert [tuple(slot) for slot in each["slots"]] == list(group.slots)
        assert (each["size"], each["parameters"], each["axis"]) == (group.size, group.parameters, group.axis.name)


def test_alike_layers_are_told_apart_from_others(folder: Path) -> None:
    assert alike(lorashear.trace(folder)) == [{"module": "model.layers", "first": 0, "last": 1}]
    with torch.device("meta"):
        plain = LlamaConfig(
            num_hidden_layers=5, hidden_size=32, intermediate_size=48, num_attention_heads=4, vocab_size=64
        )
        model = LlamaForCausalLM(plain).eval()
        for name in ("gate_proj", "up_proj"):
            setattr(model.model.layers[2].mlp, name, nn.Linear(32, 40, bias=False))
        model.model.layers[2].mlp.down_proj = nn.Linear(40, 32, bias=False)
    runs = [{"module": "model.layers", "first": 0, "last": 1}, {"module": "model.layers", "first": 3, "last": 4}]
    assert alike(lorashear.trace(model)) == runs


def test_a_cut_is_what_the_result_is(folder: Path, results: dict[str, Path], seen: dict[str, Any]) -> None:
    cut = seen["cut"]
    small: Any = AutoModelForCausalLM.from_pretrained(results["layers"], trust_remote_code=True)
    large: Any = AutoModelForCausalLM.from_pretrained(folder)
    for key, of in (("parameters", nn.Module.parameters), ("bytes", nn.Module.parameters)):
        sizes = [sum(p.numel() if key == "parameters" else p.nbytes for p in of(model)) for model in (large, small)]
        assert cut["figures"][key] == {"before": sizes[0], "after": sizes[1]}
    kept = []
    for model in (large, small):
        cache = model(input_ids=torch.zeros(1, 7, dtype=torch.int64), use_cache=True).past_key_values
        kept.append(sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values)) // 7)
    assert cut["figures"]["cache"] == {"before": kept[0], "after": kept[1]}
    assert cut["figures"]["flops"]["before"] == 2 * (sum(p.numel() for p in large.parameters() if p.dim() > 1))
    assert cut["removed"]["model.layers.1.mlp.ffn"] == "3-4,8,30"
    assert cut["widths"]["model.layers.1.mlp.ffn"] == {"before": 48, "after": 44}
    changed = [line for line in cut["diff"] if line.startswith(("+axis", "-axis"))]
    assert "-axis ffn.1 48 ffn" in changed and "+axis ffn.1 44 ffn" in changed


def test_a_cut_by_hand_of_a_module_without_a_config() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    name = next(n for n, g in lorashear.groups(model, torch.zeros(2, 8)).items() if g.prunable)
    found = content(model, torch.zeros(2, 8), plan={name: [0, 5]})
    assert found["cut"]["figures"]["parameters"] == {"before": 212, "after": 212 - 2 * 13}
    assert found["cut"]["figures"]["cache"] is None and found["cut"]["figures"]["flops"] is None
    assert [each["op"] for each in found["program"]["operators"]] == ["linear", "relu", "linear"] or "parts" in found[
        "program"
    ]["operators"][0]


def test_experts_and_a_cache_of_their_model() -> None:
    with torch.device("meta"):
        sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "vocab_size": 64}
        model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=2, num_key_value_heads=2, **sizes)).eval()
    found = content(model)
    assert {"expert", "ffn", "head", "query"} <= {group["kind"] for group in found["groups"]}
    assert token_bytes(model) == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, dims, bytes
    assert token_bytes(nn.Linear(3, 3)) is None


def test_what_reports_say(folder: Path, text: Path, tmp_path: Path) -> None:
    lorashear.compile(folder, 0.2, tmp_path / "small", text=[str(text)], tokens=640, context=16, windows=8, distill=0.0)
    report = json.loads((tmp_path / "small" / "lorashear" / "report.json").read_text())
    lorashear.evaluate([folder, tmp_path / "small"], text=[str(text)], context=16, limit=8).save(tmp_path / "eval.json")
    found = content(folder, reports=[tmp_path / "small", tmp_path / "eval.json"])["measured"]
    assert found["knowledge"] == report["knowledge"] and found["widths"] == report["widths"]
    log = [json.loads(line) for line in (tmp_path / "small" / "lorashear" / "training.jsonl").read_text().splitlines()]
    assert found["training"]["loss"] == [[row["step"], row["loss"]] for row in log]
    assert [model["name"] for model in found["evaluation"]["models"]] and found["evaluation"]["figures"]
    assert content(folder)["measured"] == dict.fromkeys(found)
    page = (tmp_path / "small" / "lorashear" / "report.html").read_text()
    inside = data(page)
    assert inside["cut"]["removed"] == json.loads((tmp_path / "small/lorashear/plan.json").read_text())["removed"]
    assert inside["measured"] == {**found, "evaluation": None}
    lorashear.recover(tmp_path / "small", tmp_path / "more", text=[str(text)], tokens=320, context=16)
    again = data((tmp_path / "more" / "lorashear" / "report.html").read_text())
    assert again["program"] == inside["program"] and again["cut"] == inside["cut"]
    assert again["measured"]["recovery"] and again["measured"]["recovery"] != inside["measured"]["recovery"]
    assert len(again["measured"]["training"]["loss"]) > len(inside["measured"]["training"]["loss"])


def test_each_part_is_documented(seen: dict[str, Any]) -> None:
    said = DOCS.read_text(encoding="utf-8")
    assert f"`{FORMAT}`" in said
    parts = [seen, *(seen[name] for name in ("model", "program", "cut", "measured"))]
    parts += [seen["program"]["operators"][0], next(iter(seen["program"]["weights"].values())), seen["groups"][0]]
    parts += [next(iter(seen["program"]["given"].values())), seen["program"]["axes"][0], seen["cut"]["figures"]]
    for key in {key for part in parts for key in part} | {"parts"}:
        assert f"`{key}`" in said, key


def test_one_content_in_every_form(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed, _ = run(capsys, monkeypatch, "view", folder, "--json")
    assert code == 0 and json.loads(printed) == content(folder)
    for name in ("a.html", "a.json", "a.dot", "a.graphml"):
        assert run(capsys, monkeypatch, "view", folder, "--out", tmp_path / name)[0] == 0
    assert json.loads((tmp_path / "a.json").read_text()) == content(folder)
    page = (tmp_path / "a.html").read_text()
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data) == content(folder)
    assert "http://" not in page.replace("http://www.w3.org/", "") and "https://" not in page, "nothing is fetched"
    assert (tmp_path / "a.dot").read_text().startswith("digraph")


def test_a_page_that_cannot_be_made_costs_no_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def fails(*_: object) -> None:
        raise RuntimeError("as if")

    monkeypatch.setattr("lorashear.viewer.result.write", fails)
    lorashear.compile(folder, 0.2, tmp_path / "small", one_shot=True, say=said.append)
    assert "lorashear/report.html was not made: as if" in said
    assert (tmp_path / "small" / "config.json").exists()


def test_names_cannot_end_the_data() -> None:
    model = nn.Sequential()
    model.add_module("</script><b>", nn.Linear(4, 4))
    from lorashear.viewer.page import page

    made = page(content(model, torch.zeros(2, 4)))
    assert made.count("</script>") == 2 and "<b>" not in made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "a.txt"], "a view is written to *.html, *.json, *.graphml, *.dot, and 'a.txt' is none"),
        ([], "pass --out graph.html, or --json"),
        (["--out", "a.html", "--plan", "none.json"], "no plan can be read from none.json"),
        (["--out", "a.html", "--report", "none.json"], "none.json cannot be read as a report"),
        (
            ["--out", "a.html", "--report", "{folder}/config.json"],
            "config.json is no report of compile, recover or eval",
        ),
        (["--out", "a.dot", "--plan", "none.json"], "'a.dot' has room for the graph alone"),
        (["--out", "{folder}/config.json"], "exists; choose another one"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str],
    said: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [each.format(folder=folder) for each in arguments]
    before = (folder / "config.json").read_bytes()
    code, _, error = run(capsys, monkeypatch, "view", folder, *given)
    assert code == 2 and said in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir()) and (folder / "config.json").read_bytes() == before


def test_a_plan_or_report_of_another_model(
    folder: Path, shipped: Path, results: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(lorashear.LorashearError, match="is a plan for another model than"):
        content(shipped, plan=results["uniform"])
    (tmp_path / "report.json").write_text(json.dumps({"widths": {"model.hidden": {"before": 7, "after": 7}}}))
    with pytest.raises(lorashear.LorashearError, match="is of another model: it has model.hidden"):
        content(shipped, reports=[tmp_path / "report.json"])
    with pytest.raises(lorashear.LorashearError, match="no group is called"):
        content(folder, plan={"none": [0]})
