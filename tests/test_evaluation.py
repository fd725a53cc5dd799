"""`lorashear eval`: figures against their definitions, side by side, written down, in a card, stopped and gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from conftest import WORDS
from lorashear import cache
from lorashear.cli import main
from lorashear.disk.folder import write_json
from lorashear.errors import LorashearError
from lorashear.evaluation import accuracies, carding, choices, perplexities, table
from lorashear.evaluation.measures import NOISE, Finding
from lorashear.evaluation.perplexities import OfText
from lorashear.evaluation.reproducing import compared, said, verdict
from lorashear.evaluation.subjects import Subject
from lorashear.evaluation.texts import texts, windows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pruned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "small"
    lorashear.compile(folder, 0.3, out, one_shot=True)
    return out


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, of choices between words."""
    place = tmp_path_factory.mktemp("items")
    random = np.random.default_rng(0)
    for name, count in {"first": 40, "second": 30}.items():
        rows = []
        for _ in range(count):
            words = [WORDS[i] for i in random.integers(0, 94, 12)]
            rows.append({"query": " ".join(words[:8]), "choices": words[8:], "gold": int(random.integers(0, 4))})
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def model_and_tokenizer(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def figure_of(report: Any, name: str) -> Any:
    return next(figure for figure in report["figures"] if figure["name"] == name)


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_every_token_is_scored_once_with_as_much_before_it_as_the_stride_leaves(
    folder: Path, tmp_path: Path, stride: int | None
) -> None:
    """Against a loop over tokens, each predicted by a forward of its own."""
    file = tmp_path / "some.txt"
    file.write_text(" ".join(WORDS[(7 * i * i) % 94] for i in range(70)))
    context, step = 16, stride or 16
    report = lorashear.evaluate(folder, text=file, context=context, stride=stride).report
    (found,) = figure_of(report, "some.txt")["results"]
    model, tokenizer = model_and_tokenizer(folder)
    ids = [0, *tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]]
    losses: dict[int, float] = {}
    for begin in range(0, len(ids) - context + 1, step):
        for at in range(begin + 1, begin + context):
            if at not in losses:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([ids[begin:at]])).logits[0, -1].double()
                losses[at] = -logits.log_softmax(-1)[ids[at]].item()
    fitting = (len(ids) - context) // step * step + context
    starts = range(0, fitting, context) if stride is None else [0]
    assert sorted(losses) == [at for at in range(fitting) if at not in starts]
    assert found["tokens"] == len(losses)
    assert found["nll"] == pytest.approx(sum(losses.values()) / len(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))
    assert found["bits_per_byte"] == pytest.approx(
        found["nll"] / math.log(2) * (len(ids) - 1) / len(file.read_bytes()), rel=1e-9
    )


def test_standard_errors_of_a_loss_are_those_of_windows_drawn_again(folder: Path, text: Path) -> None:
    """The spread of the figure over samples of windows, drawn with replacement, is what is reported."""
    (one,) = texts([text], 16, None, 0)
    model, tokenizer = model_and_tokenizer(folder)
    made = windows(one, tokenizer, 16)
    report = lorashear.evaluate(folder, text=text, context=16).report
    (found,) = figure_of(report, text.name)["results"]
    from lorashear.likelihood import window_losses

    sums, counts = (each.double().numpy() for each in window_losses(model, made.at(slice(None))))
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(sums), len(sums)) for _ in range(2000)]
    assert found["error"] == pytest.approx(np.std([sums[i].sum() / counts[i].sum() for i in drawn]), rel=0.1)


def test_bits_a_byte_do_not_depend_on_how_a_tokenizer_cuts(folder: Path, tmp_path: Path) -> None:
    """A model that takes every token for equally likely, whose tokenizer has other pieces: compared in bits a byte, unpaired."""
    other, file = tmp_path / "other", tmp_path / "some.txt"
    file.write_text(" ".join(WORDS[(5 * i + i * i) % 94] for i in range(300)))
    shutil.copytree(folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"w|\d"}, "behavior": "Isolated", "invert": False}
    (other / "tokenizer.json").write_text(json.dumps(content))
    figure = figure_of(lorashear.evaluate([folder, other], text=file, context=32).report, "some.txt")
    one, two = figure["results"]
    assert two["tokens"] > 1.5 * one["tokens"]
    difference = figure["differences"][1]
    assert not difference["paired"] and "nll" not in difference
    assert difference["bits_per_byte"] == pytest.approx(two["bits_per_byte"] - one["bits_per_byte"])
    assert difference["error"] == pytest.approx(math.hypot(one["bits_error"], two["bits_error"]))
    for each in (one, two):
        assert each["bits_error"] / each["bits_per_byte"] == pytest.approx(each["error"] / each["nll"])


