"""A folder for engines that run ONNX graphs: ONNX Runtime, onnxruntime-genai, OpenVINO."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorashear.checkpoint import NUMPY_DTYPES, Checkpoint
from lorashear.config import Training
from lorashear.engines.target import Told, Wish
from lorashear.folder import BESIDE, TAKEN_ALONG, write_json

GRAPH = "model.onnx"
CONFIG = "genai_config.json"
HEADS = ("num_attention_heads", "n_head", "num_heads")
"""Where configs of attention have the number of heads."""


class Onnx:
    """The graph, with inputs and outputs for the cache, the tokenizer, and what onnxruntime-genai wants to know."""

    name = "onnx"
    engines = "ONNX Runtime, onnxruntime-genai, OpenVINO"
    is_file = False
    dtypes = ("float32", "float16")

    def refusal(self, source: Checkpoint) -> str | None:
        """Why its cache is not one of keys and values of all tokens; what else is in the way is seen when it is tried."""
        config = source.config
        if not any(config.get(name) for name in HEADS):
            return f"a {config['model_type']} has no cache of keys and values that is known here"
        kinds = set(config.get("layer_types") or ["full_attention"])
        if kinds != {"full_attention"} or (config.get("sliding_window") and config.get("use_sliding_window", True)):
            return "not all of its layers attend to all tokens"
        if (source.folder / BESIDE).is_dir():
            return f"an adapter lies beside it in '{BESIDE}': merge that first"
        return None

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of the weights in the dtype asked for."""
        size = 2 if wish.dtype == "float16" else 4
        return sum(info.bytes // NUMPY_DTYPES[info.dtype].itemsize * size for info in source.tensors.values())

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """The model is loaded for it, in the dtype asked for, float32 by default, and so is in memory once."""
        from lorashear import declared  # here, as all that follows, since --list needs no torch
        from lorashear.engines.genai import genai_config
        from lorashear.engines.onnx_graph import check_installed, write_graph
        from lorashear.loading import working_copy

        check_installed()
        told(0, 1)
        model = working_copy(source.folder, settings=Training(dtype=wish.dtype or "float32"))
        write_graph(model, out / GRAPH)
        positions = declared.positions(model.config) or 2048
        if "num_attention_heads" in source.config:  # other configs are of models that genai does not know
            write_json(out / CONFIG, genai_config(source.config, GRAPH, positions))
        for pattern in ("config.json", *TAKEN_ALONG):
            for file in source.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
        told(1, 1)
        return ""
