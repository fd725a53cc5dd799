"""The processes of a run: one, or several that the user's launcher has started (`torchrun`, `accelerate launch`).

The first one runs the program, and the others follow it: they wait until there is something to train, and train their share.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler
from torch import Tensor

from lorashear.errors import LorashearError
from lorashear.learning import launched
from lorashear.learning.launched import Ended, Lost

T = TypeVar("T")
Task = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module, and its arguments."""

PATIENCE = timedelta(minutes=30)
"""How long one process waits in training for what another one is to send, before it takes it for dead."""
LOOK = 0.05  # seconds between two looks for a task


class Processes:
    """All that train together; ``size`` is 1 where no launcher started more."""

    def __init__(self, device: str = "cpu") -> None:
        """
        Raises:
            LorashearError: the launcher asks for a precision that the loss would have to be scaled for.
        """
        self.size, self.rank = launched.count(), launched.rank()
        self._device = device
        if launched.precision() not in ("no", "bf16"):
            raise LorashearError(
                f"the launcher's mixed_precision is {launched.precision()}; training knows no and bf16"
            )

    @property
    def main(self) -> bool:
        return self.rank == 0

    @cached_property
    def accelerator(self) -> Accelerator:
        """What the launcher says of precision, and of how to reach the others. Models are put on devices elsewhere."""
        cpu = self.size > 1 and self._device == "cpu"
        handlers: list[KwargsHandler] = [InitProcessGroupKwargs(timeout=PATIENCE)]
        return Accelerator(cpu=cpu, device_placement=False, kwargs_handlers=handlers)

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return value
        with self.others("adding up"):
            there = value.to(self.accelerator.device)
            there = there.clone() if there is value else there
            dist.all_reduce(there)
            return there.to(value.device)

    def agreed(self, value: T) -> T:
        """What the first process has where this one has ``value``: a tensor of the same shape, or any object."""
        if self.size == 1:
            return value
        with self.others("agreeing"):
            if isinstance(value, Tensor):
                there = value.detach().to(self.accelerator.device).clone(memory_format=torch.contiguous_format)
                dist.broadcast(there, 0)
                return there.to(value.device)  # type: ignore[return-value]
            held = [value]
            dist.broadcast_object_list(held, 0)
            return held[0]

    def gathered(self, value: T) -> list[T]:
        """What every process has, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self.others("gathering"):
            dist.all_gather_object(found, value)
        return found

    def dealt(self, rows: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
        """This process's windows, at most so many at once, each with 1; every process gets as many parts, so that sharded
        weights are gathered as often in each, and one that is there for that alone has 0."""
        parts = [(part, 1) for part in rows[self.rank :: self.size].split(size) if len(part)]
        most = -(-len(rows) // self.size)
        yield from parts
        yield from [(rows[:1], 0)] * (-(-most // size) - len(parts))

    @contextmanager
    def others(self, doing: str) -> Iterator[None]:
        """Where the others are waited for: that one of them has died is told in a sentence."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or isinstance(error, torch.OutOfMemoryError) or not _lost(error):
                raise
            raise Lost(
                f"process {self.rank} of {self.size} has lost another one while {doing}: see what that one said last, "
                "and go on from the last state with --resume"
            ) from error

    @contextmanager
    def leading(self) -> Iterator[None]:
        """In the first process, while it runs the program; at its end the others stop following."""
        ended = False
        try:
            yield
            ended = True
        finally:
            if self.size > 1:
                with suppress(Exception):  # whatever ends the run is told already, and the others may be gone
                    self._tell(ended)

    def tell(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """In the first process: let all others call a function of a module, each with its own `Processes` in front of the
        arguments, which are pickled."""
        if self.size > 1:
            self._tell((function, arguments))

    def follow(self) -> None:
        """In the others: take part in what the first process calls, until it ends.

        Raises:
            Ended: with an error.
        """
        while not isinstance(task := self._told(), bool):
            function, arguments = task
            function(self, *arguments)
        if not task:
            raise Ended(f"process {self.rank} of {self.size} ends: the first one has failed, and says why")

    @cached_property
    def _control(self) -> Any:
        """A group of its own: the first process may take hours until the next task."""
        _ = self.accelerator
        return dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def _tell(self, task: Task | bool) -> None:
        content = torch.frombuffer(bytearray(pickle.dumps(task)), dtype=torch.uint8)
        for part in (torch.tensor([len(content)]), content):
            self._broadcast(part)

    def _told(self) -> Task | bool:
        length = torch.zeros(1, dtype=torch.int64)
        self._broadcast(length)
        content = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(content)
        return pickle.loads(content.numpy().tobytes())

    def _broadcast(self, value: Tensor) -> None:
        """Python sees signals only between two steps of its own: a process that waits must look now and then."""
        with self.others("waiting for the first one"):
            work = dist.broadcast(value, 0, group=self._control, async_op=True)
            assert work is not None
            while not work.is_completed():
                time.sleep(LOOK)
            work.wait()


def _lost(error: RuntimeError) -> bool:
    """Whether it says that a process is not there any more."""
    said = str(error)
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "Gloo", "NCCL", "onnection"))