def test_a_text_is_named_and_read_whole_or_in_part(folder: Path, text: Path, tmp_path: Path) -> None:
    note, again = tmp_path / "note.txt", tmp_path / "more" / "note.txt"
    again.parent.mkdir()
    note.write_text("w1 w2\n\nw3 w4\n")
    again.write_text("w5")
    assert [one.name for one in texts([text, note], 8, None, 0)] == ["text.jsonl", "note.txt"]
    assert [one.name for one in texts([f"mine={text}", note], 8, None, 0)] == ["mine", "note.txt"]
    assert [one.name for one in texts({"both": [text, note]}, 8, None, 0)] == ["both"]
    assert [one.name for one in texts([note, again], 8, None, 0)] == [str(note), str(again)]
    with pytest.raises(LorashearError, match="twice"):
        texts([note, note], 8, None, 0)
    assert texts([note], 8, None, 0)[0].documents == ("w1 w2\n\nw3 w4\n",)
    assert texts([note], 8, None, 0, packed=False)[0].documents == ("w1 w2", "w3 w4")
    (few,) = texts([text], 8, 2, 0)
    assert 1 <= len(few.documents) < 40 and few.documents == texts([text], 8, 2, 0)[0].documents
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (every,) = texts([text], 8, None, 0)
    assert len(windows(every, tokenizer, 8)) == 40 * 201 // 8
    spread = windows(every, tokenizer, 8, limit=10, seed=3)
    assert len(spread) == 10 and spread.digest == windows(every, tokenizer, 8, limit=10, seed=3).digest
    assert spread.digest != windows(every, tokenizer, 8, limit=10, seed=4).digest
    alone = windows(every, tokenizer, 8, packed=False)
    assert len(alone) == 40 and alone.tokens == 40 * 200
    assert bool((alone.at(slice(None))[:, 0] == 0).all())


