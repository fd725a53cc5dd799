"""`recover`, and the recovery at the end of `compile`: what was lost comes back, subset by subset, and the folder is as plain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from conftest import WORDS
from lorashear.cli import main
from lorashear.learning.hyperparameters import Hyperparameters
from lorashear.learning.mixture import FLOOR, Mixture
from lorashear.learning.training import Step
from lorashear.run import Run
from lorashear.text import data, subsets
from lorashear.text.calibration import Subset
from lorashear.verifying import verify

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning")]
SETTINGS: dict[str, Any] = {"context": 32, "rank": 2, "learning_rate": 1e-2}


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def kinds(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text of two kinds."""
    runs = [" ".join(WORDS[(3 * i + j) % 20] for j in range(200)) for i in range(40)]
    return {"mixed": text, "runs": jsonl(tmp_path_factory.mktemp("kinds") / "runs.jsonl", runs)}


@pytest.fixture(scope="module")
def exact(folder: Path, kinds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small folder in float32, so that nothing is rounded on disk, after it has learned something of both kinds."""
    path = tmp_path_factory.mktemp("exact") / "model"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = data.windows(tokenizer, data.read_texts(list(kinds.values())), 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        some = rows[torch.randperm(len(rows))[:16]]
        model(input_ids=some, labels=some).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pruned(exact: Path, kinds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "out"
    lorashear.compile(exact, 0.4, out, text=kinds, one_shot=True, windows=8, context=32)
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(60).reshape(2, 30)).logits


@pytest.mark.parametrize("free", ["result", "states"])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    pruned: Path, exact: Path, kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: str
) -> None:
    """All weights trained leave states that are many times the result: that room is asked for before the first step."""
    ask: dict[str, Any] = {"text": kinds, "tokens": 2000, "dense": exact, "full": True, **SETTINGS}
    size = (pruned / "model.safetensors").stat().st_size
    if free == "result":
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 2 * size})())
    else:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("lorashear.learning.training.save_file", full)
    words = "GB are free there" if free == "result" else "the state of training cannot be written to"
    with pytest.raises(lorashear.LorashearError, match=words):
        lorashear.recover(pruned, tmp_path / "out", **ask)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapter", ["merge", "keep"])
def test_a_pruned_folder_recovers(
    exact: Path,
    pruned: Path,
    kinds: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
) -> None:
    """The folder computes what was trained; merged it is as plain as before, kept it has an adapter that peft itself loads."""
    held: list[Any] = []
    learner = Run.learner
    monkeypatch.setattr(Run, "learner", lambda *given: held.append(learner(*given)) or held[-1])
    steps: list[Step] = []
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in pruned.rglob("*") if path.is_file()}
    result = lorashear.recover(
        pruned, out, text=kinds, tokens=10_000, dense=exact, adapter=adapter, stepped=steps.append, **SETTINGS
    )
    assert before == {path: path.read_bytes() for path in pruned.rglob("*") if path.is_file()}
    assert not [path.name for path in tmp_path.iterdir() if path != out]
    plain: Any = AutoModelForCausalLM.from_pretrained(out)
    small = plain if adapter == "merge" else PeftModel.from_pretrained(plain, out / "adapter")
    assert type(plain).__name__ == "LlamaForCausalLM" and (out / "adapter").exists() == (adapter == "keep")
    assert (logits(small) - logits(held[0])).abs().max() < 1e-4
    assert "bit for bit as planned" in verify(exact, out)[0]

    recovery, perplexity = result.report["recovery"], result.report["perplexity"]
    assert perplexity["after"] < perplexity["pruned"] and perplexity["before"] > 1
    assert recovery["subsets"] == ["mixed", "runs"] and not recovery["why"]
    (stage,) = recovery["stages"]
    assert (stage["name"], stage["steps"], stage["tokens"]) == ("corpora", 39, 39 * 8 * 32)
    first, last = stage["measured"][0], stage["measured"][-1]
    for measured in stage["measured"]:
        lost = {name: max(0, measured["loss"][name] - recovery["dense_loss"][name]) for name in kinds}
        assert measured["degradation"] == pytest.approx(lost)
        total = sum(lost.values())
        assert total > 0
        assert measured["share"] == pytest.approx(
            {name: FLOOR / 2 + (1 - FLOOR) * lost[name] / total for name in kinds}
        )
    assert all(last["degradation"][name] < first["degradation"][name] for name in kinds)
    assert [m["step"] for m in stage["measured"]] == [step.measured.step for step in steps if step.measured]
    log = [json.loads(line) for line in (out / "lorashear" / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 40))
    card = (out / "README.md").read_text()
    assert "lorashear/recovery.svg" in card and (out / "lorashear" / "recovery.svg").is_file()
    assert f"| runs | {recovery['dense_loss']['runs']:.3f} |" in card


def test_all_weights_are_trained_as_asked(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    """The folder computes what was trained, and every tensor differs from what it was."""
    first = lorashear.recover(
        pruned, tmp_path / "kept", text=kinds, tokens=3000, dense=exact, adapter="keep", **SETTINGS
    )
    held: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        whole = Run.whole
        patch.setattr(Run, "whole", lambda *given: held.append(whole(*given)) or held[-1])
        found = lorashear.recover(
            first.folder, tmp_path / "out", text=kinds, tokens=6000, dense=exact, full=True, **SETTINGS
        )
    assert (logits(found.model) - logits(held[0])).abs().max() < 1e-4
    assert not (tmp_path / "out" / "adapter").exists()
    assert "bit for bit as planned" in verify(exact, tmp_path / "out")[0]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(pruned / "model.safetensors")
    assert tensors.keys() == before.keys() == set(found.plan.changed)
    assert not any(torch.equal(value, before[name]) for name, value in tensors.items())
    assert found.report["perplexity"]["after"] < found.report["perplexity"]["pruned"]
    assert "Then all weights were trained on" in (tmp_path / "out" / "README.md").read_text()


def recovered(pruned: Path, out: Path, **more: Any) -> dict[str, Any]:
    return dict(lorashear.recover(pruned, out, **{"tokens": 6000, **SETTINGS, **more}).report)


def test_by_default_all_is_read_once(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    found = lorashear.recover(pruned, tmp_path / "out", text=kinds, dense=exact, context=32, rank=2).report
    (stage,) = found["recovery"]["stages"]
    assert stage["windows"] * 32 == found["settings"]["tokens"] == pytest.approx(stage["tokens"], abs=8 * 32)


def test_a_static_mixture_draws_all_alike(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    found = recovered(pruned, tmp_path / "out", text=kinds, dense=exact, mixture="static")
    assert all(m["share"] == {"mixed": 0.5, "runs": 0.5} for m in found["recovery"]["stages"][0]["measured"])


def test_without_a_dense_model(pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    found = recovered(pruned, tmp_path / "out", text=kinds, say=said.append)
    recovery = found["recovery"]
    assert recovery["why"] in said and recovery["why"].startswith(
        "no dense model is given (--dense MODEL), and nothing"
    )
    assert recovery["dense"] is None and recovery["dense_loss"] is None
    (stage,) = recovery["stages"]
    assert all(m["degradation"] is None and set(m["share"].values()) == {0.5} for m in stage["measured"])
    assert stage["measured"][-1]["loss"]["runs"] < stage["measured"][0]["loss"]["runs"]
    assert found["training"]["distill"] == 0.0
    assert "before" not in found["perplexity"]
    log = (tmp_path / "out" / "lorashear" / "training.jsonl").read_text()
    assert '"divergence": null' in log.splitlines()[0]


def test_a_dense_model_on_a_hub(
    exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the report names is looked for there; where it cannot be had, the run says so and goes on."""
    named = Path(shutil.copytree(pruned, tmp_path / "named"))
    path = named / "lorashear" / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "owner/dense", "revision": "v2"}))
    asked: list[tuple[Any, Any]] = []
    resolve = lorashear.disk.checkpoint.resolve  # type: ignore[attr-defined]

    def resolved(model: Any, revision: Any = None) -> Path:
        asked.append((model, revision))
        return exact if model == "owner/dense" else resolve(model, revision)

    found = recovered(named, tmp_path / "first", text=kinds["runs"])
    assert found["recovery"]["why"].startswith("owner/dense, the dense model, cannot be had (")
    monkeypatch.setattr("lorashear.disk.checkpoint.resolve", resolved)
    found = recovered(named, tmp_path / "second", text=kinds["runs"])
    assert ("owner/dense", "v2") in asked and found["recovery"]["dense"] == "owner/dense"


