"""LoRA training, and `compile --tokens`: prune, train, merge or keep."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import lorashear
from conftest import WORDS
from lorashear.cli import main
from lorashear.config import Settings
from lorashear.learning import attaching, hyperparameters, training
from lorashear.learning.losses import STREAM, losses
from lorashear.learning.mixture import Mixture
from lorashear.learning.teaching import Online
from lorashear.likelihood import perplexity
from lorashear.text.calibration import Windows, read_windows
from lorashear.text.data import PADDING
from lorashear.verifying import verify
from lorashear_passes.walk import heldout_loss
from test_theorem import random_llama
from tools.cases import tiny
from tools.families import TOLERANCE

pytestmark = pytest.mark.usefixtures("one_thread")
CYCLE = torch.arange(40).repeat(8)[:257]
"""Text in which each token tells the next one."""


def windows(count: int = 16, length: int = 16) -> torch.Tensor:
    return torch.stack([CYCLE[at : at + length] for at in range(count)])


def trained(
    hyper: training.Hyperparameters, teacher: torch.nn.Module | None = None, text: torch.Tensor | None = None
) -> tuple[torch.nn.Module, list[training.Step]]:
    model = attaching.attach(random_llama("tied"), rank=hyper.rank, seed=hyper.seed)
    steps: list[training.Step] = []
    training.train(
        model,
        Mixture.of(windows() if text is None else text, hyper),
        teacher=teacher and Online(teacher),
        stepped=steps.append,
    )
    return model, steps


def adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def different() -> torch.nn.Module:
    """A model that says other things than the one that is trained."""
    torch.manual_seed(1)
    found = random_llama("tied")
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return found


def test_a_text_is_learned_and_only_adapters_change() -> None:
    before = {name: p.clone() for name, p in random_llama("tied").named_parameters()}
    model, steps = trained(training.Hyperparameters(60, 2e-2, rank=4, distill=0.0))
    assert [s.step for s in steps] == list(range(1, 61))
    assert steps[-1].loss < steps[0].loss - 1
    assert all(s.loss == s.text and s.divergence is None for s in steps)
    assert set(adapters(model)) == {name for name, _ in model.named_parameters() if "lora_" in name}
    base = model.unload()  # type: ignore[operator]
    assert all(torch.equal(p, before[name]) for name, p in base.named_parameters())


def test_the_head_and_the_embedding_have_no_adapter() -> None:
    model = attaching.attach(random_llama("tied"), rank=2)
    assert not [name for name in adapters(model) if "lm_head" in name or "embed" in name]


def test_the_rate_rises_and_falls() -> None:
    _, steps = trained(training.Hyperparameters(40, 1e-2, rank=2, distill=0.0))
    rates = [s.rate for s in steps]
    assert rates[3] == max(rates) == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-2 / 4)
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] < 1e-4
    assert hyperparameters.default_rate(2000) == 5e-4
    assert hyperparameters.default_rate(128) > hyperparameters.default_rate(4096)


def test_the_same_seed_trains_the_same_and_another_does_not() -> None:
    runs = [
        adapters(trained(training.Hyperparameters(5, 1e-2, rank=2, distill=0.0, seed=seed))[0]) for seed in (0, 0, 1)
    ]
    assert all(torch.equal(p, runs[1][name]) for name, p in runs[0].items())
    assert not all(torch.equal(p, runs[2][name]) for name, p in runs[0].items())


def test_every_window_is_seen_once_before_any_is_seen_again() -> None:
    hyper = training.Hyperparameters(7, 1.0, batch=3, seed=5)
    rows = torch.arange(10)[:, None].expand(10, 4)
    mixture = Mixture.of(rows, hyper)
    seen = torch.cat([mixture.draw()[:, 0] for _ in range(7)]).tolist()
    assert len(seen) == 21
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_model_beside_itself_has_no_divergence() -> None:
    teacher = random_llama("tied")
    _, steps = trained(training.Hyperparameters(1, 1e-2, rank=2, distill=1.0), teacher)
    assert steps[0].divergence == pytest.approx(0, abs=1e-5) and steps[0].distance == 0
    assert steps[0].loss == steps[0].divergence
    other = different()
    model, steps = trained(training.Hyperparameters(1, 1e-9, rank=2, distill=0.25), other)
    p, q = (m(input_ids=windows()).logits[:, :-1].log_softmax(-1) for m in (other, model))
    batch = Mixture.of(torch.arange(16)[:, None], training.Hyperparameters(1, 1.0)).draw()[:, 0]
    assert steps[0].divergence == pytest.approx((p.exp() * (p - q)).sum(-1)[batch].mean().item(), rel=1e-4)
    streams = (m(input_ids=windows()[batch], output_hidden_states=True).hidden_states for m in (other, model))
    relative = [
        ((h - H).norm(dim=-1) / H.norm(dim=-1))[:, :-1].square().mean().item() for H, h in zip(*streams, strict=True)
    ]
    assert steps[0].distance == pytest.approx(np.mean(relative[1:]), rel=1e-4)
    dense = steps[0].divergence + STREAM * steps[0].distance
    assert steps[0].loss == pytest.approx(0.75 * steps[0].text + 0.25 * dense)


def test_the_stream_counts_less_and_less() -> None:
    _, steps = trained(training.Hyperparameters(4, 1e-9, rank=2, distill=1.0), different())
    for step in steps:
        assert step.divergence and step.distance
        weight = STREAM * (1 - (step.step - 1) / 4) ** 2
        assert step.loss == pytest.approx(step.divergence + weight * step.distance)


def test_a_stream_of_another_width_is_not_compared() -> None:
    wide = AutoModelForCausalLM.from_config(tiny("llama", vocab_size=96, hidden_size=64))
    found = losses(random_llama("tied"), Online(wide), windows())
    assert found.divergence is not None and found.distance is None
    assert found.total(0.5, 0.0).item() == pytest.approx((found.text + found.divergence).item() / 2)


@pytest.mark.parametrize("padded", [False, True])
def test_a_batch_in_parts_trains_the_same(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    hyper = training.Hyperparameters(4, 1e-2, rank=2)
    text = windows()
    if padded:
        text[torch.arange(16)[None] > torch.arange(2, 18)[:, None]] = PADDING
    whole, steps = trained(hyper, random_llama("tied"), text)
    monkeypatch.setattr(training, "batch_size", lambda *_: 3)
    parts, others = trained(hyper, random_llama("tied"), text)
    assert [s.loss for s in others] == pytest.approx([s.loss for s in steps], rel=1e-5)
    for name, p in adapters(whole).items():
        torch.testing.assert_close(p, adapters(parts)[name], rtol=1e-3, atol=1e-5)


def test_padding_counts_for_nothing() -> None:
    """The losses of a padded window are those of its tokens alone."""
    long, short = torch.arange(12)[None] + 3, torch.arange(5)[None] + 20
    rows = torch.full((2, 14), PADDING)
    rows[0, :12], rows[1, :5] = long[0], short[0]
    model = attaching.attach(random_llama("tied"), rank=2)
    teacher = different()
    together = losses(model, Online(teacher), rows)
    apart = [losses(model, Online(teacher), each) for each in (long, short)]
    for name, found in vars(together).items():
        first, second = (getattr(each, name) for each in apart)
        assert found.item() == pytest.approx((11 * first.item() + 4 * second.item()) / 15, rel=1e-5)
    whole = perplexity(model, rows)
    assert whole.tokens == 15
    parts = [perplexity(model, each).nll for each in (long, short)]
    assert whole.nll == pytest.approx((11 * parts[0] + 4 * parts[1]) / 15, rel=1e-5)


def test_a_document_a_window(folder: Path, tmp_path: Path) -> None:
    """From the file to the report, with training; tokens are counted, not padding."""
    (tmp_path / "text.txt").write_text("\n\n".join(stories(300, 12)))
    settings = {"windows": 8, "tokens": 1000, "context": 32, "packed": False}
    result = lorashear.compile(folder, 0.3, tmp_path / "out", text=tmp_path / "text.txt", **settings)
    found = result.report
    assert found["perplexity"]["after"] < found["perplexity"]["pruned"]
    assert found["perplexity"]["data"].endswith("context 32, a document each")
    assert found["training"]["steps"] == round(1000 / (8 * 13)) == 10  # 12 words behind a boundary
    assert found["training"]["tokens"] == 10 * 8 * 13


def test_a_loss_that_is_no_number_leaves_the_last_good_adapters() -> None:
    model = attaching.attach(random_llama("tied"), rank=2)
    kept: list[dict[str, torch.Tensor]] = []

    def stepped(step: training.Step) -> None:
        kept.append({name: p.clone() for name, p in adapters(model).items()})
        if step.step == 3:
            next(iter(adapters(model).values())).fill_(torch.nan)

    sentence = r"the loss is not a number at step 4 of 9, at a learning rate of 8\.5e-03: pass a smaller one"
    with pytest.raises(lorashear.LorashearError, match=sentence):
        training.train(model, Mixture.of(windows(), training.Hyperparameters(9, 1e-2, distill=0.0)), stepped=stepped)
    assert all(torch.equal(p, kept[1][name]) for name, p in adapters(model).items())


def test_nothing_to_train() -> None:
    model = random_llama("tied").requires_grad_(False)
    with pytest.raises(
        lorashear.LorashearError, match="LlamaForCausalLM has nothing trainable: put a LoRA adapter on it"
    ):
        training.train(model, Mixture.of(windows(), training.Hyperparameters(1, 1e-2)))


@pytest.fixture(scope="module")
def compiled(folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, lorashear.CompileResult]:
    """The same run with the adapter merged and kept; per layer for the latter's twin."""
    out = tmp_path_factory.mktemp("trained")
    settings = {"text": text, "windows": 8, "tokens": 3000, "context": 32, "rank": 3}
    return {how: lorashear.compile(folder, 0.3, out / how, adapter=how, **settings) for how in ("merge", "keep")} | {
        "per layer": lorashear.compile(folder, 0.3, out / "layers", per_layer=True, **settings)
    }


