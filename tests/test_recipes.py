"""Recipes: the words of the flags in a file, checked, merged with flags, and written so that a run can be repeated."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import lorashear
from lorashear.config import Settings
from lorashear.errors import LorashearError
from lorashear.recipes import reading, record
from lorashear.recipes.schema import schema
from lorashear.recipes.words import CHOICES, COMPILE, OF_ONE_CALL, RECOVER, VERBS, flags, words
from lorashear.recoverer import _known_as
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
    assert mistakes((out / RECORD).read_text()) == []
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
        (
            "ratio: 0.2\ndense: big",
            ", line 2: dense is a word of recover, and this recipe is of compile; leave it out, or say verb: recover",
        ),
        (
            "per-layer: true\nverb: recover",
            ", line 1: per-layer is a word of compile, and this recipe is of recover; leave it out, or say verb: compile",
        ),
        ("ratio: 0.2\nverb: eval", ", line 2: verb is 'eval'; there are compile, recover"),
        ("verb: [recover]", ", line 1: verb is ['recover']; there are compile, recover"),
        ("verb: compile\nverb: compile", ", line 2: verb stands there twice; leave one of them out"),
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
    if not content.startswith("model") and "verb: recover" not in content:
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
    assert mistakes((out / RECORD).read_text()) == []
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
    said = record.given(text, (), model="m", revision=None)
    assert said == {"model": "m", "text": recorded}
    path = written(tmp_path / "r.yaml", record.content(said, COMPILE))
    if recorded is not None:
        assert list(reading.read(path).values) == ["model", "text"]
        return
    assert "\ntext: null  # was given in memory and has no name: pass it\n" in path.read_text()
    with pytest.raises(LorashearError, match="text was given in memory.*: pass text [(]--text FILE[)]$"):
        reading.filled(path, COMPILE, {"ratio": 0.2})
    assert reading.filled(path, COMPILE, {"text": "t"}) == {"model": "m", "text": "t"}


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


@pytest.mark.parametrize("verb", VERBS)
def test_the_words_are_those_of_the_command(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer.main

    from lorashear.cli import app

    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    options = {max((o for o in p.opts), key=len).removeprefix("--") for p in command.params if p.name != "help"}
    assert set(flags(verb)) == options
    assert run(monkeypatch, "recipe", "schema") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == schema()
    properties = said["definitions"][verb]["properties"]
    assert set(properties) == {"verb"} | options - set(OF_ONE_CALL)
    assert all(each["description"] for each in properties.values())
    own = {"packed": "apart", "shard_bytes": "shard-size"}
    assert {own.get(field.name, field.name.replace("_", "-")) for field in fields(VERBS[verb])} <= set(words(verb))


def test_the_schema_knows_what_settings_refuse() -> None:
    known = words(COMPILE)
    both = [schema()["definitions"][verb]["properties"] for verb in (COMPILE, RECOVER)]
    properties = both[0]
    assert properties["ratio"] == {
        "description": known["ratio"].help,
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
    }
    bounds = [{name: {k: v for k, v in each.items() if "imum" in k} for name, each in some.items()} for some in both]
    for found in bounds:
        assert found["context"] == {"minimum": 8} and found["tokens"] == {"minimum": 1} and found["seed"] == {}
        assert found["replay"] == {"minimum": 0, "exclusiveMaximum": 1}
        assert found["distill"] == {"minimum": 0, "maximum": 1}
    assert bounds[0]["warm-up"] == bounds[0]["replay"] and bounds[0]["lhspg"] == bounds[0]["distill"]
    assert properties["per-layer"]["type"] == "boolean"
    for name, choices in CHOICES.items():
        assert all(some[name]["enum"] == list(choices) for some in both if name in some)
    for word in known.values():
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


def mistakes(content: str) -> list[str]:
    """What a JSON schema validator that is not ours has against a recipe."""
    validator = pytest.importorskip("jsonschema").Draft7Validator
    validator.check_schema(schema())
    return [error.message for error in validator(schema()).iter_errors(yaml.safe_load(content))]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_valid_by_the_schema(name: str) -> None:
    assert mistakes(reading.find(name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("per-layer: true\nper_layer: true\ntext: {a: b, c: [d]}\nprune: [head, ffn]\nparams: 5B\ntokens: 10", None),
        ("verb: compile\nratio: 0.2\ntext: [a, b]", None),
        ("verb: recover\nfolder: small\ndense: big\nlearning_rate: 0.001\ntext: a", None),
        ("per-layr: true", "'per-layr' does not match any of the regexes"),
        ("dense: big", "'dense' does not match any of the regexes"),
        ("verb: recover\nratio: 0.2", "'ratio' does not match any of the regexes"),
        ("verb: recover\noverwrite: true", "'overwrite' does not match any of the regexes"),
        ("verb: eval", "'eval' is not one of ['compile', 'recover']"),
        ("ratio: 1.5", "1.5 is greater than or equal to the maximum of 1"),
        ("verb: recover\ncontext: 4", "4 is less than the minimum of 8"),
        ("verb: recover\nlearning_rate: 2", "2 is greater than or equal to the maximum of 1"),
        ("tokens: 1.5", "1.5 is not of type 'integer'"),
        ("per-layer: 1", "1 is not of type 'boolean'"),
        ("verb: recover\nmixture: odd", "'odd' is not one of ['dynamic', 'static']"),
        ("prune: [heads]", "['heads'] is not valid under any of the given schemas"),
        ("text: []", "[] is not valid under any of the given schemas"),
        ("model: null", "None is not of type 'string'"),  # which `recipe validate` refuses as well
        ("- ratio", "['ratio'] is not of type 'object'"),
    ],
)
def test_a_validator_and_the_reader_agree(content: str, mistake: str | None, tmp_path: Path) -> None:
    """But where the schema cannot say it: two spellings of one word."""
    found = mistakes(content)
    path = written(tmp_path / "r.yaml", content.replace("per-layer: true\nper_layer", "per_layer"))
    if mistake is None:
        reading.read(path)
        assert found == []
        return
    assert any(mistake in each for each in found), found
    with pytest.raises(LorashearError):
        reading.read(path).check_named()


@pytest.fixture(scope="module")
def pruned(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "small"
    lorashear.compile(folder, 0.2, out, text=text, one_shot=True, windows=8, context=16)
    return out


def test_a_recovery_is_repeated_and_what_came_before_it_too(
    folder: Path, pruned: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the recipes of the last folder alone: compile, recover, recover again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.jsonl").write_bytes(text.read_bytes())
    ask = ("--context", 16, "--batch", 2, "--rank", 4, "--learning-rate", 0.01)
    asked = ("--text", "w=words.jsonl", "--tokens", 600, "--seed", 3, "--dense", folder, *ask)
    assert run(monkeypatch, "recover", pruned, "--out", "first", *asked) == 0
    assert (
        run(monkeypatch, "recover", "first", "--out", "second", "--text", text, "--apart", "--tokens", 300, *ask) == 0
    )
    second = tmp_path / "second" / "lorashear"
    steps = [second / name for name in ("recipe-1.yaml", "recipe-2.yaml", "recipe.yaml")]
    for path, origin in zip(steps, (pruned, Path("first"), Path("second")), strict=True):
        assert path.read_bytes() == (origin / RECORD).read_bytes()
        assert mistakes(path.read_text(encoding="utf-8")) == []
        assert run(monkeypatch, "recipe", "validate", path) == 0
    said = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in steps]
    assert [each.get("verb") for each in said] == [None, "recover", "recover"]
    assert said[1]["folder"] == str(pruned) and said[2]["folder"] == "first"
    wanted = {"text": ["w=words.jsonl"], "tokens": 600, "seed": 3, "dense": str(folder), "distill": 0.8, "rank": 4}
    assert {name: said[1][name] for name in wanted} == wanted and "out" not in said[1]
    assert said[2]["dense"] == "none" and said[2]["apart"] is True
    report = json.loads((second / "report.json").read_text())
    assert report["text"] == [text.name, "w=words.jsonl"]
    again = ["one", "two", "three"]
    for place, path, more in zip(again, steps, ((), ("one",), ("two",)), strict=True):
        verb = yaml.safe_load(path.read_text(encoding="utf-8")).get("verb", "compile")
        assert run(monkeypatch, verb, *more, "--recipe", path, "--out", place) == 0
    for place, origin in zip(again, (pruned, Path("first"), Path("second")), strict=True):
        assert bytes_of(tmp_path / place) == bytes_of(origin) != {}
        assert Path(place, "lorashear", "plan.json").read_bytes() == (origin / "lorashear" / "plan.json").read_bytes()
    assert bytes_of(tmp_path / "one") != bytes_of(tmp_path / "two") != bytes_of(tmp_path / "three")
    card = (tmp_path / "second" / "README.md").read_text(encoding="utf-8")
    for number, (path, words_) in enumerate(zip(steps, said, strict=True), 1):
        verb = words_.get("verb", "compile")
        line = f"`lorashear {verb} --recipe lorashear/{path.name} --out DIR` repeats step {number} of 3."
        block = card.partition(line)[2].partition("```yaml\n")[2].partition("```")[0]
        shown = yaml.safe_load(block)
        assert "/" not in block and len(block.splitlines()) < 20  # no folder of this machine
        paths = ("model", "folder", "dense", "text", "instruct", "lora")
        assert {name: shown[name] for name in shown if name not in paths} == {
            name: words_[name] for name in shown if name not in paths
        }
        left = {name: value for name, value in words_.items() if name not in shown}
        assert left == {name: words(verb)[name].default for name in left} and left
    assert "w=words.jsonl" in card


def test_what_recover_is_given_wins(
    pruned: Path, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line and in Python, where the recipe has all that it needs too."""
    path = written(
        tmp_path / "r.yaml",
        f"mixture: static\nverb: recover\nfolder: {pruned}\nout: {tmp_path / 'named'}\ndense: none\ntokens: 300\nfull: true\n"
        f"context: 16\nbatch: 2\nseed: 3\ntext: {{one: [{text}], two: {text}}}\n",
    )
    given = ("--seed", 1, "--no-full", "--dense", folder, "--adapter", "keep")
    assert run(monkeypatch, "recover", "--recipe", path, *given) == 0
    report = json.loads((tmp_path / "named" / "lorashear" / "report.json").read_text())
    wanted = {"seed": 1, "full": False, "adapter": "keep", "tokens": 300, "mixture": "static", "batch": 2}
    assert {name: report["settings"][name] for name in wanted} == wanted
    assert report["recovery"]["dense"] == folder.name and report["recovery"]["subsets"] == ["one", "two"]
    said = yaml.safe_load((tmp_path / "named" / RECORD).read_text())
    assert said["text"] == {"one": [str(text)], "two": str(text)} and said["dense"] == str(folder)
    more = {"seed": 1, "full": False, "adapter": "keep", "dense": folder}
    result = lorashear.recover(recipe=path, out=tmp_path / "python", **more)
    assert result.report["recovery"] == report["recovery"]
    assert bytes_of(tmp_path / "python" / "adapter") == bytes_of(tmp_path / "named" / "adapter") != {}
    assert (tmp_path / "python" / RECORD).read_text() == (tmp_path / "named" / RECORD).read_text()