def test_a_plain_slice_recovers(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    """What `apply` wrote has no report."""
    lorashear.apply(lorashear.Plan.load(pruned / "lorashear" / "plan.json"), exact, tmp_path / "slice")
    found = recovered(tmp_path / "slice", tmp_path / "out", text=kinds["runs"], dense=exact)
    assert found["perplexity"]["after"] < found["perplexity"]["pruned"]
    assert found["parameters"]["before"] is None and "# slice, pruned" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_that_was_kept_goes_on(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    recovered(pruned, tmp_path / "first", text=kinds["runs"], dense=exact, adapter="keep")
    found = recovered(tmp_path / "first", tmp_path / "second", text=kinds["runs"], dense=exact, rank=7)
    assert found["training"]["rank"] == 2 and not (tmp_path / "second" / "adapter").exists()
    losses = [m["loss"]["text"] for m in found["recovery"]["stages"][0]["measured"]]
    assert losses[-1] < losses[0]
    assert found["perplexity"]["after"] < found["perplexity"]["pruned"]
    log = (tmp_path / "second" / "lorashear" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 47))  # of both


def test_a_per_layer_result_recovers(exact: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    lorashear.compile(exact, 0.4, tmp_path / "pruned", text=kinds, one_shot=True, windows=8, context=32, per_layer=True)
    found = recovered(tmp_path / "pruned", tmp_path / "out", text=kinds, dense=exact)
    assert found["perplexity"]["after"] < found["perplexity"]["pruned"]
    assert "bit for bit as planned" in verify(exact, tmp_path / "out")[0]


def test_a_stopped_run_goes_on_to_the_same_bytes(
    exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path
) -> None:
    request: dict[str, Any] = {"text": kinds, "tokens": 6000, "dense": exact, "save_every": "3", **SETTINGS}

    def interrupted(step: Step) -> None:
        if step.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lorashear.recover(pruned, tmp_path / "one", stepped=interrupted, **request)
    assert not (tmp_path / "one").exists()
    seen: list[int] = []
    with pytest.raises(lorashear.LorashearError, match="pass --resume to go on with it"):
        lorashear.recover(pruned, tmp_path / "one", **request)
    one = lorashear.recover(pruned, tmp_path / "one", resume=True, stepped=lambda s: seen.append(s.step), **request)
    two = lorashear.recover(pruned, tmp_path / "two", **request)
    assert seen == list(range(10, 24))
    assert one.report["recovery"] == two.report["recovery"]
    first, second = (load_file(each / "model.safetensors") for each in (tmp_path / "one", tmp_path / "two"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    pictures = [(each / "lorashear" / "recovery.svg").read_text() for each in (tmp_path / "one", tmp_path / "two")]
    assert pictures[0] == pictures[1]


def test_compile_ends_with_it(exact: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    """The last stage of `compile --tokens` is what `recover` is, on subsets too; calibration has windows of each."""
    found = lorashear.compile(exact, 0.4, tmp_path / "out", text=kinds, tokens=6000, windows=8, **SETTINGS).report
    (stage,) = found["recovery"]["stages"]
    assert set(stage["measured"][0]["degradation"]) == set(kinds) and found["recovery"]["dense"] == "model"
    assert found["perplexity"]["after"] < found["perplexity"]["pruned"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All have one answer."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [
        {"prompt": " ".join([WORDS[i % 50], *WORDS[i : i + i % 7]]), "completion": " ".join(WORDS[3:7])}
        for i in range(80)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_instructions_come_at_last_with_some_of_the_text(
    exact: Path, pruned: Path, kinds: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    """Answers are learned; more of what came back is kept where some of the text is among them."""
    found = {
        replay: recovered(
            pruned, tmp_path / f"{replay}", text=kinds, instruct=questions, tokens=16_000, dense=exact, replay=replay
        )["recovery"]
        for replay in (0.0, 0.5)
    }
    for replay, recovery in found.items():
        corpora, tuning = recovery["stages"]
        assert recovery["subsets"] == [*kinds, "instructions"] and recovery["examples"]["examples"] == 80
        assert (corpora["name"], tuning["name"]) == ("corpora", "instructions")
        assert corpora["tokens"] == pytest.approx(12_000, rel=0.03) and tuning["tokens"] == pytest.approx(4000, rel=0.1)
        assert set(corpora["measured"][0]["share"]) == set(kinds)
        first, last = tuning["measured"][0], tuning["measured"][-1]
        assert first["share"]["instructions"] == 1 - replay and sum(first["share"].values()) == pytest.approx(1)
        assert last["loss"]["instructions"] < first["loss"]["instructions"] - 1
        log = (tmp_path / f"{replay}" / "lorashear" / "training.jsonl").read_text().splitlines()
        assert len(log) == corpora["steps"] + tuning["steps"]
    lost = {
        replay: sum(recovery["stages"][1]["measured"][-1]["loss"][name] for name in kinds)
        for replay, recovery in found.items()
    }
    assert lost[0.5] < lost[0.0]


def test_instructions_alone(exact: Path, pruned: Path, questions: Path, tmp_path: Path) -> None:
    found = recovered(pruned, tmp_path / "out", instruct=questions, dense=exact)
    (stage,) = found["recovery"]["stages"]
    assert stage["name"] == "instructions" and found["perplexity"] is None
    losses = [m["loss"]["instructions"] for m in stage["measured"]]
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"one_shot": True}, r"instruct is what to train on at last, and there is no tokens \(--tokens N\)"),
        ({"tokens": 100, "text": ()}, "tokens asks for training, which needs text"),
    ],
)
def test_instructions_of_compile_need_tokens_and_text(
    exact: Path, kinds: dict[str, Path], questions: Path, tmp_path: Path, more: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.compile(exact, 0.4, tmp_path / "out", **{"text": kinds, "instruct": questions, **more})


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "nothing to train on": (
        lambda _: {},
        r"recovery needs something to train on: pass text \(--text FILE\) or instruct",
    ),
    "a name twice": (
        lambda p: {"text": [f"a={p / 'one.txt'}", f"a={p / 'two.txt'}"]},
        r"text names two subsets a, '.*one.txt' and '.*two.txt': give one another name, or put both into one folder",
    ),
    "one of our names": (lambda p: {"text": f"text={p / 'one.txt'}"}, "text names a subset text, which is what others"),
    "no name": (lambda p: {"text": f"={p / 'one.txt'}"}, "text names a subset ''; a name begins with a letter"),
    "too short": (
        lambda p: {"text": {"long": p / "long.txt", "short": p / "one.txt"}},
        "short: the text has 3 tokens, one context needs 32; give more text",
    ),
    "missing": (lambda p: {"text": f"a={p / 'none.txt'}"}, "none.txt does not exist; give a text file"),
    "a broken line": (
        lambda p: {"text": {"long": p / "long.txt", "broken": p / "broken.jsonl"}},
        r"broken.jsonl, line 2: not JSON \(.*\); write one object a line",
    ),
    "another encoding": (lambda p: {"text": f"a={p / 'latin.txt'}"}, "latin.txt is not UTF-8 text"),
    "a share": (
        lambda p: {"text": p / "long.txt", "replay": 1.0},
        "replay is 1; it is a share of the tokens, 0 or more",
    ),
    "a mixture": (lambda p: {"text": p / "long.txt", "mixture": "odd"}, "mixture is odd; there are dynamic, static"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_sentence_and_nothing_is_lost(what: str, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("w1 w2")
    (tmp_path / "two.txt").write_text("w3 w4")
    (tmp_path / "long.txt").write_text("\n\n".join(" ".join(WORDS) for _ in range(30)))
    (tmp_path / "broken.jsonl").write_text('{"text": "w1"}\n{"text": \n')
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 100)
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    (tmp_path / "odd.jsonl").write_text('{"text": "w1"}')
    (tmp_path / "single.jsonl").write_text('{"prompt": "w1", "completion": "w2"}')
    there = sorted(tmp_path.iterdir())
    more, sentence = WRONG[what]
    with pytest.raises(lorashear.LorashearError, match=sentence) as error:
        recovered(pruned, tmp_path / "out", **more(tmp_path))
    assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == there


def test_a_folder_that_is_none_of_ours(exact: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        lorashear.LorashearError, match="is no folder that LoRAShear wrote: it lacks lorashear/plan.json"
    ):
        recovered(exact, tmp_path / "out", text=kinds)


def test_a_dense_model_of_another_vocabulary(
    pruned: Path, shipped: Path, kinds: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        lorashear.LorashearError, match=r"whose tokenizer has other pieces .* than that of .* \(96\): give"
    ):
        recovered(pruned, tmp_path / "out", text=kinds, dense=shipped)


def test_a_result_is_never_written_over_what_it_came_from(exact: Path, pruned: Path, kinds: dict[str, Path]) -> None:
    for out in (pruned, exact):
        with pytest.raises(
            lorashear.LorashearError, match="not empty; choose another one or pass --overwrite|are the same"
        ):
            recovered(pruned, out, text=kinds, dense=exact)
        with pytest.raises(lorashear.LorashearError, match="are the same or lie one in the other"):
            recovered(pruned, out, text=kinds, dense=exact, overwrite=True)


def test_the_command_line(
    exact: Path,
    pruned: Path,
    kinds: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = f"recover {pruned} --out {tmp_path / 'out'} --tokens 4000 --context 32 --rank 2 --dense {exact}".split()
    words += [word for name, path in kinds.items() for word in ("--text", f"{name}={path}")]
    monkeypatch.setattr("sys.argv", ["lorashear", *words])
    with pytest.raises(SystemExit) as done:
        main()
    printed = capsys.readouterr()
    assert done.value.code == 0, printed.err
    lines = [line.split() for line in printed.out.splitlines()]
    assert [line[0] for line in lines if line[0] in ("subset", *kinds)] == ["subset", *kinds]
    assert "  mixed +" in printed.err  # with the steps


class TestNames:
    def test_a_file_that_is_called_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a=b.txt").write_text("text")
        assert subsets.named(["a=b.txt", "c.txt"]) == {"text": ["a=b.txt", "c.txt"]}
        assert subsets.named(["a=c.txt", "x", "d=owner/name:config:split"]) == {
            **{"a": ["c.txt"], "text": ["x"]},
            "d": ["owner/name:config:split"],
        }
        assert subsets.named("some/place=here/c.txt") == {"text": ["some/place=here/c.txt"]}

    def test_a_mapping(self) -> None:
        assert subsets.named({"a": "one", "b": [Path("two"), "three"]}) == {"a": ["one"], "b": [Path("two"), "three"]}
        assert subsets.named(()) == {}


def test_a_share_of_lhspg_leaves_a_step_to_recover_in(
    exact: Path, kinds: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    """And steps are counted through all stages, whose windows come in other orders."""
    seen: list[Step] = []
    settings: dict[str, Any] = {"windows": 8, "stepped": seen.append, "lhspg": 0.99, **SETTINGS}
    found = lorashear.compile(
        exact, 0.4, tmp_path / "out", text=kinds, instruct=questions, tokens=4000, **settings
    ).report
    text, tuning = found["recovery"]["stages"]
    assert text["steps"] == 1 and text["before"] + 1 == text["schedule"]
    assert [step.step for step in seen] == list(range(1, text["schedule"] + tuning["steps"] + 1))
    assert tuning["rate"] == pytest.approx(0.2 * text["rate"])


def test_stages_draw_in_other_orders() -> None:
    rows = torch.arange(12)[:, None].expand(12, 4)
    drawn = [
        Mixture([Subset("a", rows, rows[:0])], Hyperparameters(3, 1.0, batch=12), stage=stage).draw()[:, 0].tolist()
        for stage in (0, 1, 2)
    ]
    assert sorted(drawn[0]) == sorted(drawn[1]) == list(range(12)) and len({tuple(each) for each in drawn}) == 3


def test_what_was_settled_stays_settled(
    exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is free when a run goes on does not change what it learns from."""
    request: dict[str, Any] = {"text": kinds, "tokens": 4000, "dense": exact, "save_every": "3", **SETTINGS}

    def interrupted(step: Step) -> None:
        if step.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lorashear.recover(pruned, tmp_path / "out", stepped=interrupted, **request)
    monkeypatch.setattr("lorashear.learning.fitting.available", lambda _: 0)
    found = lorashear.recover(pruned, tmp_path / "out", resume=True, **request).report
    assert found["training"]["distill"] == 0.8
    log = (tmp_path / "out" / "lorashear" / "training.jsonl").read_text()
    assert len(log.splitlines()) == 16 and '"divergence": null' not in log


def test_which_dense_model_it_is(
    exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def why(**report: Any) -> str:
        named = Path(shutil.copytree(pruned, tmp_path / f"named{len(list(tmp_path.iterdir()))}"))
        path = named / "lorashear" / "report.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model": "owner/dense", **report}))
        more = {"dense": "none"} if not report else {}
        return recovered(named, tmp_path / f"out-{named.name}", text=kinds["runs"], tokens=300, **more)["recovery"][
            "why"
        ]

    assert why().startswith("no dense model is wanted, and nothing says")
    assert why(lora=True).startswith(
        "owner/dense is dense only with the adapter that it was pruned with (--lora DIR), and"
    )
    resolve = lorashear.disk.checkpoint.resolve  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "lorashear.disk.checkpoint.resolve",
        lambda model, revision=None: exact if model == "owner/dense" else resolve(model, revision),
    )
    monkeypatch.setattr("lorashear.learning.fitting.available", lambda _: 0)
    assert why(lora=False).startswith("owner/dense, the dense model, has 0.0 GB, 0.0 GB of memory are free, and")


def test_the_card_says_what_was_done_last(exact: Path, pruned: Path, kinds: dict[str, Path], tmp_path: Path) -> None:
    first = lorashear.recover(pruned, tmp_path / "one", text=kinds, tokens=1500, dense=exact, **SETTINGS)
    more: dict[str, Any] = {"context": 32, "learning_rate": 1e-3, "distill": 0.0, "full": True, "mixture": "static"}
    lorashear.recover(first.folder, tmp_path / "two", text=kinds, tokens=1500, dense=exact, **more)
    card = (tmp_path / "two" / "README.md").read_text()
    assert "(learning rate 1.0e-03)" in card and "the shares of what was drawn did not follow it" in card
    assert "the shares of what was drawn followed it" in (tmp_path / "one" / "README.md").read_text()
