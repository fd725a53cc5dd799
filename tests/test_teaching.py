"""What the dense model says: asked for, or kept; all of it, or the likeliest; and batches of which it speaks in part."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

import lorashear
from lorashear.errors import Fault, LorashearError
from lorashear.learning import attaching, teaching, training
from lorashear.learning.losses import Losses, losses
from lorashear.learning.mixture import Mixture
from lorashear.learning.teaching import Online, Remembered, Said, Teacher, remember
from lorashear.text.data import PADDING, READ
from test_theorem import random_llama
from test_training import adapters, different, windows
from tools.cases import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = 96


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; where the files will be."""
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teacher"


def padded(rows: torch.Tensor) -> torch.Tensor:
    """The windows, each of another length."""
    rows = rows.clone()
    rows[torch.arange(rows.shape[1])[None] > torch.arange(3, len(rows) + 3)[:, None]] = PADDING
    return rows


def asked(rows: torch.Tensor, read: int = 5) -> torch.Tensor:
    """The windows, of which the first tokens are only read."""
    rows = rows.clone()
    rows[:, :read] = READ - rows[:, :read]
    return rows


def mixed() -> torch.Tensor:
    """Plain text and instruction data, of several lengths."""
    rows = padded(windows(8))
    rows[1::2] = torch.where(rows[1::2] == PADDING, PADDING, asked(rows[1::2], 2))
    return rows


def found(dense: Any, rows: torch.Tensor, k: int = VOCABULARY, known_by: str = "dense") -> Remembered:
    return remember(lambda: dense, [rows], k, known_by, "float32")


def never() -> Any:
    raise AssertionError("the dense model is there already")


def likeliest(dense: Any, k: int) -> Teacher:
    """As `Remembered`, but nothing is rounded."""

    def teacher(rows: torch.Tensor) -> Said:
        values, ids = Online(dense)(rows).likely.topk(k)
        return Said(values, ids)

    return teacher


TEACHERS: dict[str, Callable[[Any, torch.Tensor], Teacher]] = {
    "online": lambda dense, rows: Online(dense),
    "remembered": lambda dense, rows: found(dense, rows, 10),
}