def test_by_default_a_recovery_has_all_its_text_again(
    pruned: Path, folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"text": text, "dense": folder, "context": 32, "rank": 2, "batch": 64}
    first = lorashear.recover(pruned, tmp_path / "first", **settings)
    said = yaml.safe_load((tmp_path / "first" / RECORD).read_text())
    assert "tokens" not in said and first.report["settings"]["tokens"]
    assert run(monkeypatch, "recover", "--recipe", tmp_path / "first" / RECORD, "--out", tmp_path / "again") == 0
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "first")


def test_what_was_applied_has_no_step_before(pruned: Path, folder: Path, text: Path, tmp_path: Path) -> None:
    lorashear.apply(lorashear.Plan.load(pruned / "lorashear" / "plan.json"), folder, tmp_path / "slice")
    given: Any = [text]
    out = tmp_path / "out"
    found = lorashear.recover(tmp_path / "slice", out, text=given, tokens=100, context=16, batch=2, rank=2)
    assert found.report["text"] == [text.name]
    assert [path.name for path in record.steps(out)] == ["recipe.yaml"]
    assert record.steps(tmp_path / "slice") == []
    assert "--recipe lorashear/recipe.yaml --out DIR` repeats the run." in (out / "README.md").read_text()


def test_a_dense_model_that_nobody_named_is_named_by_its_commit(tmp_path: Path) -> None:
    """And one that is not there is not looked for again."""
    commit = "0123456789abcdef" * 2 + "01234567"
    found: Any = SimpleNamespace(folder=tmp_path / "snapshots" / commit)
    report = {"model": "owner/dense", "revision": "v2"}
    assert _known_as(found, None, None, report) == {"dense": "owner/dense", "revision": commit}
    assert _known_as(SimpleNamespace(folder=tmp_path), None, None, report) == {"dense": "owner/dense", "revision": "v2"}  # type: ignore[arg-type]
    assert _known_as(SimpleNamespace(folder=tmp_path), "big", None, report) == {"dense": "big", "revision": None}  # type: ignore[arg-type]
    assert _known_as(None, "big", "v2", report) == {"dense": "none"}


