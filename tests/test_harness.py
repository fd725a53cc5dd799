"""The built-in multiple choice and lm-evaluation-harness on the same items, and a user's own tasks."""

from __future__ import annotations

import json
import logging
import math
import random
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorashear
from conftest import WORDS
from lorashear import LorashearError
from lorashear.evaluation import choices, harness
from lorashear.evaluation.items import Suite, read
from lorashear.evaluation.tasks import NAMES, TASKS
from test_tasks import ROWS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In float32: what is rounded to bfloat16 depends on the batch."""
    out = tmp_path_factory.mktemp("pruned")
    lorashear.compile(folder, 0.3, out / "uniform", one_shot=True)
    widths = {"model.layers.0.mlp.ffn": [*range(30)], "model.layers.1.self_attn.head": [1, 2]}
    lorashear.apply(lorashear.plan(folder, widths), folder, out / "per-layer")
    places = {"dense": folder, "uniform": out / "uniform", "per-layer": out / "per-layer"}
    return {name: lorashear.load(place).float() for name, place in places.items()}


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def rows() -> dict[str, list[dict[str, Any]]]:
    """Of each shape, of many lengths; some longer than the models' 64 positions, some with two choices that are the same."""
    draw = np.random.default_rng(1)

    def some(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS, draw.integers(least, most)))

    asked = [
        {
            "query": some(1, 70) + ("\n" if number % 3 else ""),
            "choices": [some(1, 4), some(1, 8), *[some(1, 3)] * 2][: 2 + number % 3],
            "gold": number % 2,
        }
        for number in range(24)
    ]
    asked[3] = {"query": "", "choices": ["w1", "w2 w3", "w2 w4"], "gold": 2}
    asked[4] = {"query": "2024-01-01", "choices": ["2024-01-01", " w2"], "gold": 0}
    asked[5] = {"query": "7", "choices": ["1", "2"], "gold": 0}
    filled = [
        {
            "context_options": [start + some(1, 3), start + some(1, 3)],
            "continuation": some(1, 9),
            "gold": number % 2,
        }
        for number in range(24)
        for start in [some(0, 62) + " "]
    ]
    pairs = [{"good": some(1, 9), "bad": some(1, 9)} for _ in range(24)]
    return {"asked": asked, "filled": filled, "pairs": pairs}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def suites(tmp_path: Path) -> list[Suite]:
    return [read(write(tmp_path / f"{name}.jsonl", some)) for name, some in rows().items()]


