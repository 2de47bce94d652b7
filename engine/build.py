"""What a configuration names, made: device, networks, alignment, streams of samples."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from config.schema import AugmentConfig, Config, IntraConfig, TeacherConfig
from datasets.images import ImageSet
from datasets.samples import EndlessSamples
from engine import processes
from engine.forward import ForwardBatchDiscriminator
from engine.layout import MODELS
from losses.alignment import Alignment
from losses.registry import ALIGNMENTS
from nets.pretrained import load_exactly
from nets.segmenter import Segmenter
from nets.weights import import_deeplab_v2, is_segmenter_file, load_segmenter, load_weights
from utils.errors import ConfigError, DataError, WeightsError

MOST_LOADERS = 8  # of each domain
Options = Mapping[str, Mapping[str, float]]  # name of a choice -> its settings


def device_of(config: Config) -> torch.device:
    """The device that `config.device` names; "auto" is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"device is {config.device!r}, which cannot be used here ({why}); give auto or cpu") from None
    return torch.device(config.device)


def build_segmenter(config: Config) -> Segmenter:
    """The segmentation network at the start of training: the same for the same seed.

    Raises:
        ConfigError, WeightsError: it cannot be built so; names the section of the configuration.
    """
    try:
        return _segmenter(config)
    except (ConfigError, WeightsError) as error:
        raise type(error)(f"net: {error}") from error


def require_network(config: Config) -> None:
    """Raise ConfigError if the network cannot be built; nothing is read, and takes memory."""
    with torch.device("meta"):
        build_segmenter(replace(config, net=replace(config.net, weights=None, checkpoint=None)))


def _segmenter(config: Config) -> Segmenter:
    net = config.net
    torch.manual_seed(config.seed)
    segmenter = Segmenter(
        net.backbone,
        decoder=net.decoder,
        decoder_width=net.decoder_width,
        output_stride=net.output_stride,
        layout=net.layout,
        pretrained=net.weights,
        freeze_bn=net.freeze_bn,
        in_channels=len(config.data.bands),
        mean=net.mean,
        std=net.std,
        init="kaiming" if config.released.init else "default",
        aux_level=net.aux_level,
    )
    if net.checkpoint is not None:
        if not Path(net.checkpoint).is_file():
            raise WeightsError(f"{net.checkpoint}: no such weights file; mend checkpoint, or set it to null")
        if is_segmenter_file(Path(net.checkpoint)):
            state, metadata = load_weights(net.checkpoint)
            ours = f"the configured {segmenter.architecture}; the file holds {metadata['architecture']}"
            load_exactly(segmenter, state, source=net.checkpoint, expected=ours)
        else:
            import_deeplab_v2(Path(net.checkpoint), segmenter)
    return segmenter


def build_alignment(config: Config, settings: TeacherConfig | IntraConfig, classes: int) -> Alignment | None:
    """The alignment that a stage's settings name, on the device, with its discriminators; None for "none"."""
    if settings.alignment == "none":
        return None
    discriminator = partial(ForwardBatchDiscriminator, width=config.net.discriminator_width)
    weights = {"main": settings.adv_main, "aux": settings.adv_aux}
    alignment: Alignment = build_choice(
        ALIGNMENTS, settings.alignment, settings.options, classes, discriminator, weights
    )
    return alignment.to(device_of(config))


def build_choice(choices: Mapping[str, str], name: str, options: Options, *given: Any) -> Any:
    """What a configuration chose by name, called with `given` and its entry of `options`.

    Raises:
        ConfigError: an option that the choice does not have.
    """
    return bound_choice(choices, name, options)(*given)


def bound_choice(choices: Mapping[str, str], name: str, options: Options) -> Callable[..., Any]:
    """The same, not called yet.

    Args:
        choices: name -> module and name in it, see `losses.registry`.
    """
    module, _, attribute = choices[name].rpartition(".")
    found = getattr(import_module(module), attribute)
    parameters = inspect.signature(found).parameters.values()
    known = [parameter.name for parameter in parameters if isinstance(parameter.default, (int, float))]
    mine = options.get(name, {})
    if unknown := [key for key in mine if key not in known]:
        raise ConfigError(f"options.{name}.{unknown[0]}: unknown; {name} has {', '.join(known) or 'no options'}")
    return partial(found, **mine)


def trained(config: Config, name: str) -> Segmenter:
    """The finished network of an earlier stage, by its name in `engine.layout.MODELS`.

    Raises:
        DataError: the stage has not been run to its end.
    """
    path = MODELS[name].weights(config.out)
    if not path.exists():
        raise DataError(f"{path}: does not exist; run the stage that makes it first (see bash.sh), with the same --out")
    return load_segmenter(path)


def loader_processes(config: Config, device: torch.device) -> int:
    """Loader processes of each domain: `data.workers`, or as many as help.

    Beside a GPU these are half of the cores of this process, since there are two domains, and at most 8; without one
    they are an eighth, since the networks compute on the same cores.
    """
    if config.data.workers is not None:
        return config.data.workers
    return min(MOST_LOADERS, processes.cores() // (8 if device.type == "cpu" else 2))


def training_stream(config: Config, images: ImageSet, stream: str, augment: AugmentConfig) -> EndlessSamples:
    """The endless stream of a training stage over `images`."""
    data = config.data
    return EndlessSamples(images, stream, seed=config.seed, size=data.size, geometry=data.geometry, amounts=augment)
