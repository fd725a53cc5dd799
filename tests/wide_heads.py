"""A LLaMA with heads padded with zeros to more dims, which computes the same: for engines that have no kernels for small heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen_heads(source: Path, out: Path, to: int) -> Path:
    """Write ``source``, stored in float32, with heads of ``to`` dims.

    Rotary pairs are (i, i + head_dim / 2) with the angles theta^(-2i / head_dim): each half of a head is padded by itself, and theta
    grows to theta^(to / head_dim). Scores are divided by the root of the number of dims, by which queries grow.
    """
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    heads = config["num_attention_heads"]
    dims = config.get("head_dim") or config["hidden_size"] // heads
    tensors = {name: tensor.float() for name, tensor in load_file(out / "model.safetensors").items()}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            halves = tensor.unflatten(0, (-1, 2, dims // 2))
            wide = torch.nn.functional.pad(halves, (0, 0, 0, (to - dims) // 2)).flatten(0, 2)
            tensors[name] = wide * (to / dims) ** 0.5 if name.endswith("q_proj.weight") else wide
        elif name.endswith("o_proj.weight"):
            halves = tensor.unflatten(1, (-1, 2, dims // 2))
            tensors[name] = torch.nn.functional.pad(halves, (0, (to - dims) // 2)).flatten(1, 3)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    rope = config.pop("rope_parameters", None) or {"rope_type": "default"}
    assert rope["rope_type"] == "default" and not config.pop("rope_scaling", None)
    theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
    wider = theta ** (to / dims)
    config |= {
        "head_dim": to,
        "rope_parameters": {**rope, "rope_theta": wider},
        "rope_theta": wider,
        "dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return out