def agree(found: choices.Choices, wanted: harness.HarnessChoices) -> None:
    assert found.correct.tolist() == wanted.correct.tolist()
    assert found.normalised.tolist() == wanted.normalised.tolist()
    for ours, theirs in zip(found.loglikelihoods, wanted.loglikelihoods, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert (found.accuracy, found.accuracy_error) == (wanted.accuracy, wanted.accuracy_error)
    assert (found.accuracy_norm, found.accuracy_norm_error) == (wanted.accuracy_norm, wanted.accuracy_norm_error)


@pytest.mark.parametrize("special", ["none", "bos"])
@pytest.mark.parametrize("name", ["dense", "uniform", "per-layer"])
def test_the_built_in_and_the_harness_say_the_same(
    models: dict[str, Any], tokenizer: Any, suites: list[Suite], name: str, special: str
) -> None:
    if special == "bos":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model = models[name]
    theirs = harness.score(model, tokenizer, suites)
    assert list(theirs) == ["asked", "filled", "pairs"]
    truncated = 0
    for suite in suites:
        ours = choices.score(model, tokenizer, suite)
        truncated += ours.truncated
        agree(ours, theirs[suite.name])
        assert 0 < ours.accuracy < 1
    assert truncated > 10
    assert tokenizer.pad_token is None  # the harness gives its own one


def test_the_per_layer_model_is_one(models: dict[str, Any]) -> None:
    def widths(model: Any) -> set[tuple[int, int]]:
        layers = model.model.layers
        return {(one.mlp.up_proj.out_features, one.self_attn.q_proj.out_features) for one in layers}

    assert len(widths(models["per-layer"])) == 2 and len(widths(models["uniform"])) == 1
    ours = {name: type(model).__module__.startswith("lorashear") for name, model in models.items()}
    assert ours == {"dense": False, "uniform": False, "per-layer": True}


def test_a_limit_and_a_single_item(models: dict[str, Any], tokenizer: Any, suites: list[Suite]) -> None:
    for limit in (5, 1):
        ours = choices.score(models["uniform"], tokenizer, suites[0], limit=limit)
        theirs = harness.score(models["uniform"], tokenizer, suites[:1], limit=limit, batch=2)["asked"]
        assert len(theirs.correct) == limit
        if limit > 1:
            agree(ours, theirs)
    assert math.isnan(ours.accuracy_error) and math.isnan(theirs.accuracy_error)
    with pytest.raises(LorashearError, match="^limit is 0; ask for 1 item or more$"):
        harness.score(models["uniform"], tokenizer, suites, limit=0)


def test_it_leaves_nothing_behind_and_says_nothing(
    models: dict[str, Any],
    tokenizer: Any,
    suites: list[Suite],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import datasets.config

    def refused(*_: Any) -> None:
        raise AssertionError("the network is asked")

    home = tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refused)
    before, state, drawn = sorted(tmp_path.rglob("*")), random.getstate(), torch.get_rng_state()
    numbers = np.random.get_state()[1].tolist()
    level = logging.root.manager.disable
    harness.score(models["dense"].train(), tokenizer, suites[:1], limit=3)
    assert all(module.training for module in models["dense"].modules())
    models["dense"].eval()
    assert sorted(tmp_path.rglob("*")) == before
    assert random.getstate() == state and torch.equal(torch.get_rng_state(), drawn)
    assert np.random.get_state()[1].tolist() == numbers
    assert logging.root.manager.disable == level and datasets.config.HF_HUB_OFFLINE is False
    out, err = capfd.readouterr()
    assert not out and not err


def test_it_is_quiet_and_tells_how_far_it_is(
    models: dict[str, Any], tokenizer: Any, suites: list[Suite], capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        print(f"{done} of {total}", file=sys.stderr)

    harness.score(models["dense"], tokenizer, suites[:1], limit=3, batch=2, progress=progress)
    requests = sum(len(item.options) for item in suites[0].items[:3])
    assert [total for _, total in told] == [requests] * len(told) and len(told) > 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert capsys.readouterr() == ("", "".join(f"{done} of {total}\n" for done, total in told))


def test_what_cannot_be_scored_is_said_as_without_the_harness(
    models: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    some = [{"query": "w1", "choices": ["w2", "w3 " * 65], "gold": 0}]
    suite = read(write(tmp_path / "long.jsonl", some))
    with pytest.raises(
        LorashearError, match="^long, item 1, option 2: its continuation has 65 tokens and the model 64"
    ):
        harness.score(models["dense"], tokenizer, [suite])


def test_without_the_harness_the_sentence_says_how_to_get_it(
    models: dict[str, Any], tokenizer: Any, suites: list[Suite], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(
        LorashearError, match=r"^lm-evaluation-harness is not there \(.*\); pip install 'lorashear\[eval\]'$"
    ):
        harness.score(models["dense"], tokenizer, suites)


@pytest.mark.filterwarnings("ignore")
def test_the_seven_tasks_are_those_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own task files, with the rows that test_tasks has in the place of the hub's."""
    import datasets
    import lm_eval.tasks

    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None, **_: Any) -> Any:
        asked.append((path, name))
        (row,) = (ROWS[one][0] for one, task in TASKS.items() if (task.repository, task.config) == (path, name))
        rows = datasets.Dataset.from_list([row])
        return datasets.DatasetDict({"train": rows, "validation": rows, "test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    places = {"boolq": "super_glue/boolq", "arc_easy": "arc", "arc_challenge": "arc"}
    folder = Path(lm_eval.tasks.__file__).parent
    paths = [folder / place for place in dict.fromkeys(places.get(name, name) for name in NAMES)]
    manager = lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
    for name in NAMES:
        task = manager.load([name])["tasks"][name]
        item = ROWS[name][1]
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
        assert asked.pop() == (TASKS[name].repository, TASKS[name].config)
        assert TASKS[name].split == (task.config.test_split or task.config.validation_split)
        assert tuple(request.args for request in task.instances) == item.options
        doc = task.eval_docs[0]
        assert tuple(len(choice) for choice in task.doc_to_choice(doc)) == item.lengths
        assert (task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)) == item.gold


TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


OWN = """\
def doubled(docs):
    return docs.map(lambda doc: {"twice": doc["query"] * 2})

def asked(doc):
    return "w9 " + doc["twice"]
"""


class TestTaskFiles:
    """What a user wrote for the harness."""

    def run(self, models: dict[str, Any], tokenizer: Any, *paths: Path, **how: Any) -> dict[str, harness.HarnessTask]:
        return harness.run(models["uniform"], tokenizer, paths, **how)

    def test_data_beside_the_task_file(
        self, models: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever one is; and what is in the folder stays as it is."""
        (tmp_path / "tasks" / "data").mkdir(parents=True)
        # A template that makes digits alone, as of the query 7, is the number of a choice to the harness.
        items = [row for row in rows()["asked"] if row["query"][-1:] not in ("", "\n", "7")]
        write(tmp_path / "tasks" / "data" / "a.jsonl", items)
        path = tmp_path / "tasks" / "mine.yaml"
        path.write_text(TASK.format(name="mine", data="data/a.jsonl"))
        glob = tmp_path / "tasks" / "glob.yml"
        glob.write_text("include: mine.yaml\ntask: other\ndataset_kwargs: {data_files: {test: ['data/*.jsonl']}}\n")
        monkeypatch.chdir("/")
        before = sorted(tmp_path.rglob("*"))
        found = self.run(models, tokenizer, path, glob)
        assert sorted(tmp_path.rglob("*")) == before
        ours = choices.score(models["uniform"], tokenizer, read(tmp_path / "tasks" / "data" / "a.jsonl"))
        for name in ("mine", "other"):
            assert found[name].metrics == {"acc": ours.accuracy, "acc_norm": ours.accuracy_norm}
            assert found[name].errors == {"acc": ours.accuracy_error, "acc_norm": ours.accuracy_norm_error}
            assert found[name].items["acc"].tolist() == ours.correct.tolist()
            assert found[name].items["acc_norm"].tolist() == ours.normalised.tolist()

    def test_functions_generation_and_filters(
        self, models: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a.jsonl", [{"query": "w1 w2", "answer": "w3"}] * 3)
        (tmp_path / "own.py").write_text(OWN)
        (tmp_path / "base").write_text("dataset_path: json\n")  # templates of the harness's have no ending
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        (tmp_path / "mine.yaml").write_text(
            """\
task: written
include: base
process_docs: !function own.doubled
dataset_kwargs: {data_files: a.jsonl}
test_split: train
output_type: generate_until
doc_to_text: !function own.asked
doc_to_target: answer
generation_kwargs: {max_gen_toks: 3, until: ["w5"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(w[0-9]+)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""
        )
        found = self.run(models, tokenizer, tmp_path / "mine.yaml", limit=2)["written"]
        assert found.metrics.keys() == found.errors.keys() == found.items.keys()
        assert found.metrics.keys() == {"exact_match,first", "exact_match,whole"}
        assert [len(values) for values in found.items.values()] == [2, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "base", "mine.yaml", "own.py"]

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("- a\n", '{path} is no mapping; write lines as "task: mine"'),
            ("", '{path} is no mapping; write lines as "task: mine"'),
            ("a: [\n", "{path}, line 2: not YAML (expected the node content, but found '<stream end>'); mend it"),
            ("group: g\n", '{path} has no name of a task; give it one, as "task: mine"'),
            ("task: [a, b]\ngroup: g\n", '{path} has no name of a task; give it one, as "task: mine"'),
            (
                "task: a\ndataset_path: owner/name\n",
                "{path}: its dataset_path is 'owner/name', and a task's data are read from files here; "
                "say json, csv, parquet, text, arrow and name the files in dataset_kwargs",
            ),
            (
                "task: a\ndataset_path: json\ndataset_kwargs: [a]\n",
                "{path} names no data; give data_files in dataset_kwargs",
            ),
            ("task: a\ndataset_path: json\n", "{path} names no data; give data_files in dataset_kwargs"),
            (
                TASK.format(name="a", data="none.jsonl"),
                "{path} names the data none.jsonl, which is no file from its folder on; mend data_files",
            ),
            (
                TASK.format(name="a", data="none/*.jsonl"),
                "{path} names the data none/*.jsonl, which is no file from its folder on; mend data_files",
            ),
            ("include: mine.yaml\n", "{path} includes itself; leave that out"),
            (
                "task: a\nprocess_docs: !function own.asked\n",
                "{path} names the function own.asked, and there is no own.py beside it; mend the name",
            ),
            (b"task: caf\xe9", "{path} is not UTF-8 text (unexpected end of data); convert it first"),
        ],
    )
    def test_a_sentence_for_each(self, tmp_path: Path, content: str | bytes, sentence: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(LorashearError) as caught:
            self.run({"uniform": None}, None, path)
        assert str(caught.value) == sentence.format(path=path)

    def test_other_files_and_one_name_twice(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", rows()["pairs"])
        for name in ("a.yaml", "b.yaml"):
            (tmp_path / name).write_text(TASK.format(name="mine", data="a.jsonl"))
        nothing: dict[str, Any] = {"uniform": None}
        with pytest.raises(
            LorashearError, match=r"a\.yaml and .*b\.yaml both name their task mine; give one another name$"
        ):
            self.run(nothing, None, tmp_path / "a.yaml", tmp_path / "b.yaml")
        with pytest.raises(LorashearError, match=r"c\.yaml does not exist; give a task file$"):
            self.run(nothing, None, tmp_path / "c.yaml")
        with pytest.raises(LorashearError, match=r"a\.jsonl has an unknown ending; task files end in \.yaml, \.yml$"):
            self.run(nothing, None, tmp_path / "a.jsonl")

    def test_what_the_harness_refuses(self, models: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", rows()["asked"])
        path = tmp_path / "mine.yaml"
        path.write_text(TASK.format(name="mine", data="a.jsonl").replace("test_split: test", "test_split: valid"))
        with pytest.raises(LorashearError) as caught:
            self.run(models, tokenizer, path)
        assert str(caught.value).startswith(f"{path}: lm-evaluation-harness cannot run it: ")
        (tmp_path / "own.py").write_text("1 / 0\n")
        path.write_text("task: a\nprocess_docs: !function own.asked\n")
        with pytest.raises(
            LorashearError, match=r"cannot be had: ZeroDivisionError\('division by zero'\); mend .*own\.py$"
        ):
            self.run(models, tokenizer, path)


class TestSharedData:
    """Small trained models, on items that they are better than chance at."""

    @pytest.mark.slow
    def test_stories260k_on_the_cloze_items(self, shared_data: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(shared_data / "models" / "stories260k")
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k")
        suite = read(shared_data / "evals" / "tinystories_cloze.jsonl")
        found = choices.score(model, tokenizer, suite)
        assert (f"{found.accuracy:.1%}", f"{found.accuracy_norm:.1%}") == ("37.0%", "37.6%")

    @pytest.mark.parametrize("name", ["winogrande", "blimp", "piqa"])
    def test_some_items_of_each_shape_as_the_harness_has_them(self, shared_data: Path, name: str) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(shared_data / "models" / "stories260k")
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k")
        suite = read(shared_data / "evals" / f"{name}.jsonl")
        agree(
            choices.score(model, tokenizer, suite, limit=40),
            harness.score(model, tokenizer, [suite], limit=40)[name],
        )