def test_the_result_is_trained_and_as_plain_as_before(
    folder: Path, compiled: dict[str, lorashear.CompileResult]
) -> None:
    for result in compiled.values():
        perplexity, record = result.report["perplexity"], result.report["training"]
        assert perplexity["after"] < perplexity["pruned"]
        assert record["steps"] == round(3000 / (8 * 32)) == 12 and record["tokens"] == 12 * 8 * 32
        log = (result.folder / "lorashear" / "training.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in log] == list(range(1, 13))
        assert not (result.folder / "pruned").exists()
        assert "bit for bit as planned" in verify(folder, result.folder)[0]
        card = (result.folder / "README.md").read_text()
        assert "a LoRA adapter of rank 3 was trained on 3,072 tokens" in card and "before training" in card
    assert not (compiled["merge"].folder / "adapter").exists()
    assert set(compiled["merge"].plan.changed) > set(compiled["keep"].plan.changed)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_kept_beside_it_is_what_is_merged_into_it(compiled: dict[str, lorashear.CompileResult]) -> None:
    """peft loads the adapter on the pruned base, and both compute the same."""
    merged = lorashear.load(compiled["merge"].folder).float()
    base = lorashear.load(compiled["keep"].folder).float()
    ids = torch.arange(12)[None] + 5
    with torch.inference_mode():
        want = merged(input_ids=ids).logits
        plain = base(input_ids=ids).logits
        got = PeftModel.from_pretrained(base, compiled["keep"].folder / "adapter")(input_ids=ids).logits
    assert (got - want).norm() < 0.2 * (plain - want).norm()  # stored in bfloat16, merged weights are rounded to it
    config = json.loads((compiled["keep"].folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "lhspg"), [("gpt2", 0.5), ("mamba", 0.0), ("llama4_text", 0.5)])
def test_other_families_train_as_well(family: str, lhspg: float, folder: Path, text: Path, tmp_path: Path) -> None:
    """Maps stored as in × out, weights that kernels read, experts in one tensor and a router that returns two."""
    source = tmp_path / "source"
    shutil.copytree(folder, source, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    AutoModelForCausalLM.from_config(tiny(family, vocab_size=96)).save_pretrained(source)
    settings = {"windows": 6, "tokens": 1500, "context": 16, "rank": 2, "learning_rate": 1e-2, "lhspg": lhspg}
    for how in ("merge", "keep"):
        lorashear.compile(source, 0.2, tmp_path / how, text=text, adapter=how, per_layer=True, **settings)
    merged, base = (lorashear.load(tmp_path / how).eval() for how in ("merge", "keep"))
    ids = torch.arange(12)[None] + 5
    with torch.inference_mode():
        want, plain = (model(input_ids=ids).logits for model in (merged, base))
        got = PeftModel.from_pretrained(base, tmp_path / "keep" / "adapter").eval()(input_ids=ids).logits
    assert (got - want).abs().max() < TOLERANCE * want.abs().max() < 0.1 * (plain - want).abs().max()


def test_the_same_seed_gives_the_same_bytes(
    folder: Path, text: Path, tmp_path: Path, compiled: dict[str, lorashear.CompileResult]
) -> None:
    """In however many files."""
    settings = {"windows": 8, "tokens": 3000, "context": 32, "rank": 3, "shard_bytes": 8000}
    again = lorashear.compile(folder, 0.3, tmp_path / "b", text=text, **settings)
    first = load_file(compiled["merge"].folder / "model.safetensors")
    files = sorted(again.folder.glob("model-0*-of-*.safetensors"))
    assert len(files) > 3 and (again.folder / "model.safetensors.index.json").is_file()
    second = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert replace(again.plan, settings={}) == replace(compiled["merge"].plan, settings={})


def test_training_helps_text_that_it_did_not_see(folder: Path, text: Path, tmp_path: Path) -> None:
    """Held-out loss falls by more than the adapters' start could give by chance; the dense model here knows nothing."""
    settings = {"windows": 8, "tokens": 20_000, "context": 32, "distill": 0.0}
    result = lorashear.compile(folder, 0.4, tmp_path / "a", text=text, **settings)
    rows = [{"input_ids": torch.randint(0, 94, (4, 32), generator=torch.Generator().manual_seed(9))}]
    assert result.report["perplexity"]["after"] < 0.9 * result.report["perplexity"]["pruned"]
    assert heldout_loss(result.model.float(), rows) > 0  # and it still computes on any tokens


def test_a_run_whose_loss_is_no_number_leaves_nothing(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []

    def failing(*given: Any) -> Any:
        calls.append(None)
        found = losses(*given)
        return replace(found, text=found.text * torch.nan) if len(calls) == 3 else found

    monkeypatch.setattr(training, "losses", failing)
    with pytest.raises(
        lorashear.LorashearError, match="the loss is not a number at step 3 of 12, at a learning rate of"
    ):
        lorashear.compile(folder, 0.3, tmp_path / "out", text=text, windows=4, tokens=3000, context=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {},
            r"nothing says whether to train: pass tokens \(--tokens N\), or one_shot=True \(--one-shot\) to do without",
        ),
        ({"tokens": 9, "one_shot": True}, "tokens asks for training, and one_shot for none: pass one of them"),
        ({"tokens": 0}, "tokens is 0; training needs 1 or more"),
        ({"tokens": 9, "learning_rate": 0.0}, "learning_rate is 0; it lies between 0 and 1"),
        ({"tokens": 9, "rank": 0}, "rank is 0; an adapter has 1 or more"),
        ({"tokens": 9, "distill": 1.5}, "distill is 1.5; it is a share of the loss, from 0 to 1"),
        ({"tokens": 9, "adapter": "drop"}, "adapter is drop; there are merge, keep"),
        ({"tokens": 9, "text": ()}, r"tokens asks for training, which needs text: pass text \(--text FILE\)"),
    ],
)
def test_a_request_that_makes_no_sense(folder: Path, text: Path, tmp_path: Path, settings: dict, sentence: str) -> None:
    with pytest.raises(lorashear.LorashearError, match=sentence):
        lorashear.compile(folder, 0.3, tmp_path / "out", windows=4, **{"text": text, **settings})
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_the_same(
    folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"lorashear compile {folder} --ratio 0.3 --out {tmp_path / 'out'} --text {text} --tokens 600 --context 32"
    monkeypatch.setattr("sys.argv", [*words.split(), "--rank", "2", "--adapter", "keep", "--distill", "0"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("perplexity "))
    assert line.count(" → ") == 2
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def dealt(folder: Path, documents: list[str], tmp_path: Path, **more: int | bool) -> Windows:
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    settings = Settings(ratio=0.5, windows=8, context=16, **more)  # type: ignore[arg-type]
    return read_windows(folder, AutoConfig.from_pretrained(folder), {"text": [tmp_path / "text.txt"]}, settings)


def stories(count: int, words: int = 40) -> list[str]:
    """Documents no two windows of which are equal."""
    random = np.random.default_rng(0)
    return [" ".join(WORDS[i] for i in random.integers(0, 94, words)) for _ in range(count)]


@pytest.mark.parametrize("count", [1100, 6000])
def test_training_takes_no_window_from_any_other_use(folder: Path, tmp_path: Path, count: int) -> None:
    """Of a text that is tokenised whole, and of one of which only a share is needed for the rest."""
    documents = stories(count)
    without = dealt(folder, documents, tmp_path, one_shot=True)
    windows = dealt(folder, documents, tmp_path, tokens=40 * 16)
    assert len(windows.subsets[0].training) == 40 and not len(without.subsets[0].training)
    for use in ("calibration", "guard", "evaluation"):
        assert torch.equal(getattr(windows, use), getattr(without, use))
    rows = torch.cat([windows.calibration, windows.guard, windows.evaluation, windows.subsets[0].training])
    assert len(rows.unique(dim=0)) == len(rows)


def test_a_short_text_is_shared_half_and_half(folder: Path, tmp_path: Path) -> None:
    windows = dealt(folder, stories(20), tmp_path, tokens=10_000)
    parts = [
        len(part) for part in (windows.calibration, windows.guard, windows.evaluation, windows.subsets[0].training)
    ]
    assert sum(parts) == 20 * 41 // 16 and parts[3] == sum(parts) // 2 and min(parts) >= 1
    with pytest.raises(
        lorashear.LorashearError, match="the text has one window of 16 tokens, and none is left to train"
    ):
        dealt(folder, stories(1, 20), tmp_path, tokens=100)
