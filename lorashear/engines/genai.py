"""The config file of onnxruntime-genai, for a graph of `onnx_graph`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorashear.engines.onnx_graph import INPUTS, KEY, LOGITS, NEW_KEY, NEW_VALUE, VALUE


def genai_config(config: Mapping[str, Any], graph: str, positions: int) -> dict[str, Any]:
    """What genai_config.json says of a model with this config.json, whose ``graph`` is that file.

    Numbers of heads are those of config.json, whatever single layers have: the shapes are in the graph.
    """
    heads = config["num_attention_heads"]
    return {
        "model": {
            "type": "llama",  # genai's word for a decoder that reads ids, a mask and positions, and has a cache
            "bos_token_id": _first(config.get("bos_token_id")),
            "eos_token_id": config.get("eos_token_id"),
            "pad_token_id": _first(config.get("pad_token_id"), config.get("eos_token_id")),
            "vocab_size": config["vocab_size"],
            "context_length": positions,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": graph,
                "hidden_size": config["hidden_size"],
                "head_size": config.get("head_dim") or config["hidden_size"] // heads,
                "num_attention_heads": heads,
                "num_key_value_heads": config.get("num_key_value_heads") or heads,
                "num_hidden_layers": config["num_hidden_layers"],
                "inputs": {
                    **{name: name for name in INPUTS},
                    "past_key_names": KEY.format("%d"),
                    "past_value_names": VALUE.format("%d"),
                },
                "outputs": {
                    LOGITS: LOGITS,
                    "present_key_names": NEW_KEY.format("%d"),
                    "present_value_names": NEW_VALUE.format("%d"),
                },
            },
        },
        # The cache grows: a buffer for past and present alike is for graphs that write into it.
        "search": {"max_length": positions, "past_present_share_buffer": False},
    }


def _first(*given: Any) -> int:
    """The first id that there is, of lists the first one; 0 where there is none."""
    ids = [each[0] if isinstance(each, list) and each else each for each in given]
    return next((each for each in ids if isinstance(each, int)), 0)
