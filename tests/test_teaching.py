"""Dense models that teach: there, or as a file has them; and batches of which only a part is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import lorashear
from lorashear import attaching, cache, training
from lorashear.data import PADDING, READ, inputs, told
from lorashear.errors import Fault
from lorashear.losses import Said, losses
from lorashear.mixture import Mixture
from lorashear.teaching import Online, Remembered, remember
from test_theorem import random_llama

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORASHEAR_CACHE", str(tmp_path / "cache"))
    return cache.folder() / "teacher"


def dense(seed: int = 1) -> Any:
    torch.manual_seed(seed)
    found = random_llama("tied").eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return found


def plain(count: int = 6, length: int = 12) -> Tensor:
    rows = torch.randint(0, 90, (count, length), generator=torch.Generator().manual_seed(5))
    rows[1, 7:] = PADDING
    return rows


def asked(count: int = 3, length: int = 12) -> Tensor:
    """Questions and answers."""
    rows = plain(count, length)
    rows[:, :5] = READ - rows[:, :5]
    return rows


def vocabulary(model: Any) -> int:
    return int(model.config.vocab_size)


def never() -> Any:
    raise AssertionError("the dense model was asked")


class Silent:
    def __call__(self, rows: Tensor) -> Said:
        raise AssertionError("nothing of these windows is taught")


def test_all_of_what_is_likely_is_the_whole_divergence(kept_in: Path) -> None:
    """But for float16 in the file."""
    model, teacher, rows = random_llama("tied"), dense(), plain()
    kept = remember(lambda: teacher, [rows], vocabulary(model), "a")
    whole, remembered = (losses(model, each, rows) for each in (Online(teacher), Remembered(kept, [rows])))
    assert whole.divergence is not None and remembered.divergence is not None
    assert remembered.divergence.item() == pytest.approx(whole.divergence.item(), abs=3e-3)
    assert remembered.distance is None and whole.distance is not None
    assert remembered.text == whole.text


def test_fewer_of_them_are_a_lower_bound(kept_in: Path) -> None:
    model, teacher, rows = random_llama("tied"), dense(), plain()
    found: list[float] = []
    for k in (1, 2, 8, 40, vocabulary(model)):
        divergence = losses(model, Remembered(remember(lambda: teacher, [rows], k, "a"), [rows]), rows).divergence
        assert divergence is not None
        found.append(divergence.item())
    assert found == sorted(found) and found[0] > 0 and found[0] < 0.9 * found[-1]


def test_what_it_says_of_itself_is_no_divergence(kept_in: Path) -> None:
    """Its gradient is next to nothing as well."""
    model = attaching.attach(random_llama("tied"), rank=2)
    rows = plain()
    kept = remember(random_llama("tied").eval, [rows], 4, "a")
    divergence = losses(model, Remembered(kept, [rows]), rows).divergence
    assert divergence is not None and abs(divergence.item()) < 1e-3
    divergence.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-2 for p in model.parameters())


@pytest.mark.parametrize("remembered", [False, True])
def test_only_windows_of_text_are_taught(kept_in: Path, remembered: bool) -> None:
    """A batch is the sum of its parts by their tokens; of questions and answers only the text counts."""
    model, teacher = random_llama("tied"), dense()
    text, answers = plain(), asked()
    rows = torch.cat([answers[:1], text, answers[1:]])
    kept = remember(lambda: teacher, [text, answers], 8, "a") if remembered else None
    given = Remembered(kept, [text]) if kept else Online(teacher)
    both, one, other = losses(model, given, rows), losses(model, given, text), losses(model, Silent(), answers)
    share = told(text) / told(rows)
    assert both.text.item() == pytest.approx((share * one.text + (1 - share) * other.text).item(), rel=1e-5)
    assert both.divergence is not None and one.divergence is not None and other.divergence is None
    assert both.divergence.item() == pytest.approx(share * one.divergence.item(), rel=1e-4)
    if not remembered:
        assert both.distance is not None and one.distance is not None
        assert both.distance.item() == pytest.approx(share * one.distance.item(), rel=1e-4)
    for distill, done in ((0.8, 0.0), (0.3, 0.6), (0.0, 0.0)):
        parts = share * one.total(distill, done) + (1 - share) * other.total(distill, done)
        assert both.total(distill, done).item() == pytest.approx(parts.item(), rel=1e-4)


def test_a_mixed_batch_in_parts_trains_the_same() -> None:
    text, answers = plain(8), asked(4)
    rows = torch.cat([text, answers])

    def trained(micro_batch: int) -> tuple[dict[str, Tensor], list[training.Step]]:
        model = attaching.attach(random_llama("tied"), rank=2)
        steps: list[training.Step] = []
        recipe = training.Recipe(3, 1e-2, rank=2, batch=12, micro_batch=micro_batch)
        training.train(model, Mixture.of(rows, recipe), teacher=Online(dense()), stepped=steps.append)
        return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}, steps

    whole, steps = trained(12)
    for size in (1, 5):
        parts, others = trained(size)
        for step, other in zip(steps, others, strict=True):
            for name in ("loss", "text", "divergence", "distance"):
                assert getattr(other, name) == pytest.approx(getattr(step, name), rel=1e-4)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)


def test_a_file_is_made_once_and_found_again(kept_in: Path) -> None:
    rows, teacher = plain(), dense()
    told_of: list[tuple[str, int, int]] = []
    kept = remember(lambda: teacher, [rows], 4, "a", lambda *each: told_of.append(each))
    assert told_of == [("teach", 6, 6)] and kept.path.stat().st_size == 6 * 11 * 4 * 6
    assert remember(never, [rows], 4, "a") == kept
    assert [file.name for file in kept_in.iterdir()] == [kept.path.name]
    for more in (([rows[:4]], 4, "a"), ([rows], 5, "a"), ([rows], 4, "b")):
        with pytest.raises(AssertionError, match="was asked"):
            remember(never, *more)


def test_one_that_was_stopped_leaves_nothing(kept_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorashear.teaching.batch_size", lambda *_: 2)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(dense, [plain()], 4, "a", stop)
    assert not list(kept_in.iterdir())


def test_windows_of_narrow_numbers_and_in_parts_are_the_same(kept_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, model = plain(), random_llama("tied")
    one = remember(dense, [rows], 4, "a")
    before = Remembered(one, [rows])(rows)
    assert remember(never, [rows.to(torch.int16)], 4, "a") == one
    one.path.unlink()
    monkeypatch.setattr("lorashear.teaching.batch_size", lambda *_: 1)
    again = remember(dense, [rows[:2], rows[2:]], 4, "a")
    after = Remembered(again, [rows])(rows)
    assert again.path == one.path
    assert (after.likely - before.likely)[rows[:, 1:] != PADDING].abs().max() < 0.01
    order = torch.tensor([3, 0, 5])
    assert losses(model, Remembered(again, [rows.to(torch.int16)]), rows[order]).divergence is not None


def test_a_window_that_was_not_asked_about_is_our_fault(kept_in: Path) -> None:
    kept = remember(dense, [plain()], 4, "a")
    with pytest.raises(Fault, match="that the dense model was not asked of"):
        Remembered(kept, [plain()])(plain() + 1)


def test_a_full_disk(kept_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorashear.teaching.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(lorashear.LorashearError, match="what the dense model says needs 0.00 GB in .* or a smaller"):
        remember(never, [plain()], 4, "a")


def test_training_with_a_file_comes_near_to_training_beside_the_model(kept_in: Path) -> None:
    """And learns from it: the divergence falls, to about what it falls to beside the model itself."""
    rows, teacher = plain(12), dense()
    kept = remember(lambda: teacher, [rows], 32, "a")
    ends: list[float] = []
    for given in (Online(teacher), Remembered(kept, [rows])):
        model = attaching.attach(random_llama("tied"), rank=4)
        recipe = training.Recipe(40, 1e-2, rank=4, batch=12, distill=1.0)
        training.train(model, Mixture.of(rows, recipe), teacher=given)
        with torch.no_grad():
            p, q = (m(**inputs(rows)).logits[:, :-1].log_softmax(-1) for m in (teacher, model))
        ends.append((p.exp() * (p - q)).sum(-1).mean().item())
    with torch.no_grad():
        q = random_llama("tied")(**inputs(rows)).logits[:, :-1].log_softmax(-1)
        p = teacher(**inputs(rows)).logits[:, :-1].log_softmax(-1)
    begin = (p.exp() * (p - q)).sum(-1).mean().item()
    assert max(ends) < 0.8 * begin and ends[1] < ends[0] + 0.1 * begin


def test_recovery_from_a_file(folder: Path, text: Path, tmp_path: Path, kept_in: Path) -> None:
    """The dense model is asked before the pruned one trains, and the report says how it was."""
    settings: dict[str, Any] = {"text": text, "windows": 8, "context": 32, "rank": 2, "tokens": 3000}
    found = lorashear.compile(folder, 0.3, tmp_path / "out", distill_top_k=8, **settings)
    assert len(list(kept_in.iterdir())) == 1
    first = (tmp_path / "out" / "lorashear" / "training.jsonl").read_text().splitlines()[0]
    assert '"distance": null' in first and '"divergence": null' not in first
    assert found.report["perplexity"]["after"] < found.report["perplexity"]["pruned"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(lorashear.LorashearError, match="distill_top_k is 0; it is a number of next tokens, 1 or more"):
        lorashear.compile(folder, 0.3, tmp_path / "other", distill_top_k=0, **settings)
