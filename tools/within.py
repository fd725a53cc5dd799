"""What runs of the training studies run in, where `lorashear.compile` has no setting for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from lorashear import choosing
from lorashear_passes import oneshot
from lorashear_passes.splits import Budget, equal_shares
from lorashear_passes.surgery import units


@contextmanager
def pruned_to(widths: Callable[..., dict[str, int]]) -> Iterator[None]:
    """Compile prunes to the widths that this gives for a model, its groups, calibration batches and further arguments."""

    def compress(model: Any, groups: Any, batches: Any, **more: Any) -> Any:
        return oneshot.compress(model, groups, batches, **more, widths=widths(model, groups, batches, more))

    with mock.patch.object(choosing, "compress", compress):
        yield


@contextmanager
def equal(_: Any) -> Iterator[None]:
    """Every layer keeps the same share of its heads, its queries and its channels."""

    def widths(_: Any, groups: Any, __: Any, more: Mapping[str, Any]) -> dict[str, int]:
        shares = equal_shares({name: groups[name] for name in groups if units(groups[name]) > 1})
        return Budget(groups, more["ratio"]).widths(shares)

    with pruned_to(widths):
        yield
