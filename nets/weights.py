"""Weights on disk: files of this project, and checkpoints of the DeepLab-v2 family."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from nets.pretrained import load_exactly, read_checkpoint, require_fit
from nets.segmenter import Segmenter
from utils.errors import ConfigError, WeightsError
from utils.files import write_bytes

HEADS = {"layer5": "head_aux", "layer6": "head_main"}
ARCHITECTURE = (
    *("backbone", "classes", "in_channels", "decoder", "decoder_width", "output_stride", "layout"),
    *("freeze_bn", "aux_level"),
)
MOST = 1024  # classes, or bands


def import_deeplab_v2(source: str | Path | Mapping[str, Any], segmenter: Segmenter) -> None:
    """Load a checkpoint of ADVENT, ASDA or a relative into a segmenter of layout deeplab_v2.

    `source` is a file or what it holds: a bare state dict (ADVENT, AdaptSegNet, IntraDA), or a dictionary with one
    below "featuremodel" (ASDA; the discriminators beside it are left), each with or without a "module." prefix.
    `layer5` is the auxiliary head, `layer6` the main one. Every key has to find its place.

    Normalisation is no part of these files: ASDA was trained on RGB in [0, 1] (mean 0, std 1), ADVENT on BGR in
    [0, 255] less a mean, so the caller sets `mean` and `std`, and the order of bands, to match.

    Raises:
        WeightsError: the file cannot be read safely, or does not fit; nothing is loaded then.
        ConfigError: the segmenter has another layout.
    """
    name = "the given state dict" if isinstance(source, Mapping) else str(source)
    architecture = json.loads(segmenter.architecture)
    if architecture["layout"] != "deeplab_v2":
        raise ConfigError(
            f"{name}: is no file of this project, and a DeepLab-v2 checkpoint needs decoder and layout deeplab_v2, "
            "and output_stride 8"
        )
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    state = content.get("featuremodel", content)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{name}: 'featuremodel' holds a {type(state).__name__}, expected a state dict")
    expected = f"DeepLab-v2 with {architecture['backbone']} and {segmenter.classes} classes"
    ours = {_our_name(key.removeprefix("module.")): value for key, value in state.items()}
    load_exactly(segmenter, ours | {"mean": segmenter.mean, "std": segmenter.std}, name, expected)


def save_weights(path: str | Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a module's state dict and `metadata` as safetensors; the file is whole or not there.

    Equal weights and metadata give equal bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_bytes(Path(path), _sorted_header(save(tensors, metadata=dict(metadata))))


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file; raises WeightsError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors ({error})") from error


def save_segmenter(path: str | Path, segmenter: Segmenter, metadata: Mapping[str, str] | None = None) -> None:
    """Write a segmenter with what is needed to build it again; `metadata` is kept beside it, as strings."""
    save_weights(path, segmenter, {**(metadata or {}), "architecture": segmenter.architecture})


def is_segmenter_file(path: str | Path) -> bool:
    """Whether `path` was written by `save_segmenter`."""
    try:
        return "architecture" in load_weights(path)[1]
    except WeightsError:
        return False


def load_segmenter(path: str | Path) -> Segmenter:
    """Build the segmenter that a file of `save_segmenter` describes, in eval mode, and fill it with the file's weights.

    The state of torch's random generator is left as it was.

    Raises:
        WeightsError: the file describes no segmenter, or its tensors are not the described segmenter's.
    """
    state, metadata = load_weights(path)
    if "architecture" not in metadata:
        raise WeightsError(
            f"{path}: has no 'architecture' in its metadata, so it is no segmenter of this project; "
            "give a backbone's weights as weights, a DeepLab-v2 checkpoint as checkpoint"
        )
    expected = f"its architecture {metadata['architecture'][:500]}"
    try:
        with torch.random.fork_rng(devices=[]):
            arguments = _architecture(metadata["architecture"])
            with torch.device("meta"):  # without memory: the file may describe a network of any size
                require_fit(Segmenter(**arguments), state, str(path), expected)
            segmenter = Segmenter(**arguments)
    except WeightsError:
        raise
    except Exception as error:  # each backbone refuses a value in its own way
        raise WeightsError(f"{path}: cannot build {expected}: {error}") from error
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise WeightsError(f"{path}: {broken[0]} holds NaN or infinity; restore the file, or train again")
    load_exactly(segmenter, state, str(path), expected)
    return segmenter.eval()


def _architecture(text: str) -> dict[str, Any]:
    """The arguments of a `Segmenter` that a file may choose: none of them names another file or the hub."""
    arguments = json.loads(text)
    if isinstance(arguments, dict) and arguments.pop("detail", 0):
        raise ValueError("it has a branch of detail, which this version has not; train again, or use the earlier one")
    if not isinstance(arguments, dict) or arguments.keys() - set(ARCHITECTURE):
        raise ValueError(f"expected a mapping with the keys {', '.join(ARCHITECTURE)}")
    for key in ("classes", "in_channels", "decoder_width"):
        if type(count := arguments.get(key, 1)) is not int or not 1 <= count <= MOST:
            raise ValueError(f"found {key} {count!r}, expected 1 to {MOST}")
    return {"decoder": "deeplab_v2", **arguments}  # files from before there was another do not say it


def _our_name(key: str) -> str:
    head = re.fullmatch(r"(layer[56])\.conv2d_list\.(\d+\.\w+)", key)
    return f"{HEADS[head[1]]}.branches.{head[2]}" if head else f"backbone.{key}"


def _sorted_header(content: bytes) -> bytes:
    """Put the JSON header of a safetensors file in order: the library writes metadata in the order of a random hash."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]
