"""The images of a configuration: which train and which are scored, and how their files are understood."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from config.schema import AUTO, LIKE_SOURCE, SHIFT8, Config, DomainConfig
from datasets.cache import Cache
from datasets.decode import size_of
from datasets.decoder import Decoder
from datasets.files import SUFFIXES, Found, Item, raise_all
from datasets.images import ImageSet, checked
from datasets.measured_scaling import has_8_bits, matched_stretch, measured_stretch
from datasets.readers import READERS, find_images
from datasets.scaling import Stretch, recorded_scaling
from engine.data_record import Images, images_of
from engine.processes import is_first
from utils.errors import ConfigError, DataError, WeightsError
from utils.records import read_json, reading, write_json

Role = Literal["source", "target"]
SetName = Literal["train", "eval"]
VIEW = "view.json"  # in the folder of stage 1: the colours of the target that it has chosen


def training_images(config: Config, role: Role, *, labels: bool, chosen: bool = True) -> ImageSet:
    """The checked training images of a domain, large ones cut into tiles; without `labels` none is even looked for, and
    unless `chosen` those of a target have the colours that they had before stage 1 chose them."""
    items = listed(config, role, "train", labels=labels)
    return _checked(config, role, role, items, config.data.tile, taught=labels, chosen=chosen)


def evaluation_images(config: Config, role: Role) -> ImageSet:
    """The checked images on which a domain is scored, whole; those of a target may lack labels."""
    items = listed(config, role, "eval", labels=True, partial=role == "target")
    return _checked(config, role, f"{role} evaluation", items)


def _checked(
    config: Config,
    role: Role,
    what: str,
    items: list[Item],
    tile: int | None = None,
    *,
    taught: bool = False,
    chosen: bool = True,
) -> ImageSet:
    """The images, or a DataError that lists all files that cannot be used."""
    cache = None if config.data.cache is None else Cache(config.data.cache)
    what = f"{what} ({domain_of(config, role).root})"
    return checked(items, decoder_of(config, role, chosen=chosen), what, cache, tile, taught=taught)


def domain_of(config: Config, role: Role) -> DomainConfig:
    return config.source if role == "source" else config.target


def listed(config: Config, role: Role, part: SetName, *, labels: bool, partial: bool = False) -> list[Item]:
    """The images of a domain that train or are scored, by its lists or the share held back; DataError on any fault."""
    domain = domain_of(config, role)
    found = search(domain, part, labels=labels, partial=partial)
    raise_all(found.faults, f"the domain {domain.root}")
    if not found.items:
        raise DataError(f"{domain.root}: lists no image as {domain.reader}; expected {', '.join(SUFFIXES)} files")
    return found.items


def search(domain: DomainConfig, part: SetName, *, labels: bool, partial: bool = False) -> Found:
    """The same with the faults beside it."""
    rows = domain.eval if part == "eval" and domain.eval is not None else domain.train
    found = find_images(domain.root, rows, reader=domain.reader, scene=domain.scene, labels=labels, partial=partial)
    if not domain.eval_share:
        return found
    held_back = drawn_scenes(found.items, domain)
    return Found([i for i in found.items if ((i.scene or i.name) in held_back) == (part == "eval")], found.faults)


def drawn_scenes(items: Sequence[Item], domain: DomainConfig) -> set[str]:
    """The scenes, or names of images without one, that are held back: the same for the same images.

    Raises:
        DataError: there are fewer than two, of which one is held back and one left.
    """
    scenes = sorted({item.scene or item.name for item in items})
    if len(scenes) < 2:
        raise DataError(
            f"{domain.root}: found {len(scenes)} scene(s), expected two or more, to train on and to hold back; mend "
            "the domain's scene, or set eval_share to 0"
        )
    order = np.random.default_rng(len(scenes)).permutation(len(scenes))
    count = min(len(scenes) - 1, max(1, round(domain.eval_share * len(scenes))))
    return {scenes[i] for i in order[:count]}


def expected_images(config: Config, role: Role) -> int:
    """About how many images train, tiles counted, by the files' headers alone."""
    items, side, count = listed(config, role, "train", labels=False), config.data.tile, 0
    if side is None:
        return len(items)
    for item in items:
        with suppress(DataError):  # the check names it
            count += math.prod(math.ceil(length / side) for length in size_of(item.image))
    return count


