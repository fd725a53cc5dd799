"""Which module is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Calls:
    """The path of the module that is running, and of the innermost one that an error came from."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.path = ""
        self.stopped_in = ""
        self._error: Exception | None = None
        self._paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Follow every call of a module; hooks would change the models that look at their hooks."""
        call = torch.nn.Module.__call__

        def followed(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            caller = self.path
            self.path = self._path(module, caller)
            try:
                return call(module, *args, **kwargs)
            except Exception as error:
                if error is not self._error:
                    self._error, self.stopped_in = error, self.path
                raise
            finally:
                self.path = caller

        torch.nn.Module.__call__ = followed
        try:
            yield
        finally:
            torch.nn.Module.__call__ = call

    def _path(self, module: torch.nn.Module, caller: str) -> str:
        """Of a module with several paths that under its caller; a module made on the way counts as its caller."""
        paths = self._paths.get(id(module), [caller])
        if len(paths) == 1:
            return paths[0]
        return next((path for path in paths if path.startswith(f"{caller}.")), paths[0])
