"""What a config of transformers declares of a language model: how many tokens it reads at once, and how many there are."""

from __future__ import annotations

from typing import Any

POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


def positions(config: Any) -> int | None:
    """How many tokens a model can read at once; None where its config does not say."""
    inner = config.get_text_config()
    found = (getattr(inner, name, None) for name in POSITIONS)
    return next((int(said) for said in found if isinstance(said, int) and said > 0), None)


def vocabulary(config: Any) -> int:
    """How many token ids a model reads and tells."""
    return int(config.get_text_config().vocab_size)
