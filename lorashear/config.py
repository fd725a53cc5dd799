"""What a user can ask of `compile` and `recover`: the dataclasses behind the functions and the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorashear.disk.layout import SHARD_BYTES
from lorashear.engines import needs
from lorashear.errors import LorashearError

KINDS = ("head", "query", "ffn", "hidden")
CRITERIA = ("obs", "wanda", "flap", "taylor", "lora", "magnitude", "random")
ADAPTER = ("merge", "keep")
POLICIES = ("decay", "half-space")
COSTS = ("parameters", "bytes", "flops", "latency")
MIXTURES = ("dynamic", "static")
HOW = ("save_every", "micro_batch", "gradient_checkpointing", "fsdp")
"""Settings that the result does not depend on, but for the order in which floats are added up."""
UNITS = {"s": 1, "m": 60, "h": 3600}
BATCH = 8
"""Windows a training step."""
STATES = 2
"""Of training, that are kept on the disk: of the last so many the newest that can be read counts."""
DISTILL = 0.8
"""Share of the training loss that is the distance from the dense model, where that is there."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The words and defaults of `lorashear recover`.

    Raises:
        LorashearError: a value makes no sense; the sentence names it.
    """

    tokens: int | None = None
    """To train on, of the text that nothing else uses, again and again where it is short."""
    mixture: str = "dynamic"
    """What has lost most is drawn most; ``static``: all subsets of the text alike."""
    tuning: float = 0.25
    """Share of the tokens, the last ones, that go to instruction data where there is some."""
    replay: float = 0.5
    """Share of those that are still of the text."""
    learning_rate: float | None = None
    """The highest; by default from the model's width."""
    batch: int = BATCH
    """Windows a training step, of all processes together."""
    micro_batch: int | None = None
    """Of them at once in each process; by default as many as keep the logits small."""
    gradient_checkpointing: bool = False
    """Activations are computed twice, and take less memory."""
    fsdp: bool = False
    """Each process holds a part of the weights while it trains."""
    full: bool = False
    """All weights of the pruned model are trained, not an adapter."""
    rank: int = 16
    """Of the LoRA adapters that are trained."""
    distill: float | None = None
    """Share of the training loss that is the distance from the dense model; by default 0.8 where that fits into memory beside
    the pruned one."""
    distill_top_k: int | None = None
    """Likeliest next tokens that the dense model says beforehand, so that it need not be in memory; by default it is, and says all."""
    adapter: str = "merge"
    """What was trained goes into the weights; ``keep``: beside them, as an adapter of PEFT."""
    packed: bool = True
    """Documents stand on end, are cut into windows, and attention crosses their boundaries; False (`--apart`): one document a window."""
    context: int | None = None
    """Tokens a window; by default the model's context, at most 512."""
    save_every: str = "10m"
    """States of training that a stopped run goes on from: a time (``30s``, ``10m``, ``1h``), or steps (``200``)."""
    shard_bytes: int = SHARD_BYTES
    """Of a weights file at most, but for a tensor that is larger."""
    device: str = "cpu"
    """Of torch: ``cpu``, ``cuda``, ``cuda:1``."""
    dtype: str | None = None
    """To compute in; by default float32 on a CPU, else as stored."""
    seed: int = 0
    """Of all that is random: the same seed gives the same plan."""

    @property
    def saved_every(self) -> tuple[int | None, float | None]:
        """Steps, or seconds, between two states of training."""
        found = re.fullmatch(r"([1-9][0-9]*)([smh]?)", self.save_every)
        if not found:
            raise LorashearError(
                f"save_every is {self.save_every}; it is a time as 30s, 10m or 1h, or a number of steps"
            )
        count, unit = int(found[1]), found[2]
        return (None, float(count * UNITS[unit])) if unit else (count, None)

    def __post_init__(self) -> None:
        _ = self.saved_every
        if self.tokens is not None and self.tokens < 1:
            raise LorashearError(f"tokens is {self.tokens}; training needs 1 or more")
        if self.mixture not in MIXTURES:
            raise LorashearError(f"mixture is {self.mixture}; there are {', '.join(MIXTURES)}")
        if not 0 < self.tuning < 1:
            raise LorashearError(f"tuning is {self.tuning:g}; it is a share of the tokens, between 0 and 1")
        if not 0 <= self.replay < 1:
            raise LorashearError(f"replay is {self.replay:g}; it is a share of the tokens, 0 or more and under 1")
        if self.context is not None and self.context < 8:
            raise LorashearError(f"context is {self.context}; a window needs 8 tokens or more")
        if self.shard_bytes < 1:
            raise LorashearError(f"shard_bytes is {self.shard_bytes}; a weights file has 1 or more")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise LorashearError(f"learning_rate is {self.learning_rate:g}; it lies between 0 and 1")
        if self.batch < 1:
            raise LorashearError(f"batch is {self.batch}; a step has 1 window or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise LorashearError(f"micro_batch is {self.micro_batch}; a forward has 1 window or more")
        if self.rank < 1:
            raise LorashearError(f"rank is {self.rank}; an adapter has 1 or more")
        if self.full and self.adapter == "keep":
            raise LorashearError(
                "full trains the weights themselves, so that there is no adapter to keep: leave one out"
            )
        if self.distill is not None and not 0 <= self.distill <= 1:
            raise LorashearError(f"distill is {self.distill:g}; it is a share of the loss, from 0 to 1")
        if self.distill_top_k is not None and self.distill_top_k < 1:
            raise LorashearError(f"distill_top_k is {self.distill_top_k}; it is a number of next tokens, 1 or more")
        if self.adapter not in ADAPTER:
            raise LorashearError(f"adapter is {self.adapter}; there are {', '.join(ADAPTER)}")


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """The words and defaults of `lorashear compile`.

    Raises:
        LorashearError: a value makes no sense; the sentence names it.
    """

    ratio: float | None = None
    """Share of all parameters to remove, tied ones counted once; this, or one of the next two."""
    params: int | None = None
    """Parameters that are left at most."""
    bytes: int | None = None
    """Bytes of tensors on disk that are left at most."""
    cost: str = "parameters"
    """What the ratio is of: ``parameters``, ``bytes`` on disk, ``flops`` or measured seconds (``latency``) a token."""
    one_shot: bool = False
    """No training."""
    per_layer: bool = False
    """Widths may differ between layers."""
    prune: tuple[str, ...] = ("head", "query", "ffn")
    """Kinds of structures."""
    round_to: int = 1
    """MLP and hidden widths are multiples of this."""
    target: str | None = None
    """An engine, whose needs are met too: see `lorashear.engines.needs`."""
    tensor_parallel: int = 1
    """Devices that split each layer there."""
    criterion: str | None = None
    """What ranks structures; by default obs with text, magnitude without; `compile` also takes a function."""
    compensate: bool = True
    """Refit what stays by least squares where there is text."""
    unprunable_ratio: float | None = None
    """Share of the groups, those worth most, kept whole; per layer only, where by default it is tried whether to keep those before
    the knee."""
    lhspg: float = 0.0
    """Share of the tokens of text in which structures fade before they are cut; 0: cut, then trained."""
    periods: int = 1
    """Of LHSPG: a part of the structures starts to fade in each."""
    policy: str = "decay"
    """Of LHSPG: all that fades by one ramp; ``half-space``: each structure as the loss lets it."""
    warm_up: float = 0.0
    """Share of LHSPG's steps before anything fades."""
    windows: int = 128
    """Of text to calibrate on."""

    @property
    def share(self) -> float:
        """The ratio; known where the model is (`lorashear.goals`)."""
        assert self.ratio is not None, "params and bytes are no ratio before the model is known"
        return self.ratio

    @property
    def multiples(self) -> dict[str, int]:
        """What widths that shrink are multiples of, by kind."""
        return needs.multiples(self.target, self.tensor_parallel, self.round_to)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_amount()
        if self.ratio is not None and not 0 < self.ratio < 1:
            cure = f": for {self.ratio:g} % write {self.ratio / 100:g}" if 1 < self.ratio < 100 else ""
            raise LorashearError(
                f"ratio is {self.ratio:g}; it is the share of {self.cost} to remove, between 0 and 1{cure}"
            )
        if self.cost not in COSTS:
            raise LorashearError(f"cost is {self.cost}; there are {', '.join(COSTS)}")
        unknown = [kind for kind in self.prune if kind not in KINDS]
        if unknown or not self.prune:
            raise LorashearError(f"prune names {', '.join(unknown) or 'nothing'}; the kinds are {', '.join(KINDS)}")
        if self.round_to < 1:
            raise LorashearError(f"round_to is {self.round_to}; it is a multiple for widths, 1 or more")
        needs.check(self.target, self.tensor_parallel, self.adapter == "keep")
        if self.unprunable_ratio is not None and not 0 <= self.unprunable_ratio < 1:
            raise LorashearError(
                f"unprunable_ratio is {self.unprunable_ratio:g}; it is a share of groups, 0 or more and under 1"
            )
        if self.unprunable_ratio is not None and not self.per_layer:
            raise LorashearError(
                "unprunable_ratio keeps single groups whole, so their layers differ: pass per_layer=True"
            )
        if self.windows < 1:
            raise LorashearError(f"windows is {self.windows}; calibration needs 1 or more")
        if self.criterion is not None and self.criterion not in CRITERIA:
            raise LorashearError(
                f"criterion is {self.criterion}; there are {', '.join(CRITERIA)}, and in Python a function of your own"
            )
        if self.tokens is None and not self.one_shot:
            raise LorashearError(
                "nothing says whether to train: pass tokens (--tokens N), or one_shot=True (--one-shot) to do without"
            )
        if self.tokens is not None and self.one_shot:
            raise LorashearError("tokens asks for training, and one_shot for none: pass one of them")
        if not 0 <= self.lhspg <= 1:
            raise LorashearError(f"lhspg is {self.lhspg:g}; it is a share of the tokens, from 0 to 1")
        if self.lhspg and self.tokens is None:
            raise LorashearError("lhspg is a share of the tokens to train on: pass tokens (--tokens N)")
        if self.periods < 1:
            raise LorashearError(f"periods is {self.periods}; LHSPG has 1 or more")
        if self.policy not in POLICIES:
            raise LorashearError(f"policy is {self.policy}; there are {', '.join(POLICIES)}")
        if not 0 <= self.warm_up < 1:
            raise LorashearError(f"warm_up is {self.warm_up:g}; it is a share of LHSPG's steps, 0 or more and under 1")

    def _check_amount(self) -> None:
        given = [name for name in ("ratio", "params", "bytes") if getattr(self, name) is not None]
        if not given:
            raise LorashearError(
                "nothing says how much to remove: pass ratio (--ratio 0.2), or what is left, params (--params 5e9) or bytes (--bytes 8GB)"
            )
        if len(given) > 1:
            raise LorashearError(f"{' and '.join(given)} each say how much to remove: pass one of them")
        if given[0] != "ratio":
            amount = getattr(self, given[0])
            if amount < 1:
                raise LorashearError(f"{given[0]} is {amount}; it is how many are left at most, 1 or more")
            if self.cost != "parameters":
                raise LorashearError(f"cost is what a ratio is of, and {given[0]} is no ratio: leave one of them out")