def before(model: Any, dense: Any, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """The losses as they were computed when all windows were plain text and the dense model was asked for itself."""
    mask = rows != PADDING
    given = {"input_ids": rows * mask, "attention_mask": mask.long(), "output_hidden_states": True}
    ours, theirs = model(**given), dense(**given)
    targets = rows[:, 1:].masked_fill(rows[:, 1:] < 0, -100)
    told = targets >= 0
    logits, likely = ours.logits[:, :-1], theirs.logits[:, :-1].log_softmax(-1)
    divergence = functional.kl_div(logits.log_softmax(-1), likely, reduction="none", log_target=True)
    pairs = [(h[:, :-1][told], H[:, :-1][told]) for h, H in zip(ours.hidden_states, theirs.hidden_states, strict=True)]
    distance = [((h - H).square().sum(-1) / H.square().sum(-1)).mean() for h, H in pairs[1:]]
    return {
        "text": functional.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        "divergence": divergence.sum(-1)[told].mean(),
        "distance": torch.stack(distance).mean(),
    }


@pytest.mark.parametrize("rows", [windows(), padded(windows())], ids=["full", "padded"])
def test_asked_for_it_is_what_it_was(rows: torch.Tensor) -> None:
    model = attaching.attach(random_llama("tied"), rank=2)
    now, then = losses(model, Online(different()), rows), before(model, different(), rows)
    for name, value in then.items():
        torch.testing.assert_close(getattr(now, name), value, rtol=1e-5, atol=1e-6)
    assert torch.equal(now.text, now.taught) and torch.equal(now.total(1.0, 1.0), now.divergence)
    total = now.text.lerp(now.divergence + 10 * 0.25 * now.distance, 0.3)
    torch.testing.assert_close(now.total(0.3, 0.5), total)


@pytest.mark.parametrize("rows", [windows(), padded(windows())], ids=["full", "padded"])
def test_all_tokens_are_the_whole_divergence(rows: torch.Tensor) -> None:
    model, dense = random_llama("tied"), different()
    whole = losses(model, Online(dense), rows)
    near = losses(model, likeliest(dense, VOCABULARY), rows)
    kept = losses(model, found(dense, rows), rows)
    torch.testing.assert_close(near.divergence, whole.divergence, rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(kept.divergence, whole.divergence, rtol=2e-3, atol=1e-4)
    assert torch.equal(kept.text, whole.text) and kept.distance is None


def test_fewer_tokens_are_a_lower_bound_that_rises() -> None:
    model, dense = random_llama("tied"), different()
    whole = losses(model, Online(dense), windows()).divergence
    assert whole is not None
    for teacher, near in ((likeliest, 1e-6), (lambda dense, k: found(dense, windows(), k), 5e-3)):
        bounds = [losses(model, teacher(dense, k), windows()).divergence.item() for k in (1, 2, 5, 20, 60, 96)]  # type: ignore[union-attr]
        assert bounds == sorted(bounds) and 0 < bounds[0] < 0.9 * whole.item()
        assert bounds[-1] < whole.item() * (1 + near)


def test_it_is_the_divergence_of_two_groups() -> None:
    p, q = (torch.tensor(values) for values in ([0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]))

    class Known(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("", (), {"logits": (q.log() + 3).expand(*input_ids.shape, 4)})

    said = Said(p[:2].log()[None], torch.tensor([[0, 1]]))
    want = sum(a * np.log(a / b) for a, b in ((0.5, 0.1), (0.3, 0.2), (0.2, 0.7)))
    got = losses(Known(), lambda rows: said, torch.tensor([[0, 1]]))
    assert got.divergence is not None and got.divergence.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("sure", [20.0, 200.0])
def test_a_model_that_is_sure_has_numbers(sure: float) -> None:
    """All that is left to the other tokens is nothing, in float32 and even more so in float16."""
    logits = torch.zeros(1, 2, 5)
    logits[..., 3] = sure
    logits.requires_grad_()
    model: Any = lambda **_: type("", (), {"logits": logits})  # noqa: E731
    for dense in (3, 2):
        likely = torch.zeros(1, 5).index_fill(1, torch.tensor([dense]), sure).log_softmax(-1)
        values, ids = likely.half().float().topk(2)
        found = losses(model, lambda rows: Said(values, ids), torch.tensor([[3, 1]]))
        assert found.divergence is not None
        (slope,) = torch.autograd.grad(found.divergence, logits)
        assert found.divergence.isfinite() and slope.isfinite().all()
        assert found.divergence.item() == pytest.approx(0 if dense == 3 else sure, rel=1e-5, abs=1e-5)


def counted(rows: torch.Tensor) -> int:
    return int((rows[:, 1:] >= 0).sum())


def values(each: Losses) -> dict[str, float]:
    return {"total": each.total(0.3, 0.2).item()} | {n: v.item() for n, v in vars(each).items() if v is not None}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_mixed_batch_is_its_windows_weighed(kind: str) -> None:
    model, dense, rows = random_llama("tied"), different(), mixed()
    teacher = TEACHERS[kind](dense, rows)
    together = values(losses(model, teacher, rows))
    alone = [(values(losses(model, teacher, row)), counted(row)) for row in rows.split(1)]
    for name, value in together.items():
        parts = sum(found[name] * count for found, count in alone)
        assert value == pytest.approx(parts / counted(rows), rel=1e-4)
    assert ("distance" in together) == (kind == "online")
    for plain, (one, _) in zip((rows > READ).all(1).tolist(), alone, strict=True):
        text = values(losses(model, None, rows[:1]))["text"] if plain else one["text"]
        assert one["taught"] == (one["text"] if plain else 0) and text
        assert one["total"] == one["text"] or plain
        assert one["divergence"] > 0 if plain else one["divergence"] == one.get("distance", 0) == 0


def test_what_is_only_read_is_no_less_text() -> None:
    rows = mixed()
    model = random_llama("tied")
    assert losses(model, Online(different()), rows).text == losses(model, None, rows).text


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_part_without_any_such_window_has_numbers(kind: str) -> None:
    """And so has one that tells nothing at all; the dense model's names are the same in every process."""
    model = attaching.attach(random_llama("tied"), rank=2)
    teacher = TEACHERS[kind](different(), windows())
    for rows in (asked(windows(2)), READ - windows(2)):
        part = losses(model, teacher, rows)
        part.total(0.5, 0.5).backward()
        assert vars(part).keys() == vars(losses(model, teacher, windows())).keys()
        assert all(np.isfinite(value) for value in values(part).values())
        assert part.total(0.5, 0.5) == part.text and part.divergence == 0
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def trained(teacher: Teacher | None, rows: torch.Tensor, **more: Any) -> tuple[Any, list[training.Step]]:
    hyper = training.Hyperparameters(**{"steps": 4, "rate": 1e-2, "rank": 2, "seed": 1, **more})
    model, steps = attaching.attach(random_llama("tied"), rank=2, seed=1), []
    training.train(model, Mixture.of(rows, hyper), teacher=teacher, stepped=steps.append)
    return model, steps


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_mixed_batch_in_parts_trains_the_same(kind: str) -> None:
    teacher = TEACHERS[kind](different(), mixed())
    whole, steps = trained(teacher, mixed())
    for size in (1, 3):
        parts, others = trained(teacher, mixed(), micro_batch=size)
        for name in ("loss", "text", "divergence", "distance"):
            got, want = ([getattr(step, name) for step in some] for some in (others, steps))
            assert got == (want if want[0] is None else pytest.approx(want, rel=1e-4))
        for name, p in adapters(whole).items():
            torch.testing.assert_close(p, adapters(parts)[name], rtol=1e-3, atol=1e-5)


def test_a_stream_of_another_width_is_none_in_any_part() -> None:
    wide = Online(AutoModelForCausalLM.from_config(tiny("llama", vocab_size=96, hidden_size=64)))
    for rows in (windows(), asked(windows()), mixed()):
        assert losses(random_llama("tied"), wide, rows).distance is None


def test_what_is_kept_is_found_again(cached: Path) -> None:
    """Without the dense model, in another order, in narrower integers, and by another process."""
    rows, dense = padded(windows()), different()
    told: list[tuple[str, int, int]] = []
    teacher = remember(lambda: dense, [rows[:10], rows[10:]], 7, "dense", "float32", lambda *how: told.append(how))
    assert told[-1] == ("remember", 16, 16) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    order = torch.randperm(16)
    assert remember(never, [rows[order].short()], 7, "dense", "float32") == teacher
    assert list(cached.iterdir()) == [teacher.path]
    assert teacher.path.stat().st_size == 32 + 16 * 24 + counted(rows) * 7 * 4
    again: Remembered = pickle.loads(pickle.dumps(teacher))
    for some in (rows, rows[order], rows[3:4], rows[:0], rows[:2, :6]):
        want = Online(dense)(some).likely.topk(7) if len(some) else torch.empty(0, 7).topk(7)
        for said in (teacher(some), again(some)):
            assert said.ids is not None and said.ids.dtype == torch.int64 and said.likely.dtype == torch.float32
            assert torch.equal(said.ids, want.indices if len(some) else said.ids) and len(said.ids) == len(want.values)
            torch.testing.assert_close(said.likely, want.values, rtol=1e-3, atol=1e-3)
    assert len(pickle.dumps(teacher)) < 1000


def test_anything_else_is_another_file(cached: Path) -> None:
    rows, dense = windows(), different()
    remember(lambda: dense, [rows], 4, "dense", "float32")
    for others in ((rows[:15], 4, "dense", "float32"), (rows, 5, "dense", "float32")):
        remember(lambda: dense, [others[0]], *others[1:])
    remember(lambda: dense, [rows], 4, "other", "float32")
    remember(lambda: dense, [rows], 4, "dense", "bfloat16")
    assert len(list(cached.iterdir())) == 5
    with pytest.raises(AssertionError, match="is there already"):
        remember(never, [rows], 3, "dense", "float32")


def test_windows_twice_are_kept_once_and_read_ones_not_at_all() -> None:
    rows, dense = windows(), different()
    teacher = remember(lambda: dense, [rows[:8], asked(rows), rows[4:], rows[:0]], 3, "dense", "float32")
    assert teacher.path.stat().st_size == 32 + 16 * 24 + 16 * 15 * 3 * 4
    said, want = teacher(rows), Online(dense)(rows).likely.topk(3)
    assert said.ids is not None and torch.equal(said.ids, want.indices)
    nothing = remember(lambda: dense, [asked(rows)], 3, "dense", "float32")
    assert len(nothing(rows[:0]).likely) == 0
    with pytest.raises(Fault):
        nothing(rows)


def test_more_tokens_than_there_are() -> None:
    said = found(different(), windows(), 1000)(windows(2))
    assert said.likely.shape == (2 * 15, VOCABULARY)


def test_a_window_that_is_not_there() -> None:
    teacher = found(different(), windows(8), 3)
    with pytest.raises(Fault, match="window 8 of 16 is none of the 8 of which .* please report it"):
        teacher(windows(16))


def test_a_vocabulary_that_needs_four_bytes() -> None:
    """Ids above 32,767 and above 65,535."""
    for size, width in ((40_000, 2), (70_000, 4)):
        dense = AutoModelForCausalLM.from_config(tiny("llama", vocab_size=size))
        rows = torch.tensor([[size - 1, 3, size - 2, 5]])
        teacher = remember(lambda: dense, [rows], 200, str(size), "float32")
        assert teacher.path.stat().st_size == 32 + 24 + 3 * 200 * (width + 2)
        said, want = teacher(rows), dense(input_ids=rows).logits[0, :-1].topk(200)
        assert said.ids is not None and torch.equal(said.ids, want.indices) and said.ids.max() > 32_767 * width / 2


def test_an_impossible_token_has_a_number() -> None:
    dense = different()
    dense.lm_head.register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, torch.tensor([5]), -torch.inf)
    )
    got = losses(random_llama("tied"), found(dense, windows()), windows())
    assert got.divergence is not None and got.divergence.isfinite()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_stopped_leaves_nothing(
    cached: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(teaching, "batch_size", lambda *_: 3)
    dense = different()

    def stopping(what: str, done: int, total: int) -> None:
        if done > 6:
            raise error

    with pytest.raises(error):
        remember(lambda: dense, [windows()], 4, "dense", "float32", stopping)
    assert not list(cached.iterdir())
    said = found(dense, windows(), 4)(windows())
    assert said.ids is not None and torch.equal(said.ids, Online(dense)(windows()).likely.topk(4).indices)


def test_a_disk_that_is_too_small(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10})())
    sentence = (
        r"^what the dense model says may need 0\.00 GB in '.*teacher', but only 0\.00 GB are free there; make room, "
    )
    with pytest.raises(
        LorashearError,
        match=sentence + r"ask for fewer of its likeliest tokens \(--distill-top-k\), or set LORASHEAR_CACHE",
    ):
        found(different(), windows(), 4)
    assert not list(cached.iterdir())


