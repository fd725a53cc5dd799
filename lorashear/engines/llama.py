"""A checkpoint as engines see a LLaMA: widths of each layer, and the numbers beside the weights. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import BESIDE
from lorashear.errors import LorashearError

TYPES = ("llama", "mistral", "lorashear_llama", "lorashear_mistral")
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
NORMS = ("input_layernorm", "post_attention_layernorm")
PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
GIVEN = {"num_key_value_groups", "intermediate_size", "hidden_size", "in_features", "out_features", "weight"}
GIVEN |= {"num_embeddings", "embedding_dim"}
"""Attributes of modules whose new values are told by the shapes of the weights."""
EPS = "variance_epsilon"
"""Of a norm, which fewer channels change for all norms alike."""


@dataclass(frozen=True)
class Layer:
    """Widths: query heads, key-value heads, and of the MLP."""

    heads: int
    kv_heads: int
    ffn: int


@dataclass(frozen=True)
class Llama:
    """What an engine has to know of a LLaMA beside its weights.

    ``rope`` is `rope_parameters` of the config, with ``rope_theta`` and ``rope_type``; ``positions`` is how many tokens it was made
    for; ``tied`` is whether the output head is the embedding, which is stored as the tensor ``embedding``.
    """

    hidden: int
    vocabulary: int
    head_dim: int
    layers: tuple[Layer, ...]
    eps: float
    positions: int
    rope: Mapping[str, Any]
    tied: bool
    embedding: str = EMBEDDING

    @property
    def is_uniform(self) -> bool:
        """Whether all layers are alike."""
        return len(set(self.layers)) == 1

    def is_plain(self, source: Checkpoint) -> bool:
        """Whether the checkpoint that this was read from is of a class that every engine has."""
        return self.is_uniform and "module_overrides" not in source.config

    @classmethod
    def of(cls, source: Checkpoint) -> Llama:
        """Read from config and shapes, whichever class was written for them.

        Raises:
            LorashearError: it computes something that is no LLaMA; the message is half a sentence that says what.
        """
        config = source.config
        if config["model_type"] not in TYPES:
            raise LorashearError(f"its model type is {config['model_type']}, and no LLaMA")
        if config.get("hidden_act", "silu") != "silu":
            raise LorashearError(f"its activation is {config['hidden_act']}, and silu is meant")
        if config.get("sliding_window") is not None:
            raise LorashearError(f"its attention sees {config['sliding_window']} tokens, and all are meant")
        if odd := next((name for name in source.tensors if name.endswith(".bias")), None):
            raise LorashearError(f"{odd} is a bias")
        _check_overrides(config)
        tied = bool(config.get("tie_word_embeddings"))
        embedding = HEAD if tied and EMBEDDING not in source.tensors else EMBEDDING
        vocabulary, hidden = _shape(source, embedding)
        if not tied:
            _shape(source, HEAD)
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        found = cls(
            hidden=hidden,
            vocabulary=vocabulary,
            head_dim=head_dim,
            layers=tuple(_layer(source, f"model.layers.{at}.", head_dim) for at in range(config["num_hidden_layers"])),
            eps=_eps(config),
            positions=config["max_position_embeddings"],
            rope=_rope(config),
            tied=tied,
            embedding=embedding,
        )
        known = {EMBEDDING, NORM, HEAD}
        for at in range(len(found.layers)):
            known |= {f"model.layers.{at}.{part}.weight" for part in (*PROJECTIONS, *NORMS)}
        if odd := next((name for name in source.tensors if name not in known), None):
            raise LorashearError(f"{odd} is no tensor of a LLaMA")
        return found


def own_widths_refusal(source: Checkpoint) -> str | None:
    """Why a checkpoint is no LLaMA by itself whose layers have widths of their own, in half a sentence; None where it is one."""
    try:
        llama = Llama.of(source)
    except LorashearError as error:
        return str(error)
    if llama.is_plain(source):
        return "its layers have equal widths, so that engines load it as it is"
    return adapter_refusal(source)


def adapter_refusal(source: Checkpoint) -> str | None:
    """Why one file of weights would not be all of a model, in half a sentence; None where it is."""
    beside = (source.folder / BESIDE).is_dir()
    return f"an adapter lies beside it in '{BESIDE}': merge that first" if beside else None


def _layer(source: Checkpoint, prefix: str, head_dim: int) -> Layer:
    queries, keys, _, _, ffn, _, _ = (_shape(source, f"{prefix}{part}.weight")[0] for part in PROJECTIONS)
    if queries % head_dim or keys % head_dim or not keys or queries % keys:
        raise LorashearError(
            f"{prefix}self_attn has {queries} query and {keys} key rows for heads of {head_dim}, which do not share keys evenly"
        )
    return Layer(queries // head_dim, keys // head_dim, ffn)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """In either spelling: `rope_parameters`, or the `rope_theta` and `rope_scaling` of before."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    default = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": found.get("type", "default")}
    return {**default, **found}


def _shape(source: Checkpoint, name: str) -> tuple[int, ...]:
    if (info := source.tensors.get(name)) is None or len(info.shape) != 2:
        raise LorashearError(f"it has no matrix {name}")
    return info.shape


def _check_overrides(config: Mapping[str, Any]) -> None:
    """Whether single modules of a generated class have numbers that no engine's layer takes, as an eps of their own."""
    for path, values in config.get("module_overrides", {}).items():
        if odd := next((name for name in values if name not in {*GIVEN, EPS}), None):
            raise LorashearError(f"{path} has a {odd} of its own")


def _eps(config: Mapping[str, Any]) -> float:
    """That of every norm: of the config, or of each module in a generated class."""
    own = config.get("module_overrides", {})
    norms = [f"model.layers.{at}.{norm}" for at in range(config["num_hidden_layers"]) for norm in NORMS]
    found = {own.get(path, {}).get(EPS, config["rms_norm_eps"]) for path in (*norms, NORM.removesuffix(".weight"))}
    if len(found) > 1:
        raise LorashearError(f"its norms have different values of {EPS}: {', '.join(map(str, sorted(found)))}")
    return found.pop()
