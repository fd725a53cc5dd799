"""A model for ONNX Runtime, and for what builds on it: a graph, its weights, and the files beside them."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from math import prod
from pathlib import Path

from lorashear.disk.checkpoint import Checkpoint
from lorashear.disk.folder import MODELING_FILE, taken_along, write_json
from lorashear.engines import genai_tokenizer
from lorashear.engines.genai import FILE, genai_config
from lorashear.engines.llama import adapter_refusal
from lorashear.engines.target import Told, Wish
from lorashear.errors import LorashearError

GRAPH = "model.onnx"
INPUTS, OUTPUT = ("input_ids", "attention_mask", "position_ids"), "logits"
PAST, PRESENT = "past_key_values.{}.{}", "present.{}.{}"
"""Of a layer's number, and "key" or "value"."""
GRAPH_BYTES = 1 << 20
"""Of a graph without its weights, about."""


class Onnx:
    """A folder with ``model.onnx``, whose weights are in ``model.onnx.data``, and what generating needs beside them."""

    name = "onnx"
    engines = "ONNX Runtime and onnxruntime-genai; OpenVINO converts it"
    is_file = False
    dtypes = ("float32", "float16")

    def refusal(self, source: Checkpoint) -> str | None:
        """Why its layers keep something else than keys and values of all tokens, which the graph takes and gives."""
        from lorashear.engines.onnx_graph import cached
        from lorashear.models import twin_of

        if why := adapter_refusal(source):
            return why
        try:
            cached(twin_of(source.folder))
        except LorashearError as error:
            return str(error)
        return None

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """Of the weights, and about those of the rest."""
        each = 2 if wish.dtype == "float16" else 4
        weights = sum(prod(info.shape) * each for info in source.tensors.values())
        return weights + GRAPH_BYTES + sum(file.stat().st_size for file in taken_along(source))

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """By torch's exporter; in float32 where nothing else is wished.

        The whole model is in memory, once in the dtype wished and, while it is loaded, as it is stored too.

        Raises:
            LorashearError: a package is missing, or torch cannot export the model.
        """
        if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
            raise LorashearError(
                f"the format onnx needs {' and '.join(missing)}, not installed here: pip install 'lorashear[onnx]'"
            )
        from transformers import AutoModelForCausalLM

        from lorashear.engines.onnx_graph import cached, quiet, takes_positions, write_graph
        from lorashear.loading import DTYPES

        dtype = wish.dtype or self.dtypes[0]
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=DTYPES[dtype], trust_remote_code=False
            ).eval()
        kept = cached(model)
        try:
            write_graph(model, kept, out / GRAPH, told)
        except LorashearError as error:
            raise LorashearError(f"'{source.folder}' cannot go to {self.name}: {error}") from error
        write_json(out / "config.json", {**source.config, "dtype": dtype})
        for file in (*taken_along(source), *source.folder.glob(MODELING_FILE)):
            shutil.copyfile(file, out / file.name)
        genai_tokenizer.tell(out)
        inputs = INPUTS if takes_positions(model) else INPUTS[:2]
        content = genai_config(
            source,
            graph=GRAPH,
            layers=len(kept),
            heads=max(each.heads for each in kept),
            head_size=kept[0].key,
            vocabulary=model.config.get_text_config().vocab_size,
            inputs={name: name for name in inputs},
        )
        write_json(out / FILE, content)
        return "; ".join(filter(None, (self.said(source, wish), *genai_tokenizer.notes(out))))

    def said(self, source: Checkpoint, wish: Wish) -> str:
        """In which dtype the weights are, if that is not the stored one."""
        dtype = wish.dtype or self.dtypes[0]
        stored = {info.dtype for info in source.tensors.values()} - {{"float32": "F32", "float16": "F16"}[dtype]}
        return f"weights of {' and '.join(sorted(stored))} became {dtype}" if stored else ""