def test_a_recipe_is_of_one_verb(
    pruned: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.yaml", "verb: recover\nfull: true\ntokens: 1e4\n")
    assert run(monkeypatch, "recipe", "validate", path) == 0
    assert capsys.readouterr().out == f"{path}: 2 words, all valid; leaves to flags: folder, text, out\n"
    assert run(monkeypatch, "recipe", "show", path) == 0
    assert capsys.readouterr().out == path.read_text()
    out = ("--out", tmp_path / "out")
    for command, sentence in (
        (
            ("recover", pruned, "--recipe", "wanda", *out),
            "recipe 'wanda' is one of compile: pass it to lorashear compile, or another one to recover",
        ),
        (
            ("compile", folder, "--recipe", path, *out),
            f"recipe '{path}' is one of recover: pass it to lorashear recover, or another one to compile",
        ),
        (
            ("recover", pruned, "--recipe", path, *out),
            "recovery needs something to train on: pass text (--text FILE) or instruct (--instruct FILE)",
        ),
    ):
        assert refused(monkeypatch, capsys, tmp_path, *command) == f"lorashear: {sentence}"
    for more, name in (({"out": tmp_path / "out"}, "folder"), ({"folder": pruned}, "out")):
        with pytest.raises(
            LorashearError, match=f"^nothing says which {name}: pass {name}, or a recipe that names one$"
        ):
            lorashear.recover(recipe=path, text="t", **more)