def test_it_teaches_as_well_without_being_there() -> None:
    """What a pruned model comes to beside the likeliest tokens in a file is nearly what it comes to beside the dense one."""
    dense, rows = different(), windows()
    teacher = found(dense, rows, 20)
    dense.forward = never  # type: ignore[method-assign]
    model, steps = trained(teacher, rows, steps=60, rate=2e-2, distill=1.0)
    beside, others = trained(Online(different()), rows, steps=60, rate=2e-2, distill=1.0)
    assert all(step.distance is None for step in steps)
    start, kept, online = (
        losses(each, Online(different()), rows).divergence.item()  # type: ignore[union-attr]
        for each in (random_llama("tied"), model, beside)
    )
    assert kept < 0.5 * start and kept < online + 0.1 * start


def test_recovery_from_a_file(folder: Path, text: Path, tmp_path: Path, cached: Path) -> None:
    """The dense model is asked before the pruned one trains, and the report says how it was."""
    settings: dict[str, Any] = {"text": text, "windows": 8, "context": 32, "rank": 2, "tokens": 3000}
    found = lorashear.compile(folder, 0.3, tmp_path / "out", distill_top_k=8, **settings)
    assert len(list(cached.iterdir())) == 1
    first = (tmp_path / "out" / "lorashear" / "training.jsonl").read_text().splitlines()[0]
    assert '"distance": null' in first and '"divergence": null' not in first
    assert found.report["perplexity"]["after"] < found.report["perplexity"]["pruned"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(lorashear.LorashearError, match="distill_top_k is 0; it is a number of next tokens, 1 or more"):
        lorashear.compile(folder, 0.3, tmp_path / "other", distill_top_k=0, **settings)
