"""Bad input, as a user meets it: one sentence on stderr, exit code 2, nothing written, the source untouched."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorashear import cli

Spoil = Callable[[Path], object]
ASK = ("--ratio", "0.2", "--one-shot")
WEIGHTS = "model.safetensors"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorashear", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Path, *arguments: object) -> str:
    """Runs a command that must be refused; returns its sentence."""
    before = snapshot(work)
    code = run(monkeypatch, *arguments)
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("lorashear: ")]
    assert len(lines) == 1
    assert said.err.rstrip().endswith(lines[0])  # one line, and the last
    assert "Traceback" not in said.err
    assert snapshot(work) == before
    assert not [path for path in work.rglob("*") if path.name.startswith(".lorashear")]
    return lines[0]


def config(**changes: Any) -> Spoil:
    def spoil(model: Path) -> None:
        content = {**json.loads((model / "config.json").read_text()), **changes}
        (model / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return spoil


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Spoil:
    def spoil(model: Path) -> None:
        held = {name: np.asarray(t, dtype=np.float32) for name, t in load_file(model / WEIGHTS).items()}
        change(held)
        save_file(held, model / WEIGHTS, metadata={"format": "pt"})

    return spoil


def header(text: bytes, claim: int | None = None) -> Spoil:
    return lambda model: (model / WEIGHTS).write_bytes(struct.pack("<Q", claim or len(text)) + text)


def sharded(weight_map: Callable[[list[str]], dict[str, str]]) -> Spoil:
    def spoil(model: Path) -> None:
        names = list(load_file(model / WEIGHTS))
        (model / WEIGHTS).rename(model / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": weight_map(names)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def pickled(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02never loaded")


def truncated(model: Path) -> None:
    whole = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(whole[: len(whole) * 2 // 3])


NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no model folder"),
        (truncated, "cut short or damaged: fetch it again"),
        (lambda model: (model / WEIGHTS).unlink(), f"holds neither {WEIGHTS} nor"),
        (sharded(lambda names: dict.fromkeys(names, "model-00002-of-00002.safetensors")), "lacks the shard"),
        (sharded(lambda names: dict.fromkeys(names, "../elsewhere.safetensors")), "lies outside of"),
        (header(b"{not json"), "is not sound JSON"),
        (header(b"{}", claim=10**9), "claims a header of 1000000000 bytes"),
        (lambda model: (model / "config.json").write_text("{"), "is not sound JSON"),
        (lambda model: (model / "config.json").unlink(), "holds no config.json"),
        (config(model_type=None), "has no model_type"),
        (config(model_type="nothing_like_it"), "is not a config that transformers accepts"),
        (config(num_attention_heads="many"), "is not a config that transformers accepts"),
        (config(intermediate_size=56), f"tensor '{GATE}'"),
        (config(num_hidden_layers=3), "holds no tensor 'model.layers.2."),
        (config(num_hidden_layers=1), "holds an unexpected tensor 'model.layers.1."),
        (config(quantization_config={"quant_method": "gptq"}), "dequantise the model first"),
        (tensors(lambda held: held.pop(NORM)), f"holds no tensor '{NORM}'"),
        (tensors(lambda held: held.update({NORM: np.ones(31, np.float32)})), "has shape [31]"),
        (tensors(lambda held: held.update({NORM: np.full(32, np.nan, np.float32)})), "32 values that are NaN"),
        (tensors(lambda held: held[GATE].__setitem__((0, 0), np.inf)), "1 values that are NaN or infinite"),
        (pickled, "pickle only, which can run code and is never loaded"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_bad_model(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Spoil,
    words: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder, model)
    if b'"BF16"' in (model / WEIGHTS).read_bytes()[:4096]:  # numpy has no bfloat16, and the tests here look at values
        import torch
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(model)
    spoil(model)
    assert words in refused(monkeypatch, capsys, tmp_path, "compile", model, *ASK, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ratio", "1.5", "--one-shot"], "ratio is 1.5; it is the share of parameters to remove, between 0 and 1"),
        (["--ratio", "0", "--one-shot"], "between 0 and 1"),
        (["--ratio", "30", "--one-shot"], "between 0 and 1: for 30 % write 0.3"),
        (["--ratio", "30%", "--one-shot"], "30%"),
        (["--ratio", "nan", "--one-shot"], "between 0 and 1"),
        (["--ratio", "much", "--one-shot"], "Invalid value for '--ratio'"),
        (["--ratio", "much", "--one-shot"], "'much'"),
        (["--ratio", "much", "--one-shot"], "; see lorashear compile --help"),
        (["--one-shot"], "nothing says how much to remove: pass ratio (--ratio 0.2)"),
        (["--ratio", "0.2"], "pass tokens (--tokens N), or one_shot=True (--one-shot) to do without"),
        (["--ratio", "0.99", "--one-shot"], "77.88% at most, since 2 head group(s) keep 1 of 4"),
        ([*ASK, "--prune", "layers"], "the kinds are head, query, ffn, hidden"),
        ([*ASK, "--round-to", "0"], "round_to is 0"),
        ([*ASK, "--dtype", "int3"], "dtype is int3"),
        ([*ASK, "--criterion", "obs"], "criterion is obs, which needs text"),
        ([*ASK, "--criterion", "best"], "criterion is best; there are obs"),
        ([*ASK, "--device", "abacus"], "device is abacus, which torch cannot use here"),
        ([*ASK, "--device", "xpu:7"], "device is xpu:7, which torch cannot use here"),
        ([*ASK, "--unheard-of"], "No such option"),
    ],
)
def test_a_bad_request(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert words in refused(monkeypatch, capsys, tmp_path, "compile", folder, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    ("name", "content", "more", "words"),
    [
        ("missing.txt", None, [], "does not exist"),
        ("empty.txt", b"", [], "holds no text"),
        ("blank.txt", b" \n\n \n", [], "holds no text"),
        ("binary.txt", b"w1 w2 \0\0\0", [], "is a binary file"),
        ("latin.txt", "w1 wé".encode("latin-1"), [], "is not UTF-8 text"),
        ("short.txt", b"w1 w2 w3", [], "the text has 4 tokens, one context needs 64"),
        ("field.jsonl", b'{"content": "w1"}\n', [], 'no field "text"'),
        ("ending.docx", b"w1", [], "unknown ending"),
        ("long.txt", b"w1 " * 99, ["--context", "65"], "context is 65, but the model's positions end at 64"),
    ],
)
def test_a_bad_text(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    more: list[str],
    words: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    request = ["compile", folder, *ASK, "--text", tmp_path / name, "--out", tmp_path / "out", *more]
    sentence = refused(monkeypatch, capsys, tmp_path, *request)
    assert words in sentence
    assert name in sentence or name in ("short.txt", "long.txt")


def test_a_text_that_is_not_there_is_told_before_the_model_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "compile", folder, *ASK, "--text", "wikitext", "--out", "out") == 2
    assert capsys.readouterr().err == "lorashear: wikitext does not exist; give a text file\n"


def test_a_bad_output_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, full, file = tmp_path / "model", tmp_path / "full", tmp_path / "file"
    shutil.copytree(folder, model)
    full.mkdir()
    (full / "thesis.txt").write_text("all there is of it")
    file.write_text("a file")
    for target, words in {
        full: "is not empty; choose another one or pass --overwrite",
        file: "is a file; choose a folder",
        model / "small": "lie one in the other",
        model: "are the same",
        file / "small": "is a file",
    }.items():
        assert words in refused(monkeypatch, capsys, tmp_path, "compile", model, *ASK, "--out", target)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    assert "but only 0.00 GB are free there" in refused(
        monkeypatch, capsys, tmp_path, "compile", model, *ASK, "--out", tmp_path / "out"
    )


def test_overwrite_replaces_only_at_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    request = ["compile", folder, *ASK, "--out", out, "--overwrite"]

    def broken(*_: object, **__: object) -> None:
        assert (out / "old.txt").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lorashear.compiler.results.content", broken)
        assert run(patch, *request) == 130
    assert snapshot(tmp_path) == {"out/old.txt": b"old"}
    assert "stopped; nothing was written" in capsys.readouterr().err
    assert run(monkeypatch, *request) == 0
    assert (out / WEIGHTS).exists()
    assert not (out / "old.txt").exists()


def test_the_other_verbs_say_it_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    text = tmp_path / "text.txt"
    text.write_text("w1 w2")
    for words, *request in (
        ("no model folder", "groups", tmp_path / "none"),
        ("no model folder", "trace", tmp_path / "none"),
        ("is no LoRAShear plan", "apply", plan, folder, "--out", tmp_path / "out"),
        ("no plan can be read", "apply", tmp_path / "none.json", folder, "--out", tmp_path / "out"),
        ("no plan can be read", "verify", folder, folder),
        ("no model folder", "eval", tmp_path / "none", "--text", text),
        ("unknown ending", "eval", folder, "--text", plan),
    ):
        assert words in refused(monkeypatch, capsys, tmp_path, *request)
