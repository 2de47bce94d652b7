"""A trained network as files for others: ONNX beside safetensors, and a model card."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Template
from torch import Tensor, nn

from config.load import recorded_config
from datasets.readers import READERS
from engine.data_record import Images
from nets.segmenter import Segmenter
from utils.records import reading

OPSET = 18
EXAMPLE = (2, 160, 192)  # batch, height and width with which the graph is traced; all three stay free
CARD = Template(Path(__file__).with_name("templates").joinpath("model_card.md").read_text("utf-8"))
TARGET_USE = {"oracle": "with labels", "source_only": "not used"}  # in training; by others without labels


class Score(nn.Module):
    """Image (B, C, h, w) in [0, 1] to the main head's logit of cloud less that of clear, (B, 1, h, w)."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.segmenter.main_scores(image)
        return self.segmenter.on_image(scores[:, 1:] - scores[:, :1], image)


def to_onnx(segmenter: Segmenter, metadata: Mapping[str, str]) -> Any:
    """A segmenter of two classes as an ONNX model; its auxiliary head, which serves training, is left out.

    Inputs: `image` (B, C, h, w) float32 in [0, 1], bands in the network's order; `size` (2,) int64, the height H and
    width W of the result, which are h and w unless the image was scaled down for the network.
    Output: `cloud` (B, H, W) float32, the probability of cloud.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    free = torch.export.Dim.DYNAMIC
    batch, height, width = EXAMPLE
    example = torch.zeros(batch, segmenter.in_channels, height, width)
    options: dict[str, Any] = {"opset_version": OPSET, "dynamic_shapes": [{0: free, 2: free, 3: free}]}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["score"]}
    program = torch.onnx.export(Score(segmenter).eval(), (example,), dynamo=True, verbose=False, **options, **names)
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, model):
        del part.metadata_props[:]  # the exporter's notes: lines of source, with the paths of this machine
    constants, node = {"first": [0], "two": [2], "channel": [1]}, helper.make_node
    graph.initializer.extend(numpy_helper.from_array(np.array(of, np.int64), name) for name, of in constants.items())
    linear = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    nodes = [
        node("Shape", ["score"], ["score_shape"]),
        node("Slice", ["score_shape", "first", "two"], ["score_channels"]),
        node("Concat", ["score_channels", "size"], ["cloud_shape"], axis=0),
        node("Resize", ["score", "", "", "cloud_shape"], ["score_resized"], **linear),
        node("Sigmoid", ["score_resized"], ["cloud_map"]),
        node("Squeeze", ["cloud_map", "channel"], ["cloud"]),
    ]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))
    graph.output.append(helper.make_tensor_value_info("cloud", TensorProto.FLOAT, ["batch", "H", "W"]))
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    return model


def model_card(weights: Path, images: Images, architecture: str) -> str:
    """What somebody has to know who gets the files alone, as Markdown; scores are those that eval.py left in the run.

    Args:
        weights: the file in its run, OUT/STAGE/NAME.safetensors, with the stage's config.yaml beside it.

    Raises:
        DataError: the stage's configuration cannot be read.
    """
    name, record, evaluation = weights.stem, weights.parent / "config.yaml", weights.parents[1] / "eval" / "metrics.md"
    with reading(record, "the configuration of a stage", "export from the run that was trained"):
        text, config = record.read_text("utf-8"), recorded_config(record)
        made, data = config.get("generated") is not None, []
        for role, use in (("source", "with labels"), ("target", TARGET_USE.get(name, "without labels"))):
            root, reader = config[role]["root"], str(config[role].get("reader", "folder"))
            data.append(f"| {role} | {root} | {reader} | {use} | {_terms(reader, made)} |")
    sees = f"windows of {images.size} pixels at native resolution"
    if images.geometry != "crop":
        largest = images.tile or "any number of"
        sees = f"images of up to {largest} pixels a side, the longer side scaled to {images.size}"
    scores = "Not evaluated: eval.py has not run.\n"
    if evaluation.is_file():
        scores = evaluation.read_text("utf-8", errors="replace")
    training = [line.removeprefix("#").strip() + "  " for line in text.splitlines() if line.startswith("#")]
    texts = {"sees": sees, "data": data, "training": training, "scores": scores, "scaling": _scaling(images)}
    return CARD.render(texts, name=name, decoder=images.decoder, net=json.loads(architecture))


def _terms(reader: str, made: bool) -> str:
    """Licence and citation, as the reader of a published data set states them in its docstring."""
    if made:
        return "drawn by this project | -"
    text = type(READERS[reader]).__doc__ or "" if reader in READERS else ""
    stated = (re.search(rf"^\s*{what}: (.*)$", text, re.MULTILINE) for what in ("Licence", "Citation"))
    return " | ".join(found[1].rstrip(".") if found else "not known to this project" for found in stated)


def _scaling(images: Images) -> str:
    scaling, bands = images.decoder.scaling, images.decoder.bands
    if scaling is None:
        return "none, the files have 8 bits"
    if isinstance(scaling, str):
        return "16 bits without the lower 8"
    ends = zip(bands, scaling.low, scaling.high, strict=True)
    ranges = "; ".join(f"{band} from {low:g} to {high:g}" for band, low, high in ends)
    return ranges + f"; tone curve of gamma {scaling.gamma:g}" * (scaling.gamma != 1)
