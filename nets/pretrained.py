"""Weights from outside: reading a file safely, and filling a module so that every key is accounted for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from utils.errors import WeightsError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` file, or a `torch.save` file without running code from it, to the CPU.

    Raises:
        WeightsError: the file is missing, is damaged, needs a pickle that can run code, or holds no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or unsafe file fails anywhere inside the unpickler
        raise WeightsError(
            f"{path}: cannot be read as tensors ({type(error).__name__}); expected a .safetensors file or a "
            "torch.save file of plain tensors. Save the bare state dict again where the file comes from"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    if strange := [key for key in content if not isinstance(key, str)]:
        raise WeightsError(f"{path}: has the key {strange[0]!r}, expected names")
    return content


def load_exactly(module: nn.Module, state: Mapping[str, Any], source: str, expected: str) -> None:
    """Copy `state` into `module` if it fits, see `require_fit`; otherwise raise WeightsError and change nothing."""
    require_fit(module, state, source, expected)
    try:
        module.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:  # such as tensors that are sparse or quantised
        raise WeightsError(f"{source}: cannot be copied into {expected}: {' '.join(str(error).split())}") from error


def require_fit(module: nn.Module, state: Mapping[str, Any], source: str, expected: str) -> None:
    """Raise WeightsError, which tells the first keys that differ, unless `state` has the names and shapes of `module`.

    The batch counters of batch norm may be absent, since older files lack them. `source` and `expected` name the file
    and the architecture in the message.
    """
    own = module.state_dict()
    shapes = [(key, _shape(state[key]), _shape(own[key])) for key in own if key in state]
    faults = {
        "missing": [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        "left over": [key for key in state if key not in own],
        "mis-shaped": [f"{key} {found} instead of {wanted}" for key, found, wanted in shapes if found != wanted],
    }
    counted = {f"{len(keys)} {what}": keys for what, keys in faults.items() if keys}
    if counted:
        told = (f"{count}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}" for count, keys in counted.items())
        raise WeightsError(f"{source}: does not fit {expected}. {'; '.join(told)}")


def load_backbone(backbone: Any, name: str, weights: str) -> None:
    """Fill a timm feature extractor with the pretrained weights of the timm model `name`.

    `weights` is "hub" for timm's download (or its cache), or the path of a file in timm's naming. Only what comes
    after the last feature level, such as the classifier, may be left over. The first convolution is adapted to the
    backbone's input channels as timm does.

    Raises:
        WeightsError: the download fails, the file cannot be read, or it does not hold this backbone.
    """
    if weights == "hub":
        state, source = _download(name), f"{name} from the hub"
    else:
        state, source = read_checkpoint(weights), weights
    # A feature extractor may flatten "stages.0" to "stages_0" or put everything below "model.".
    own = {_flat(key): key for key in backbone.state_dict()}
    parts = tuple({_flat(key.removeprefix("model.").split(".")[0]) + "_" for key in own.values()})
    renamed = {own.get(_flat(key), key): value for key, value in state.items()}
    # A further key below a part that the backbone has, such as a block of a deeper network, is kept to be reported.
    kept = {key: value for key, value in renamed.items() if _flat(key).startswith(parts)}
    _adapt_first_conv(backbone, kept)
    load_exactly(backbone, kept, source=source, expected=f"backbone {name}")


def _download(name: str) -> dict[str, Any]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client, its HTTP library and the socket each have their own
        hub_id = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
        address = f"https://huggingface.co/{hub_id}/resolve/main/model.safetensors" if hub_id else "(timm knows none)"
        raise WeightsError(
            f"{name}: no pretrained weights from the hub ({type(error).__name__}: {error}). Download {address} on a "
            "machine that reaches it and give its path as weights, or null to start without"
        ) from error


def _adapt_first_conv(backbone: Any, state: dict[str, Any]) -> None:
    first = backbone.pretrained_cfg.get("first_conv")
    own = {_flat(key): (key, tensor.shape[1]) for key, tensor in backbone.state_dict().items() if tensor.ndim == 4}
    key, channels = own.get(_flat(f"{first}.weight"), (None, 0))
    if key in state and isinstance(state[key], Tensor) and state[key].ndim == 4 and state[key].shape[1] != channels:
        state[key] = adapt_input_conv(channels, state[key])


def _flat(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
