"""Recipes: the words of the flags in a file, checked, merged with flags, and written so that a run can be repeated."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.recipes import reading, record
from lorashear.recipes.schema import schema
from lorashear.recipes.words import CHOICES, OF_ONE_CALL, flags, words
from test_bad_input import refused, run

pytestmark = pytest.mark.usefixtures("one_thread")

RECORD = Path("lorashear") / "recipe.yaml"
SHIPPED = ["flap", "llama.cpp-q4", "llm-pruner", "loraprune", "lorashear", "one-shot", "per-layer-quality", "wanda"]
TRAINED = {"lorashear", "llm-pruner", "loraprune", "per-layer-quality"}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def repeated(monkeypatch: pytest.MonkeyPatch, first: Path, *more: object) -> Path:
    """Run again what a result's recipe says."""
    again = first.with_name(f"{first.name} again")
    assert run(monkeypatch, "compile", "--recipe", first / RECORD, "--out", again, *more) == 0
    assert (again / "lorashear" / "plan.json").read_bytes() == (first / "lorashear" / "plan.json").read_bytes()
    assert bytes_of(again) == bytes_of(first) != {}
    return again


@pytest.fixture
def wide(shipped: Path, tmp_path: Path) -> Path:
    """With a tokenizer that llama.cpp has, and MLP channels for two blocks of its K-quants."""
    path = tmp_path / "wide"
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    tokenizer.save_pretrained(path)
    sizes = {"hidden_size": 32, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_runs_and_loads(
    name: str, folder: Path, wide: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    model = wide if name == "llama.cpp-q4" else folder
    given = ("--text", text, "--out", out, "--ratio", 0.1, "--context", 16, "--windows", 8)
    if name in TRAINED:
        given += ("--tokens", 600, "--batch", 2)
    assert run(monkeypatch, "compile", model, "--recipe", name, *given) == 0
    report = json.loads((out / "lorashear" / "report.json").read_text())
    asked = reading.arguments(reading.read(name).values)
    for word, value in asked.items():
        if word not in ("ratio", "tokens", "batch", "out"):
            assert report["settings"][word] == value, word
    assert bool(report["training"]) == (name in TRAINED)
    assert report["ratio"]["asked"] == 0.1
    if name == "llama.cpp-q4":
        assert {w["after"] for layer, w in report["widths"].items() if layer.endswith("ffn")} == {256}
    model = lorashear.load(out)
    assert model.num_parameters() == report["parameters"]["after"] < report["parameters"]["before"]
    if name in ("one-shot", "flap", "lorashear"):
        repeated(monkeypatch, out)


def test_those_that_ship_say_what_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(reading.shipped()) == SHIPPED
    assert run(monkeypatch, "recipe", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == SHIPPED
    for line, path in zip(lines, reading.shipped().values(), strict=True):
        assert re.fullmatch(r"\S+ +[A-Z].+[.]", line)
        comment = path.read_text(encoding="utf-8")
        assert "# Source: " in comment and "# Differs: " in comment
        assert run(monkeypatch, "recipe", "show", path.stem) == 0
        assert capsys.readouterr().out == comment
        assert run(monkeypatch, "recipe", "validate", path) == 0
        assert "all valid; leaves to flags: model, text, out" in capsys.readouterr().out
        assert not [word for word in yaml.safe_load(comment) if word != reading.spelled(word)]


def test_both_spellings_lists_and_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    path = written(
        tmp_path / "r.yaml",
        "per_layer: on\nlearning-rate: 1e-4\ntokens: 2e3\nprune: [head, ffn]\nshard-size: 5000\nsave_every: 200\n"
        "text: {wiki: a.txt, web: [b.txt, c.txt]}\nratio: .25\napart: yes\n",
    )
    found = reading.arguments(reading.read(path).values)
    assert found == {
        "per_layer": True,
        "learning_rate": 1e-4,
        "tokens": 2000,
        "prune": ("head", "ffn"),
        "shard_bytes": 5000,
        "save_every": "200",
        "text": {"wiki": "a.txt", "web": ["b.txt", "c.txt"]},
        "ratio": 0.25,
        "packed": False,
    }
    assert isinstance(found["tokens"], int)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("ratio: 0.2\nper-layr: true", ", line 2: no word of a recipe is 'per-layr'; did you mean per-layer?"),
        ("3: 4", ", line 1: no word of a recipe is 3; there are model, out, ratio, params, bytes, text, "),
        ("overwrite: true", ", line 1: overwrite is of one call and in no recipe; pass --overwrite"),
        ("dry_run: true", ", line 1: dry_run is of one call and in no recipe; pass --dry-run"),
        ("per_layer: true\nper-layer: true", ", line 2: per-layer stands there twice; leave one of them out"),
        ("ratio: 0.2\nratio: 0.3", ", line 2: ratio stands there twice; leave one of them out"),
        ("tokens: many", ", line 1: tokens is 'many'; it is a whole number"),
        ("tokens: 1.5", ", line 1: tokens is 1.5; it is a whole number"),
        ("tokens: 1e999", ", line 1: tokens is '1e999'; it is a whole number"),
        ("tokens: true", ", line 1: tokens is true; it is a whole number"),
        ("ratio: 1/5", ", line 1: ratio is '1/5'; it is a number"),
        ("ratio: [0.2]", ", line 1: ratio is [0.2]; it is a number"),
        ("ratio: .", ", line 1: ratio is '.'; it is a number"),
        ("ratio:", ", line 1: ratio is empty; it is a number"),
        ("per-layer: 1", ", line 1: per-layer is 1; it is true or false"),
        ("text: no", ", line 1: text is false, as YAML reads on, off, yes and no too; it is text: put it in quotes"),
        ("text: []", ", line 1: text is an empty list; name a file, or leave the word out"),
        ("text: {text: a}", ": text names a subset text, which is what others are called: give it another name"),
        ("revision: 1234567", ", line 1: revision is 1234567; it is text: put it in quotes"),
        ("ratio: 1.5", ": ratio is 1.5; it is the share of parameters to remove, between 0 and 1"),
        ("ratio: .nan", ": ratio is nan; it is the share of parameters to remove, between 0 and 1"),
        ("criterion: wandb", ": criterion is wandb; there are obs, wanda, flap, taylor, lora, magnitude, random"),
        ("prune: [heads]", ": prune names heads; the kinds are head, query, ffn, hidden"),
        ("params: 5e9\nratio: 0.2", ": ratio and params each say how much to remove: pass one of them"),
        ("bytes: lots", ": bytes is 'lots'; give a number of bytes such as 5GB or 500MB"),
        ("shard-size: 5XB", ": shard-size is '5XB'; give a number of bytes such as 5GB or 500MB"),
        (
            "unprunable-ratio: 0.1",
            ": unprunable_ratio keeps single groups whole, so their layers differ: pass per_layer",
        ),
        (
            "model:\nratio: 0.2",
            ": model was given in memory, so that no recipe can name it: pass model as the first arg",
        ),
        ("text:\nratio: 0.2", ": text was given in memory, so that no recipe can name it: pass text (--text FILE)"),
        ("ratio: 0.2\n  b: [", ", line 2: no YAML: mapping values are not allowed here"),
        ("ratio: !!python/name:os.system", ", line 1: no YAML: could not determine a constructor for the tag"),
        ("revision: 2024-99-99", ", line 1: no YAML: month must be in 1..12"),
        ("ratio: 0.2\nmodel: \x01", ", line 2: no YAML: a character that it cannot have"),
        ("- ratio", " is a list; a recipe is a mapping, such as ratio: 0.2"),
        ("ratio", " is a value; a recipe is a mapping, such as ratio: 0.2"),
        ("", " is empty; a recipe is a mapping, such as ratio: 0.2"),
        ("[" * 1500, " is nested too deeply; a recipe is a mapping"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    content: str,
    sentence: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path / "r.yaml", content)
    wanted = f"lorashear: recipe '{path}'{sentence}"
    assert refused(monkeypatch, capsys, tmp_path, "recipe", "validate", path).startswith(wanted)
    if not content.startswith("model"):
        out = ("--out", tmp_path / "out")
        assert refused(monkeypatch, capsys, tmp_path, "compile", folder, "--recipe", path, *out).startswith(wanted)


def test_a_recipe_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words_ in (
        ("oneshot", "there is no recipe 'oneshot', neither a file nor one that ships; did you mean one-shot?"),
        ("x/y.yaml", "there is no recipe 'x/y.yaml', neither a file nor one that ships; those that ship are flap, "),
        (tmp_path, f"the recipe '{tmp_path}' is a folder; give a YAML file, or one of flap, "),
    ):
        for command in (("recipe", "validate", name), ("recipe", "show", name), ("compile", "m", "--recipe", name)):
            assert refused(monkeypatch, capsys, tmp_path, *command).startswith(f"lorashear: {words_}")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"model: \xff")
    assert "is no UTF-8 text" in refused(monkeypatch, capsys, tmp_path, "recipe", "validate", latin)


def test_flags_win(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        tmp_path / "r.yaml",
        f"model: {folder}\nout: {tmp_path / 'named'}\ntokens: 5000\nfull: true\nper-layer: true\nparams: 1\nseed: 3\n"
        f"text: {{one: [{text}]}}\nlhspg: 0.2\nwindows: 8\ncontext: 16\ncriterion: random\n",
    )
    given = ("--ratio", 0.1, "--one-shot", "--no-per-layer", "--seed", 0, "--adapter", "merge")
    assert run(monkeypatch, "compile", "--recipe", path, *given) == 0
    settings = json.loads((tmp_path / "named" / "lorashear" / "report.json").read_text())["settings"]
    wanted = {"ratio": 0.1, "params": None, "one_shot": True, "tokens": None, "per_layer": False, "seed": 0}
    wanted |= {"full": False, "lhspg": 0.0, "windows": 8, "context": 16, "criterion": "random"}
    assert {name: settings[name] for name in wanted} == wanted
    record = yaml.safe_load((tmp_path / "named" / RECORD).read_text())
    assert record["text"] == {"one": [str(text)]} and record["model"] == str(folder) and "out" not in record
    repeated(monkeypatch, tmp_path / "named")
    result = lorashear.compile(recipe=path, ratio=0.1, out=tmp_path / "python", one_shot=True, per_layer=False, seed=0)
    assert result.report["settings"] == {**settings, "full": True}
    assert bytes_of(tmp_path / "python") == bytes_of(tmp_path / "named")


@pytest.mark.parametrize(
    ("said", "given", "left"),
    [
        ({"one-shot": True}, {"tokens": 5}, {}),
        ({"tokens": 5, "lhspg": 0.1, "rank": 2}, {"one-shot": True}, {"rank": 2}),
        ({"one-shot": True, "tokens": 5}, {"one-shot": False}, {"tokens": 5}),
        ({"ratio": 0.1, "cost": "flops"}, {"params": "5"}, {}),
        ({"bytes": "5"}, {"ratio": 0.1}, {}),
        ({"full": True}, {"adapter": "keep"}, {}),
        ({"text": {"a": "b"}}, {"text": ["c"]}, {}),
    ],
)
def test_what_a_flag_contradicts_gives_way(said: dict[str, Any], given: dict[str, Any], left: dict[str, Any]) -> None:
    assert reading.Recipe("r", said).beside(given) == left


def test_what_neither_says_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.yaml", "one-shot: true\n")
    for given, sentence in (
        ((folder,), "--out"),
        (("--out", tmp_path / "out"), "MODEL"),
        ((folder, "--out", tmp_path / "out"), "nothing says how much to remove: pass ratio (--ratio 0.2)"),
    ):
        said = refused(monkeypatch, capsys, tmp_path, "compile", "--recipe", path, *given)
        assert sentence.lower() in said.lower()
    with pytest.raises(LorashearError, match="^nothing says which model: pass model, or a recipe that names one$"):
        lorashear.compile(recipe=path, ratio=0.2)


def test_a_trained_run_is_repeated(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    given = {"tokens": 600, "context": 16, "windows": 8, "batch": 2, "seed": 5, "packed": False, "rank": 4}
    result = lorashear.compile(folder, out=out, params="9e3", text={"a": text, "b": [text]}, shard_bytes=3000, **given)
    record = yaml.safe_load((out / RECORD).read_text())
    wanted = {"params": 9000, "tokens": 600, "windows": 8, "seed": 5, "apart": True, "rank": 4, "shard-size": "3000"}
    wanted |= {"distill": 0.8, "criterion": "obs", "text": {"a": str(text), "b": [str(text)]}, "batch": 2}
    assert {name: record[name] for name in wanted} == wanted
    again = repeated(monkeypatch, out)
    new = json.loads((again / "lorashear" / "report.json").read_text())
    assert {name: new[name] for name in ("parameters", "perplexity", "training")} == {
        name: result.report[name] for name in ("parameters", "perplexity", "training")
    }
    assert (again / RECORD).read_bytes() == (out / RECORD).read_bytes()


def test_a_model_in_memory_has_no_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(folder)
    lorashear.compile(model, 0.1, out, one_shot=True)
    assert "model: null  # was given in memory and has no name: pass it\n" in (out / RECORD).read_text()
    for command in (
        ("recipe", "validate", out / RECORD),
        ("compile", "--recipe", out / RECORD, "--out", tmp_path / "b"),
    ):
        said = refused(monkeypatch, capsys, tmp_path, *command)
        assert said.endswith(
            "model was given in memory, so that no recipe can name it: pass model as the first argument"
        )
    assert run(monkeypatch, "compile", folder, "--recipe", out / RECORD, "--out", tmp_path / "c") == 0
    assert bytes_of(tmp_path / "c") == bytes_of(out)
    lorashear.compile(model, recipe=out / RECORD, out=tmp_path / "d")
    assert bytes_of(tmp_path / "d") == bytes_of(out)


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("a.txt", "a.txt"),
        (Path("a.txt"), "a.txt"),
        (["a.txt", Path("b")], ["a.txt", "b"]),
        ({"w": "a", "x": ["b", Path("c")]}, {"w": "a", "x": ["b", "c"]}),
        ({"w": object()}, None),
        ([{"text": "words"}], None),
        (object(), None),
    ],
)
def test_text_in_memory_has_no_name(text: Any, recorded: Any, tmp_path: Path) -> None:
    said = record.given("m", text, (), revision=None)
    assert said == {"model": "m", "text": recorded}
    path = written(tmp_path / "r.yaml", record.content(said))
    if recorded is not None:
        assert list(reading.read(path).values) == ["model", "text"]
        return
    assert "\ntext: null  # was given in memory and has no name: pass it\n" in path.read_text()
    with pytest.raises(LorashearError, match="text was given in memory.*: pass text [(]--text FILE[)]$"):
        reading.filled(path, {"ratio": 0.2})
    assert reading.filled(path, {"text": "t"}) == {"model": "m", "text": "t"}


def test_a_revision_of_a_hub_is_a_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's cache keeps it: a branch moves, and what it was is what is repeated."""
    commit = "0123456789abcdef" * 2 + "01234567"
    kept = tmp_path / "cache" / "snapshots" / commit
    kept.parent.mkdir(parents=True)
    kept.symlink_to(folder)
    asked: list[str | None] = []
    monkeypatch.setattr("lorashear.disk.checkpoint.resolve", lambda model, revision: asked.append(revision) or kept)
    lorashear.compile("owner/name", 0.1, tmp_path / "out", one_shot=True, revision="main")
    record = yaml.safe_load((tmp_path / "out" / RECORD).read_text())
    assert (record["model"], record["revision"]) == ("owner/name", commit)
    repeated(monkeypatch, tmp_path / "out")
    assert asked == ["main", commit]


def test_the_words_are_those_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer.main

    from lorashear.cli import app

    command = typer.main.get_command(app).commands["compile"]  # type: ignore[attr-defined]
    options = {max((o for o in p.opts), key=len).removeprefix("--") for p in command.params if p.name != "help"}
    assert set(flags()) == options
    assert run(monkeypatch, "recipe", "schema") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == schema()
    assert set(said["properties"]) == options - set(OF_ONE_CALL)
    assert all(each["description"] for each in said["properties"].values())
    own = {"packed": "apart", "shard_bytes": "shard-size"}
    assert {own.get(field.name, field.name.replace("_", "-")) for field in fields(Settings)} <= set(words())


def test_the_schema_knows_what_settings_refuse() -> None:
    properties = schema()["properties"]
    assert properties["ratio"] == {
        "description": words()["ratio"].help,
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
    }
    bounds = {name: {k: v for k, v in each.items() if "imum" in k} for name, each in properties.items()}
    assert bounds["context"] == {"minimum": 8} and bounds["tokens"] == {"minimum": 1} and bounds["seed"] == {}
    assert bounds["replay"] == bounds["warm-up"] == {"minimum": 0, "exclusiveMaximum": 1}
    assert bounds["distill"] == bounds["lhspg"] == {"minimum": 0, "maximum": 1}
    assert properties["per-layer"]["type"] == "boolean"
    for name, choices in CHOICES.items():
        assert properties[name]["enum"] == list(choices)
    for word in words().values():
        if word.name not in CHOICES and word.type is str and word.name not in ("params", "bytes", "prune"):
            assert not _refuses(word.name.replace("-", "_")), word.name


def _refuses(name: str) -> bool:
    """Whether a setting has a list of what it can be."""
    try:
        Settings(ratio=0.5, one_shot=True, **{name: "?"})  # type: ignore[arg-type]
    except LorashearError as error:
        return "there are" in str(error)
    except TypeError:
        pass  # no setting
    return False
