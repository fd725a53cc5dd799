"""Where the weights of a model lie while it is trained: here, or in parts in several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["Weights"]

T = TypeVar("T")


class Weights:
    """Those of a model that lies here as a whole, and that one process alone trains.

    Where several train it, each has a `Weights` of its own kind, and all call the same methods in the same order.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def here(self, name: str) -> Tensor:
        """What lies here of a weight: some of its rows, all of them in one process."""
        return self.model.get_parameter(name).data

    def rows(self, name: str) -> tuple[int, int]:
        """Which rows of a weight lie here: the first, and the one behind the last."""
        return 0, len(self.here(name))

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The model with whole weights, to be looked at; what becomes of them in here need not outlast it."""
        yield self.model

    def agreed(self, value: T) -> T:
        """What the first process has where this one has ``value``: a tensor of the same shape, or any object."""
        return value

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value