def test_documents_apart_are_paragraphs_and_as_many_as_asked_for(folder: Path, text: Path, tmp_path: Path) -> None:
    note, ask = tmp_path / "note.txt", {"packed": False, "context": 16}
    note.write_text("\n\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(20)))
    figure = figure_of(lorashear.evaluate(folder, text=note, **ask).report, "note.txt")
    assert (figure["data"]["documents"], figure["results"][0]["windows"], figure["results"][0]["tokens"]) == (
        20,
        20,
        60,
    )
    figure = figure_of(lorashear.evaluate(folder, text=text, limit=30, **ask).report, "text.jsonl")
    assert (figure["data"]["documents"], figure["results"][0]["windows"]) == (30, 30)


def test_text_that_memory_does_not_hold_is_sampled(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorashear.text.corpus.MEMORY_BYTES", 1000)
    with pytest.raises(LorashearError, match=r"text.jsonl is too large to be evaluated whole: say how many windows"):
        lorashear.evaluate(folder, text=text, context=16)
    figure = figure_of(lorashear.evaluate(folder, text=text, context=16, limit=5).report, "text.jsonl")
    assert figure["results"][0]["windows"] == 5 and figure["data"]["documents"] < 40
    apart = lorashear.evaluate(folder, text=text, context=16, limit=7, packed=False).report
    assert figure_of(apart, "text.jsonl")["results"][0]["windows"] == 7


def test_models_side_by_side(folder: Path, pruned: Path, text: Path, items: Path, tmp_path: Path) -> None:
    """Differences are of the same windows and items; marks say what is noise, and what is chance; all of it is in the JSON."""
    tasks = [items / "first.jsonl", items / "second.jsonl"]
    found = lorashear.evaluate([folder, folder, pruned], text=text, tasks=tasks, context=32)
    report: Any = found.report
    words = figure_of(report, "text.jsonl")
    same, other = words["differences"][1:]
    assert (same["nll"], same["error"], same["noise"], same["paired"]) == (0, 0, True, True)
    assert other["nll"] == pytest.approx(words["results"][2]["nll"] - words["results"][0]["nll"])
    assert other["noise"] == (abs(other["nll"]) <= NOISE * other["error"])
    assert other["error"] < math.hypot(words["results"][0]["error"], words["results"][2]["error"])

    first, second, mean = (figure_of(report, name) for name in ("first", "second", "average of 2 tasks"))
    for figure in (first, second):
        assert figure["chance"] == 0.25 and figure["results"][0] == figure["results"][1]
        for result in figure["results"]:
            share, error = result["accuracy"], result["accuracy_error"]
            assert error == pytest.approx(math.sqrt(share * (1 - share) / (figure["items"] - 1)))
            guessing = math.sqrt(0.25 * 0.75 / figure["items"])
            assert result["accuracy_at_chance"] == (share <= 0.25 + NOISE * guessing)
    for kind in ("accuracy", "normalised"):
        assert mean["results"][2][kind] == pytest.approx((first["results"][2][kind] + second["results"][2][kind]) / 2)
    assert mean["differences"][2]["accuracy_error"] == pytest.approx(
        math.hypot(*(figure["differences"][2]["accuracy_error"] for figure in (first, second))) / 2
    )

    for figure in (words, first, second):
        assert len(figure["data"]["sha256"]) == 64 and "seed" in figure
    assert [len(model["sha256"]) for model in report["models"]] == [64, 64, 64]
    assert report["models"][0]["sha256"] == report["models"][1]["sha256"] != report["models"][2]["sha256"]
    assert (words["context"], words["stride"], words["data"]["split"]) == (32, 32, ["text.jsonl"])
    assert {"lorashear", "python", "torch", "transformers", "machine", "device", "threads"} <= report[
        "made_with"
    ].keys()
    found.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))

    shown = str(found)
    lines = shown.splitlines()
    assert lines[0].split() == [folder.name, folder.name, "(2)", "difference", "small", "difference"]
    assert "≈ within noise" in shown and "° at chance level" in shown
    line = next(line for line in lines if line.startswith("first: accuracy  "))
    assert "+0.0 ±0.0 ≈" in line and f"{100 * first['results'][0]['accuracy']:.1f} ±" in line
    for name in ("text.jsonl: perplexity", "text.jsonl: bits a byte", "average of 2 tasks: accuracy, by length"):
        assert any(line.startswith(name) for line in lines)
    rows = [line for line in table.markdown(report).splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {7} and len(rows) == 2 + len(table.rows(report))


def test_a_model_that_knows_is_not_at_chance(folder: Path, items: Path, tmp_path: Path) -> None:
    """Gold is what this model takes to be likeliest: 100 of 100 right is no chance, and a pruned one differs by more than noise."""
    (suite,) = lorashear.evaluate(folder, tasks=items / "first.jsonl").report["figures"]
    assert suite["results"][0]["accuracy_at_chance"]
    from lorashear.evaluation.choices import score
    from lorashear.evaluation.items import read

    model, tokenizer = model_and_tokenizer(folder)
    told = score(model, tokenizer, read(items / "first.jsonl"))
    rows = [json.loads(line) for line in (items / "first.jsonl").read_text().splitlines()]
    for row, likelihoods in zip(rows, told.loglikelihoods, strict=True):
        row["gold"] = int(np.argmax(likelihoods))
    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shuffled = tmp_path / "shuffled"
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(shuffled)
    tokenizer.save_pretrained(shuffled)
    (figure,) = lorashear.evaluate([folder, shuffled], tasks=mine).report["figures"]
    assert figure["results"][0]["accuracy"] == 1 and not figure["results"][0]["accuracy_at_chance"]
    assert figure["results"][1]["accuracy_at_chance"] and not figure["differences"][1]["accuracy_noise"]


def test_a_model_in_memory_and_an_adapter_beside_a_result(folder: Path, text: Path, tmp_path: Path) -> None:
    model, tokenizer = model_and_tokenizer(folder)
    model.train()
    one = lorashear.evaluate(model, tokenizer=tokenizer, text=text, context=32).report["figures"][0]["results"][0]
    assert model.training
    two = lorashear.evaluate(folder, text=text, context=32).report["figures"][0]["results"][0]
    assert one["nll"] == two["nll"]
    with pytest.raises(LorashearError, match="pass tokenizer"):
        lorashear.evaluate(model, text=text, context=32)
    kept, merged = tmp_path / "kept", tmp_path / "merged"
    for out, adapter in ((kept, "keep"), (merged, "merge")):
        settings: dict[str, Any] = {
            "context": 32,
            "rank": 2,
            "windows": 8,
            "tokens": 3000,
            "dtype": "float32",
            "learning_rate": 1e-2,
        }
        lorashear.compile(folder, 0.2, out, text=text, adapter=adapter, **settings)
    report: Any = lorashear.evaluate([kept, merged], text=text, context=32).report
    assert [model["adapter"] for model in report["models"]] == [True, False]
    nats = [each["nll"] for each in report["figures"][0]["results"]]
    assert nats[0] == pytest.approx(nats[1], abs=0.01)  # merged, what is stored is bfloat16
    shutil.rmtree(kept / "adapter")
    bare = lorashear.evaluate(kept, text=text, context=32).report
    assert abs(bare["figures"][0]["results"][0]["nll"] - nats[0]) > 0.02
    assert bare["models"][0]["sha256"] != report["models"][0]["sha256"]


def test_few_items_are_noise_even_where_they_all_say_the_same() -> None:
    for count, few in ((5, True), (6, False)):
        right = Finding({"accuracy": 1.0}, {"accuracy": [1.0] * count})
        wrong = Finding({"accuracy": 0.0}, {"accuracy": [0.0] * count})
        found = accuracies.compared(right, wrong)
        assert found == {"accuracy": -1.0, "accuracy_error": 0.0, "accuracy_noise": few}


def test_tokens_that_a_model_does_not_have_are_refused(folder: Path, text: Path, items: Path, tmp_path: Path) -> None:
    """As where tokens were added to the tokenizer alone."""
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    config = json.loads((mine / "config.json").read_text())
    tokenizer = json.loads((mine / "tokenizer.json").read_text())
    word = next(iter(tokenizer["model"]["vocab"]))
    tokenizer["model"]["vocab"][word] = config["vocab_size"]
    (mine / "tokenizer.json").write_text(json.dumps(tokenizer))
    ask = tmp_path / "ask.txt", tmp_path / "asked.jsonl"
    ask[0].write_text(f"{word} " * 40)
    ask[1].write_text(json.dumps({"query": word, "choices": [word, f"{word} {word}"], "gold": 0}) + "\n")
    for given in ({"text": ask[0], "context": 8}, {"tasks": ask[1]}, {"tasks": ask[1], "harness": True}):
        with pytest.raises(LorashearError, match=r"^ask\S* has the token id \d+, and the model's ids end at \d+:"):
            lorashear.evaluate(mine, **given)


def test_each_model_of_a_hub_has_its_revision(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of two commits is reproduced from both."""
    asked: list[Any] = []
    of = Subject.of
    monkeypatch.setattr(
        Subject,
        "of",
        lambda model, **named: (
            asked.append((str(model), named["revision"])),
            of(folder, **{**named, "revision": None}),
        )[1],
    )
    lorashear.evaluate(["me/one", "me/two"], revision=["a1", None], text=text, context=32)
    assert asked == [("me/one", "a1"), ("me/two", None)]
    with pytest.raises(LorashearError, match="^revision has 1 for 2 models"):
        lorashear.evaluate(["me/one", "me/two"], revision=["a1"], text=text, context=32)


def test_the_error_of_a_difference_is_in_its_own_unit() -> None:
    """A perplexity that is e times as large, ± a hundredth of a nat: 171.8 % more, ± 2.7 points."""
    results = [{"nll": 1.0, "perplexity": math.e, "error": 0.01, "bits_per_byte": 1.0, "bits_error": 0.01}] * 2
    difference = {"paired": True, "nll": 1.0, "error": 0.01, "bits_per_byte": 0.5, "noise": False}
    figure = {"kind": "perplexity", "name": "text", "results": results, "differences": [None, difference]}
    models = [{"name": name, "parameters": 1, "bytes": 1} for name in "ab"]
    (row,) = [row for row in table.rows({"models": models, "figures": [figure]}) if row.label == "text: perplexity"]
    assert row.differences == ["–", "+171.8 % ±2.7"]


def test_what_is_no_number_is_no_figure(folder: Path, text: Path, items: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model, tokenizer = model_and_tokenizer(folder)
    model.model.norm.weight.data[0] = math.nan
    model.save_pretrained(broken)
    tokenizer.save_pretrained(broken)
    for ask in (
        {"text": text, "context": 16},
        {"tasks": items / "first.jsonl"},
        {"tasks": items / "first.jsonl", "harness": True},
    ):
        with pytest.raises(LorashearError, match="its weights are not finite"):
            lorashear.evaluate(broken, **ask)


def test_the_harness_and_task_files(
    folder: Path, pruned: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the harness the same figures; a task of a user's own beside them, known by all that it is made of; reproduced."""
    task, helper = tmp_path / "mine.yaml", tmp_path / "help.py"
    helper.write_text("def asked(row):\n    return row['query']\n")
    (tmp_path / "items.jsonl").write_text((items / "first.jsonl").read_text())
    task.write_text(
        "task: mine\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        "dataset_kwargs:\n  data_files:\n    test: items.jsonl\n"
        "doc_to_text: !function help.asked\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    first = items / "first.jsonl"
    own = lorashear.evaluate([folder, pruned], tasks=first).report["figures"][0]
    found = lorashear.evaluate([folder, pruned], tasks=[first, task], harness=True)
    theirs, mine = found.report["figures"]
    for one, other in zip(own["results"], theirs["results"], strict=True):
        assert {name: other[name] for name in other} == {name: one[name] for name in other}
    assert own["differences"] == theirs["differences"] and theirs["by"] == "lm_eval"
    for one, result in zip(own["results"], mine["results"], strict=True):
        assert result["metrics"] == {"acc": one["accuracy"], "acc_norm": one["normalised"]}
        assert result["errors"]["acc"] == pytest.approx(one["accuracy_error"])
    assert mine["differences"][1]["errors"]["acc"] == pytest.approx(own["differences"][1]["accuracy_error"])
    assert (mine["data"]["split"], mine["seed"]) == ("test", 1234)
    assert any(line.startswith("mine: acc_norm") for line in str(found).splitlines())
    found.save(tmp_path / "report.json")
    before, again = compared(tmp_path / "report.json")
    assert verdict(before, again.report) is None
    helper.write_text("def asked(row):\n    return 'w1'\n")
    changed = lorashear.evaluate(folder, tasks=task, harness=True).report["figures"][0]
    assert changed["data"]["sha256"] != mine["data"]["sha256"]
    (tmp_path / "other").mkdir()
    shutil.copy(first, tmp_path / "other" / "first.jsonl")
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.models.huggingface", None)
    with pytest.raises(LorashearError, match=r"pip install 'lorashear\[eval\]'"):
        lorashear.evaluate(folder, tasks=first, harness=True)


def test_a_stopped_run_goes_on(
    folder: Path, pruned: Path, text: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is not computed again, the report is the one of a run in one go, and nothing is left behind."""
    ask: dict[str, Any] = {"text": text, "tasks": items / "first.jsonl", "context": 32}
    whole = lorashear.evaluate([folder, pruned], **ask).report
    kept = cache.folder() / "evaluations"
    assert not kept.exists() or not any(kept.iterdir())
    ran: list[str] = []
    of = OfText.of

    def spied(self: OfText, subject: Any, *rest: Any) -> Any:
        ran.append(subject.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return of(self, subject, *rest)

    monkeypatch.setattr(OfText, "of", spied)
    with pytest.raises(KeyboardInterrupt):
        lorashear.evaluate([folder, pruned], **ask)
    assert ran == [str(folder), str(pruned)] and any(kept.iterdir())
    assert lorashear.evaluate([folder, pruned], **ask).report == whole
    assert ran == [str(folder), str(pruned), str(pruned)]
    assert not any(kept.iterdir())
    lorashear.evaluate([folder, pruned], **ask)
    assert ran[3:] == [str(folder), str(pruned)]  # what a run that ended has found is not taken from anywhere


@pytest.mark.parametrize("torn", [False, True])
def test_a_stopped_run_goes_on_within_a_text_and_a_task(
    torn: bool, folder: Path, text: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and items that were scored are not scored again, and a piece that was not written to its end is."""
    monkeypatch.setattr("lorashear.evaluation.texts.TOKENS_AT_ONCE", 4 * 32)
    monkeypatch.setattr(choices, "TOKENS_PER_BATCH", 8)
    ask: dict[str, Any] = {"text": text, "tasks": items / "first.jsonl", "context": 32}
    computed, least = [0, 0], [10**9, 10**9]
    stop: list[int] = []

    def counted(which: int, compute: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            if computed[which] == least[which]:
                stop.append(which)
                raise KeyboardInterrupt
            computed[which] += 1
            return compute(*args, **named)

        return call

    monkeypatch.setattr(perplexities, "window_losses", counted(0, perplexities.window_losses))
    monkeypatch.setattr(choices, "_scored", counted(1, choices._scored))
    whole = lorashear.evaluate(folder, **ask).report
    every = list(computed)
    assert min(every) > 3
    kept = cache.folder() / "evaluations"
    for which in (0, 1):
        computed[:], least[which] = [0, 0], 2
        with pytest.raises(KeyboardInterrupt):
            lorashear.evaluate(folder, **ask)
        least[which] = 10**9
        if torn:
            file = next(each for each in kept.glob("*.jsonl"))
            file.write_text(file.read_text().rstrip()[:-3])
    assert stop == [0, 1]
    assert lorashear.evaluate(folder, **ask).report == whole
    # in three runs: the text once, but for what was torn, and two batches of items before the stop
    assert computed[1] == every[1] + torn and not any(kept.iterdir())


def test_a_run_goes_on_with_nothing_that_was_found_of_another_tokenizer(
    folder: Path, pruned: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    of = OfText.of
    monkeypatch.setattr(
        OfText, "of", lambda self, subject, *rest: stop() if subject.name != str(mine) else of(self, subject, *rest)
    )

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lorashear.evaluate([mine, pruned], text=text, context=32)
    content = json.loads((mine / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"w|\d"}, "behavior": "Isolated", "invert": False}
    (mine / "tokenizer.json").write_text(json.dumps(content))
    monkeypatch.undo()
    fresh = lorashear.evaluate(mine, text=text, context=32).report
    again = lorashear.evaluate([mine, pruned], text=text, context=32).report
    assert again["figures"][0]["results"][0] == fresh["figures"][0]["results"][0]
    assert again["models"][0]["tokenizer"] != again["models"][1]["tokenizer"]


def test_a_report_is_reproduced_or_not(
    folder: Path, pruned: Path, text: Path, items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    shutil.copytree(folder, model)
    shutil.copy(text, data)
    ask: dict[str, Any] = {"text": data, "tasks": items / "first.jsonl", "context": 32, "stride": 16}
    path = tmp_path / "report.json"
    lorashear.evaluate([model, pruned], **ask).save(path)

    def again(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lorashear", "eval", "--reproduce", str(path), *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out + shown.err

    code, shown = again()
    assert code == 0 and "DIFFERS" not in shown and "not judged" not in shown
    assert code == again(folder, pruned)[0]  # the same weights somewhere else
    monkeypatch.setattr("lorashear.evaluation.speed.peak_bytes", lambda *_, **__: 1 << 20)
    speed = lorashear.evaluate(folder, speed=True, prompt=8, new_tokens=2, rounds=2).report
    faster = json.loads(json.dumps(speed))
    faster["figures"][0]["results"][0]["decode"] *= 3
    assert verdict(speed, faster) is None and "not judged" in said(speed, faster)

    report = json.loads(path.read_text())
    wrong = json.loads(path.read_text())
    wrong["figures"][0]["results"][1]["nll"] += 1e-3
    assert verdict(report, report) is None and "came out differently" in (verdict(wrong, report) or "")
    assert "DIFFERS" in said(wrong, report)

    data.write_text(text.read_text().replace("w1 ", "w2 "))
    code, shown = again()
    assert code == 1 and "data.jsonl: data" in shown and "came out differently" in shown
    shutil.copy(text, data)
    code, shown = again(pruned, pruned)
    assert code == 1 and "weights" in shown
    assert again(folder)[0] == 2
    asked, figure = report["asked"], report["figures"][0]
    for broken in (
        {},
        {**report, "format": 99},
        {**report, "asked": {**asked, "more": 1}},
        {**report, "models": report["models"][:1]},
        {**report, "models": [1, 2]},
        {**report, "figures": [{**figure, "results": figure["results"][:1]}]},
        {**report, "figures": [{**figure, "kind": "none"}]},
    ):
        write_json(tmp_path / "broken.json", broken)
        with pytest.raises(LorashearError, match="is no whole report of lorashear eval"):
            compared(tmp_path / "broken.json")
    write_json(tmp_path / "broken.json", {**report, "figures": report["figures"][:1]})
    with pytest.raises(LorashearError, match="has other figures than what it asks for gives"):
        compared(tmp_path / "broken.json")
    code, shown = again("--context", 16)
    assert code == 2 and "--context would change that" in shown
    (tmp_path / "moved").mkdir()
    data.rename(tmp_path / "moved" / "data.jsonl")
    assert again("--text", tmp_path / "moved" / "data.jsonl")[0] == 0
    with pytest.raises(LorashearError, match="is no file"):
        compared(tmp_path / "none.json")


def test_the_card_gets_the_table(folder: Path, pruned: Path, text: Path, items: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    shutil.copytree(pruned, result)
    before = (result / "README.md").read_text()
    found = lorashear.evaluate([folder, result], text=text, tasks=items / "first.jsonl", context=32)
    carding.write(found, carding.check([str(folder), str(result)]))
    once = (result / "README.md").read_text()
    assert once.startswith(before.rstrip()) and once.count("## Evaluation") == 1
    assert table.markdown(found.report) in once and not any(str(place.parent) in once for place in (text, items))
    assert json.loads((result / "lorashear" / "evaluation.json").read_text())["figures"] == found.report["figures"]
    (result / "README.md").write_text(once + "\nMy own words.\n")
    other = lorashear.evaluate([folder, result], text=text, context=16)
    carding.write(other, carding.check([str(result)]))
    twice = (result / "README.md").read_text()
    assert twice.count("## Evaluation") == 1 and "context 16" in twice and "context 32" not in twice
    assert twice.endswith("\nMy own words.\n")
    with pytest.raises(LorashearError, match="none is among the models"):
        carding.check([str(folder)])
    (result / "README.md").write_text(twice.replace(carding.END, ""))
    with pytest.raises(LorashearError, match="not one beginning and one end"):
        carding.check([str(result)])


def test_the_command(
    folder: Path, pruned: Path, text: Path, items: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "report.json"

    def told(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["lorashear", "eval", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    # tests/test_peak_memory.py measures it, in a process for each model
    monkeypatch.setattr("lorashear.evaluation.speed.peak_bytes", lambda *_, **__: 1 << 20)
    ask = (folder, pruned, "--text", f"mine={text}", "--tasks", items / "first.jsonl", "--context", 32, "--speed")
    runs = ("--batches", "1,2", "--prompt", 8, "--new-tokens", 2, "--rounds", 2, "--out", out)
    code, shown, _ = told(*ask, *runs)
    assert code == 0 and "mine: perplexity" in shown and "batch 2: decode, tokens/s" in shown
    report = json.loads(out.read_text())
    assert [figure["name"] for figure in report["figures"]] == ["mine", "first", "batch 1", "batch 2"]
    speed = figure_of(report, "batch 2")
    assert speed["differences"][1]["decode"] > 0 and speed["results"][0]["cache_bytes"] == 2 * 2 * 2 * 4 * 8 * 10 * 4
    assert speed["results"][1]["weight_bytes"] < speed["results"][0]["weight_bytes"]
    code, _, error = told(folder, folder, "--text", text, "--context", 32, "--card")
    assert code == 2 and "none is among the models" in error
    code, _, error = told(*ask, "--out", out)
    assert code == 2 and "report.json" in error and json.loads(out.read_text()) == report
    code, shown, _ = told(folder, "--text", text, "--context", 32, "--json")
    assert code == 0 and json.loads(shown)["figures"][0]["kind"] == "perplexity"

    latin, single, choice, task = (tmp_path / name for name in ("latin.txt", "one.jsonl", "choice.jsonl", "task.yaml"))
    latin.write_bytes("é".encode("latin-1") * 50)
    single.write_text('{"query": "w1", "choices": ["w2", "w3"]}\n')
    choice.write_text('{"query": "w1", "choices": ["w2"], "gold": 0}\n')
    task.write_text("task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: missing.jsonl\n")
    for words, sentence in (
        ((folder,), "nothing is asked for"),
        ((), "no model is given"),
        ((folder, "--text", text, "--context", 128), "positions of .* end at 64: pass a smaller one"),
        ((folder, "--text", text, "--context", 16, "--stride", 17), "stride is 17, more than the context of 16"),
        ((folder, "--text", text, "--stride", 4, "--apart"), "leave one of them out"),
        ((folder, "--text", text, "--limit", 0), "limit is 0"),
        ((folder, "--text", latin), "is not UTF-8 text"),
        ((folder, "--tasks", single), "line 1: no gold answer"),
        ((folder, "--tasks", choice), "leaves nothing to choose"),
        ((folder, "--tasks", task), "let that run it"),
        ((folder, "--tasks", task, "--harness"), "missing.jsonl"),
        ((folder, "--tasks", "piqua"), "piqua is no task"),
        ((folder, "--text", text, "--harness"), "harness needs tasks"),
        ((folder, "--text", text, "--items", items), "items needs tasks"),
        ((folder, "--tasks", items / "first.jsonl", "--items", items), "none of .*first.jsonl is one: leave items out"),
        ((folder, "--text", text, "--rounds", 9), "rounds needs speed"),
        ((folder, "--speed", "--apart"), "apart needs text"),
        ((folder, "--speed", "--batches", "1;2"), "batches is '1;2'"),
        ((folder, "--speed", "--prompt", 60, "--new-tokens", 10), "positions"),
        ((folder, "--text", text, "--card"), "none is among the models"),
        ((folder, "--text", text, "--context", 8, "--dtype", "int8"), "dtype is int8"),
        ((folder, "--speed", "--batches", "1,1"), "several different ones"),
        ((folder, "--speed", "--rounds", 0), "rounds is 0"),
        ((folder, "--tasks", f"{items / 'first.jsonl'}", "--text", f"first={text}"), "are called first"),
    ):
        code, shown, error = told(*words)
        lines = [line for line in error.splitlines() if line.startswith("lorashear: ")]
        assert code == 2 and len(lines) == 1 and not shown, words
        assert __import__("re").search(sentence, lines[0]), lines[0]


DENSE = [
    ("stories260k", "tinystories/test.jsonl", True, 512, 606046, 1.3479),
    ("tinystories-656k", "tinystories/test.jsonl", False, 512, 279281, 2.8395),
    ("stories260k", "tinystories/test.jsonl", True, 128, 602869, 1.4452),
    ("stories260k", "tinystories/valid.jsonl", True, 512, 589183, 1.3333),
    ("stories260k", "tinystories/valid.jsonl", True, 128, 585851, 1.4304),
    ("stories260k", "tinystories/test.jsonl", False, 512, 559988, 1.3055),
    ("stories260k", "tinystories/valid.jsonl", False, 512, 557030, 1.2944),
    ("stories260k", "wikitext-2/test.txt", True, 512, 760368, 5.2276),
    ("stories260k", "tinyshakespeare.txt", True, 512, 691894, 4.7450),
    ("stories260k", "c4/valid.jsonl", True, 512, 1370502, 3.9113),
    ("tinystories-656k", "tinystories/valid.jsonl", False, 512, 271697, 2.8205),
    ("tinystories-656k", "tinystories/test.jsonl", True, 512, 281561, 3.6525),
    ("tinystories-656k", "tinystories/test.jsonl", True, 128, 280035, 3.6554),
    ("tinystories-656k", "wikitext-2/test.txt", True, 512, 513044, 7.1069),
    ("tinystories-656k", "tinyshakespeare.txt", True, 512, 500269, 6.1913),
    ("tinystories-656k", "c4/valid.jsonl", True, 512, 909069, 6.0012),
    ("babyllama-105", "tinystories/test.jsonl", True, 256, 1246695, 0.7772),
    ("babyllama-105", "tinystories/test.jsonl", True, 128, 1241806, 0.8087),
    ("babyllama-105", "tinystories/valid.jsonl", True, 256, 1214820, 0.7700),
    ("babyllama-105", "tinystories/valid.jsonl", True, 128, 1210056, 0.8015),
    ("babyllama-105", "wikitext-2/test.txt", True, 256, 1204620, 3.3555),
    ("babyllama-105", "tinyshakespeare.txt", True, 256, 1103640, 2.9640),
    ("babyllama-105", "c4/valid.jsonl", True, 256, 2253435, 2.5982),
]
"""What ../shared/data/README.md says of the dense models: packed or a story each, context, tokens scored, nats a token."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "packed", "context", "tokens", "nll"), DENSE)
def test_stated_losses_of_dense_models(
    shared_data: Path, name: str, file: str, packed: bool, context: int, tokens: int, nll: float
) -> None:
    """Two of them, and all with LORASHEAR_DENSE=all: a quarter of an hour."""
    wanted = (name, file, packed, context, tokens, nll)
    if wanted not in DENSE[:2] and os.environ.get("LORASHEAR_DENSE") != "all":
        pytest.skip("LORASHEAR_DENSE=all runs this one, too")
    report = lorashear.evaluate(
        shared_data / "models" / name, text=shared_data / "text" / file, packed=packed, context=context
    ).report
    (found,) = report["figures"][0]["results"]
    assert (found["tokens"], round(found["nll"], 4)) == (tokens, nll)
