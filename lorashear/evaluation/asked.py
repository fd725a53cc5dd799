"""What a user wants to know of models: the words and defaults of `lorashear eval`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lorashear.errors import LorashearError

LEAST = {
    **{"context": 2, "stride": 1, "limit": 1},
    **{"batches": 1, "prompt": 1, "new_tokens": 1, "rounds": 1, "warm_up": 0},
}
OF = {
    **dict.fromkeys(("context", "stride", "packed"), ("text",)),
    **dict.fromkeys(("items", "harness"), ("tasks",)),
    "limit": ("text", "tasks"),
    **dict.fromkeys(("batches", "prompt", "new_tokens", "rounds", "warm_up"), ("speed",)),
}
"""What a setting is of: without all of these it would be ignored."""
FLAGS = {"text": "text (--text FILE)", "tasks": "tasks (--tasks NAME or FILE)", "speed": "speed (--speed)"}
SPELLED = {"packed": "apart"}
"""What the command line calls a setting that it turns round."""
CONTEXT = 2048
"""Tokens of a window at most where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Raises LorashearError where a value makes no sense; the sentence names it."""

    text: dict[str, list[str]] | list[str] = ()  # type: ignore[assignment]  # perplexity, of each by itself
    context: int | None = None  # tokens a window; by default as many as all models can read, at most 2048
    stride: int | None = None  # tokens from the beginning of a window to the next one's; by default the context
    packed: bool = True  # documents stand on end; or each has a window of its own
    limit: int | None = None  # windows of a text, spread over it, and the first items of a task
    tasks: tuple[str, ...] = ()  # multiple choice: names (see `tasks`), or files
    items: str | None = None  # folder with the items of the tasks that are names; by default they come from the hub
    harness: bool = False  # by lm-evaluation-harness, whose task files then count too
    speed: bool = False  # and memory
    batches: tuple[int, ...] = (1,)  # rows at once
    prompt: int = 128  # tokens that are read at once
    new_tokens: int = 32  # that are told, one after another
    rounds: int = 5  # in which every model runs once
    warm_up: int = 1  # rounds that do not count
    device: str = "cpu"
    dtype: str | None = None  # to compute in; by default float32 on a CPU, else as stored
    seed: int = 0  # of what is drawn

    def __post_init__(self) -> None:
        if not self.text and not self.tasks and not self.speed:
            raise LorashearError(
                "nothing is asked for: pass text (--text FILE), tasks (--tasks NAME or FILE) or speed (--speed)"
            )
        for name, least in LEAST.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if value is not None and (not isinstance(value, int) or value < least):
                    raise LorashearError(f"{name} is {value}; it is a whole number, {least} or more")
        if not self.batches or len(set(self.batches)) < len(self.batches):
            raise LorashearError(f"batches is {self.batches}; it is one number of rows, or several different ones")
        if self.stride is not None and not self.packed:
            raise LorashearError(
                "stride is of documents that stand on end, and each is by itself: leave one of them out"
            )
        if self.context is not None and self.stride is not None and self.stride > self.context:
            raise LorashearError(
                f"stride is {self.stride}, more than the context of {self.context}: tokens between windows would not count"
            )
        for each in fields(self):
            parts = OF.get(each.name, ())
            if parts and getattr(self, each.name) != each.default and not any(getattr(self, part) for part in parts):
                name, flags = SPELLED.get(each.name, each.name), " or ".join(FLAGS[part] for part in parts)
                raise LorashearError(f"{name} needs {flags}, which is not asked for: ask for it, or leave {name} out")