def rules_of(config: Config, role: Role) -> Decoder:
    """How a domain's files are understood, by the reader's rules or the config's; without a scaling to be measured."""
    domain = domain_of(config, role)
    reader = READERS[domain.reader]
    bands = tuple(band.lower() for band in config.data.bands)
    scaling: Stretch | str | None = SHIFT8 if domain.scaling == SHIFT8 else None
    if isinstance(domain.scaling, list):
        low, high = domain.scaling
        scaling = Stretch((low,) * len(bands), (high,) * len(bands), domain.gamma)
    return Decoder(
        bands=bands,
        file_bands=reader.bands if domain.bands is None else tuple(band.lower() for band in domain.bands),
        scaling=scaling,
        nodata=reader.nodata if domain.nodata is None else domain.nodata,
        label_map=reader.label_map if domain.label_map is None else domain.label_map,
        scale=domain.scale,
        offset=domain.offset,
    )


def decoder_of(config: Config, role: Role, *, chosen: bool = True) -> Decoder:
    """The same with its scaling; given weights bring that of the target that they were adapted to, and a view that
    stage 1 has `chosen` (`engine.target_view`) its own.

    One that is measured is written to OUT/scaling_ROLE.json, or OUT/scaling_target_like_source.json, by the first stage
    that needs it, and read by the others.
    """
    decoder = rules_of(config, role)
    if role == "target" and config.eval.weights is not None:
        return with_scaling_of(config.eval.weights, decoder)
    if chosen and role == "target" and config.target.scaling == AUTO and (view := view_path(config)).exists():
        with reading(view, "a chosen view of the target", "restore it, or give another --out", ConfigError):
            return replace(decoder, scaling=recorded_scaling(read_json(view)["scaling"], len(decoder.bands)))
    return replace(decoder, scaling=_stretch(config, role, decoder)) if decoder.scaling is None else decoder


def view_path(config: Config) -> Path:
    return Path(config.out, config.teacher.name, VIEW)


def with_scaling_of(weights: str, decoder: Decoder) -> Decoder:
    """A decoder with the scaling that a weights file names; unchanged if it names none.

    Raises:
        WeightsError: the file cannot be read, or what it says of its data cannot be used or is of other bands.
    """
    try:
        with safe_open(weights, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{weights}: cannot be read as safetensors ({error})") from None
    if "data" not in metadata:
        return decoder
    trained = images_of(Path(weights), metadata).decoder
    if len(trained.bands) != len(decoder.bands):
        raise WeightsError(
            f"{weights}: is for {', '.join(trained.bands)}, expected {', '.join(decoder.bands)}; set data.bands"
        )
    return replace(decoder, scaling=trained.scaling)


def _stretch(config: Config, role: Role, decoder: Decoder) -> Stretch | None:
    """The measured stretch of a domain; None for files of 8 bits, unless its `scaling` asks for one."""
    domain = domain_of(config, role)
    rule, gamma = domain.scaling, domain.gamma
    whose: dict[str, Any] = {"root": domain.root, "bands": list(decoder.bands)}  # what the record is tied to
    record = Path(config.out) / f"scaling_{role}.json"
    like_source = rule in (LIKE_SOURCE, AUTO)
    if like_source:
        whose |= {"like": config.source.root, "how": [gamma, config.source.scaling, config.source.gamma]}
        record = record.with_stem(f"{record.stem}_like_source")  # the baseline of the same run may have another
    units = [one for of in (domain, config.source)[: 1 + like_source] for one in (of.scale, of.offset)]
    whose |= {"units": units} if any(one is not None for one in units) else {}
    if record.exists():
        with reading(record, "a measured scaling", "restore it, or give another --out", ConfigError):
            known = read_json(record)
            if any(known.get(key) != whose.get(key) for key in ("root", "bands", "like", "how", "units")):
                like = f" like {known['like']}" if "like" in known else ""
                raise ConfigError(
                    f"{record}: measured for {known['root']}{like}, {known['bands']}, with other settings or images "
                    "than now; give another --out"
                )
            values = [known["low"], known["high"], gamma, known["dtype"], known.get("dark")]
            stretch = recorded_scaling(values, len(decoder.bands))
        assert isinstance(stretch, Stretch)
        return stretch
    items = listed(config, role, "train", labels=False)
    if like_source:
        other = listed(config, "source", "train", labels=False)
        stretch = matched_stretch(items, decoder, other, decoder_of(config, "source"), gamma)
    elif rule == "train" or not has_8_bits(items, decoder):
        stretch = measured_stretch(items, decoder)._replace(gamma=gamma)
    elif gamma != 1:
        raise ConfigError(f"{role}.gamma is {gamma}, but the files have 8 bits; give {role}.scaling: train, or gamma 1")
    else:
        return None
    if is_first():  # all measure the same
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, {**whose, **stretch._asdict()})
    return stretch


def data_record(config: Config) -> dict[str, str]:
    """What a weights file says of the images that its network is for."""
    data = config.data
    return Images(decoder_of(config, "target"), data.size, data.geometry, data.tile).metadata
