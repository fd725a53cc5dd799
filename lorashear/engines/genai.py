"""``genai_config.json``: what onnxruntime-genai has to know of a graph to generate with it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorashear.disk.checkpoint import Checkpoint, json_object

FILE = "genai_config.json"
TYPE = "decoder"
"""A decoder of any family: what it is called matters to onnxruntime-genai for images and sound alone."""


def genai_config(
    source: Checkpoint,
    *,
    graph: str,
    layers: int,
    heads: int,
    head_size: int,
    vocabulary: int,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """The content of the file.

    Args:
        graph: the name of its file.
        heads: key-value heads of the widest layer; each input of the graph has the number of its own layer.
        inputs: the names of token ids, attention mask and positions, as far as the graph takes them.
    """
    config = source.config
    generation = _generation(source.folder)

    def said(name: str, default: Any = None) -> Any:
        found = generation.get(name)
        return config.get(name, default) if found is None else found

    ends = said("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    positions = config.get("max_position_embeddings") or config.get("n_positions") or config.get("max_seq_len") or 2048
    begin, pad = said("bos_token_id"), said("pad_token_id")
    return {
        "model": {
            "bos_token_id": end if begin is None else begin,
            "eos_token_id": ends,
            "pad_token_id": end if pad is None else pad,
            "context_length": positions,
            "type": TYPE,
            "vocab_size": vocabulary,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": graph,
                "head_size": head_size,
                "hidden_size": config.get("hidden_size") or config.get("n_embd"),
                "num_attention_heads": config.get("num_attention_heads") or config.get("n_head") or heads,
                "num_hidden_layers": layers,
                "num_key_value_heads": heads,
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": bool(said("do_sample", False)),
            "temperature": said("temperature", 1.0),
            "top_k": said("top_k", 50),
            "top_p": said("top_p", 1.0),
            "repetition_penalty": said("repetition_penalty", 1.0),
            "num_beams": 1,
            "min_length": 0,
            "max_length": positions,
            "past_present_share_buffer": False,
        },
    }


def _generation(folder: Path) -> dict[str, Any]:
    """What ``generation_config.json`` says, if it is there."""
    file = folder / "generation_config.json"
    return json_object(file.read_bytes(), f"'{file}'") if file.is_file() else {}
