"""What was found out is kept for the same question alone, and nobody can spoil it for the next."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import lorashear
from lorashear import models
from lorashear.emission import emit
from lorashear.emission.remembering import Remembered
from lorashear.models import build_twin
from tools.cases import tiny


def test_the_latest_used_are_kept_and_errors_are_not() -> None:
    asked: list[str] = []

    def find(what: str) -> str:
        asked.append(what)
        if what == "no":
            raise ValueError
        return what.upper()

    kept: Remembered[str] = Remembered(2)
    for what in ("a", "b", "a", "c", "a"):
        assert kept.get(what, lambda what=what: find(what)) == what.upper()
    assert asked == ["a", "b", "c"]
    assert kept.get("b", lambda: find("b")) == "B" and asked[-1] == "b"
    for _ in range(2):
        with pytest.raises(ValueError):
            kept.get("no", lambda: find("no"))
    assert asked[-2:] == ["no", "no"]


def test_a_config_that_is_changed_afterwards_is_not_the_next_one() -> None:
    twin = build_twin(tiny("llama"))
    groups = lorashear.groups(twin)
    removed = {name: [0] for name, each in groups.items() if each.kind == "ffn"}
    first, _ = emit.solve(twin.config, groups, removed)
    assert first is not None
    first.config.intermediate_size = 1
    second, _ = emit.solve(twin.config, lorashear.groups(build_twin(tiny("llama"))), removed)
    assert second is not None and second.config.intermediate_size == 47


def test_what_a_class_is_asked_once_another_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of a folder is known by its class, config and program; a model in memory may be any other inside."""
    times = 0
    reasons = models._reasons

    def counted(*given: object) -> dict[str, str]:
        nonlocal times
        times += 1
        return reasons(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "_reasons", counted)

    class Own(LlamaForCausalLM):
        pass

    config = tiny("llama", intermediate_size=40)
    first = lorashear.groups(build_twin(config))
    assert dict(lorashear.groups(build_twin(config))) == dict(first)
    assert times == 1
    with torch.device("meta"):
        lorashear.groups(Own(config))
    lorashear.groups(build_twin(tiny("llama", intermediate_size=44)))
    assert times == 3
    for _ in range(2):
        lorashear.groups(AutoModelForCausalLM.from_config(config))
    assert times == 5
