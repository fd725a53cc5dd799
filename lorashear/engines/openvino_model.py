"""A model for OpenVINO: the graph of the format onnx, which keeps the keys and values of earlier tokens in itself."""

from __future__ import annotations

import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lorashear.disk.checkpoint import Checkpoint
from lorashear.engines.genai import FILE
from lorashear.engines.onnx_model import GRAPH, PAST, PRESENT, Onnx
from lorashear.engines.target import Told, Wish
from lorashear.errors import LorashearError

MODEL = "openvino_model.xml"


class OpenVino(Onnx):
    """A folder with ``openvino_model.xml`` and ``.bin``, as OpenVINO GenAI and optimum name them."""

    name = "openvino"
    engines = "OpenVINO"

    def bytes(self, source: Checkpoint, wish: Wish) -> int:
        """With those of the graph in ONNX, which goes again."""
        return super().bytes(source, wish) + super().bytes(source, Wish())

    def write(self, source: Checkpoint, out: Path, wish: Wish, told: Told) -> str:
        """By way of ONNX in float32, which OpenVINO rounds where float16 is wished.

        Raises:
            LorashearError: a package is missing, or torch cannot export the model.
        """
        if find_spec("openvino") is None:
            raise LorashearError(
                "the format openvino needs openvino, not installed here: pip install 'lorashear[openvino]'"
            )
        openvino: Any = import_module("openvino")
        between = out / "onnx"
        between.mkdir()
        super().write(source, between, Wish(), told)
        model = openvino.Core().read_model(between / GRAPH)  # `convert_model` reports home
        _keep_in_itself(model)
        openvino.save_model(model, out / MODEL, compress_to_fp16=wish.dtype == "float16")
        del model  # it has mapped the files that go now
        for file in between.iterdir():
            if file.name != FILE and not file.name.startswith(GRAPH):
                shutil.move(file, out / file.name)
        shutil.rmtree(between)
        return self.said(source, wish)


def _keep_in_itself(model: Any) -> None:
    """Keys and values become states of the model: rows in the order that ``beam_idx`` asks for, none to begin with."""
    openvino, ops, passes = map(import_module, ("openvino", "openvino.opset13", "openvino.passes"))
    rows = model.input("input_ids").get_partial_shape()[0]
    order = ops.parameter(openvino.PartialShape([rows]), openvino.Type.i32, name="beam_idx")
    order.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([order])
    before, after = (pattern.partition(".")[0] for pattern in (PAST, PRESENT))
    past = [each.any_name for each in model.inputs if each.any_name.startswith(before)]
    for name in past:
        port = model.input(name)
        readers = port.get_target_inputs()
        ordered = ops.gather(port, order, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful({name: name.replace(before, after) for name in past}))
    manager.run_passes(model)
    count = ops.gather(ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, *sizes = (ops.constant(np.array([dim.min_length])) for dim in node.get_output_partial_shape(0))
            nothing = ops.constant(0.0, dtype=node.get_output_element_type(0))
            node.set_arguments([ops.broadcast(nothing, ops.concat([count, *sizes], 0))])
    model.validate_nodes_and_infer_types()
