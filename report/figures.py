"""The pictures of an evaluation: masks and errors, entropy maps, t-SNE and Grad-CAM, each with its caption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from config.load import recorded_config
from config.schema import Config
from datasets.files import Item
from datasets.images import Decoded, ImageSet
from datasets.samples import network_input
from engine.domains import training_images
from engine.inference import decided, probabilities
from losses.entropy import normalised_entropy
from nets.segmenter import Head, Segmenter
from report.embedding import Window, embed, features_at, sample_pixels
from report.evaluation import Domain, Survey
from report.gradcam import grad_cam
from report.page import Picture, read_split
from report.plots import (
    CLOUD,
    ERROR_KEY,
    as_rgb,
    colour_mask,
    embedding_panels,
    entropy_histograms,
    laid_over,
    outlined,
    picture_grid,
    read_png,
)
from utils.errors import MissingError
from utils.files import write_text
from utils.records import reading

SPLIT_IMAGES = 12  # of each split in the histograms of entropy
SPLIT_PIXELS = 2**18  # of each of them at most
EXTREMES = 4
CAM_IMAGES = 5
TSNE_IMAGES = 60  # of each domain; more would only cost memory, a few pixels are drawn from each
SHOWN = 1024  # pixels of a side that are kept of a large image


def draw_masks(result: Survey, config: Config, folder: Path) -> list[Picture]:
    """Image, label and every model's mask; then outlines, and where each model is wrong."""
    domain, models = result.domain, list(result.tallies)
    role = domain.role
    chosen = _evenly(domain.images, config.eval.pictures)
    names = [item.name for item in chosen]
    images, labels = [], []
    for item in chosen:
        seen = domain.images.read(item)
        images.append(visible(seen))
        label = np.full_like(seen.image[..., 0], 255) if seen.label is None else seen.label
        labels.append(thinned(seen.placed(label, 255)))

    def of(kind: str, model: str) -> list[np.ndarray]:
        return [thinned(read_png(folder / kind / role / model / f"{name}.png")) for name in names]

    columns = {"image": images} | ({"label": [colour_mask(label) for label in labels]} if domain.labelled else {})
    columns |= {_title(model): of("masks", model) for model in models}
    picture_grid(folder / "masks" / f"{role}.png", names, columns, f"{role}: {domain.protocol}")
    figures = [
        Picture(
            f"masks/{role}.png",
            f"Masks on the {role}",
            "Clear ground is pale green, cloud white; grey, where there is any, is not known. Evenly spaced images of "
            "the evaluation list, not chosen by result.",
        )
    ]

    last = models[-1]
    clouds = [(mask == CLOUD).all(2).astype(np.uint8) for mask in of("masks", last)]
    columns = {f"{_title(last)}, outline": [outlined(i, m) for i, m in zip(images, clouds, strict=True)]}
    if domain.labelled:
        truth = {"label, outline": [outlined(i, k) for i, k in zip(images, labels, strict=True)]}
        errors = {
            _title(model): [
                colour_mask(label)
                if item.label is None
                else thinned(read_png(folder / "errors" / role / model / f"{item.name}.png"))
                for item, label in zip(chosen, labels, strict=True)
            ]
            for model in models
        }
        columns = truth | columns | errors
    key = ERROR_KEY if domain.labelled else ()
    picture_grid(folder / "masks" / f"{role}_errors.png", names, columns, key=key)
    caption = "The outline of the cloud drawn over the image." + (
        " In the error views red is cloud that the model missed, blue is clear ground that it calls cloud."
        if domain.labelled
        else ""
    )
    return [*figures, Picture(f"masks/{role}_errors.png", f"Outlines and errors on the {role}", caption)]


def draw_entropy(
    surveys: Sequence[Survey], models: Mapping[str, Segmenter], config: Config, folder: Path
) -> list[Picture]:
    """Entropy maps of every model; where there is a split, the distributions over easy and hard images."""
    figures = []
    for result in surveys:
        role = result.domain.role
        chosen = _evenly(result.domain.images, config.eval.pictures)
        columns = {"image": [visible(result.domain.images.read(item)) for item in chosen]}
        for model in result.tallies:
            paths = (folder / "entropy" / role / model / f"{item.name}.png" for item in chosen)
            columns[_title(model)] = [thinned(read_png(path)) for path in paths]
        picture_grid(folder / "entropy" / f"{role}.png", [i.name for i in chosen], columns, entropy_bar=True)
        caption = (
            "Normalised entropy of the class probabilities, from yellow (0, the model is sure) to red (1, both classes "
            "equally likely). Sure is not right: compare with the errors above."
        )
        figures.append(Picture(f"entropy/{role}.png", f"Entropy on the {role}", caption))
    target = next((result.domain for result in surveys if result.domain.role == "target"), None)
    return figures + _draw_split(models, config, folder, {} if target is None else target.views)


def _draw_split(
    models: Mapping[str, Segmenter], config: Config, folder: Path, views: Mapping[str, ImageSet]
) -> list[Picture]:
    """The most and least certain images, and each model's entropy on easy and hard ones; nothing without a split."""
    split = Path(config.out) / "split"
    if config.eval.weights is not None or not (split / "entropy.csv").exists():
        return []
    with reading(split / "config.yaml", "the config.yaml of the split", "make the split again"):
        if recorded_config(split / "config.yaml")["target"]["root"] != config.target.root:
            return []  # another target is being looked at
    rows = read_split(split)  # ascending by score
    images = training_images(config, "target", labels=False)
    names = [row.name for row in rows]
    items = {item.name: item for item in images.only(names, split / "entropy.csv")}
    count = min(EXTREMES, len(names))
    columns = {
        "most certain": [visible(images.read(items[name])) for name in names[:count]],
        "least certain": [visible(images.read(items[name])) for name in names[: -count - 1 : -1]],
    }
    picture_grid(folder / "entropy" / "split.png", [f"{i + 1}." for i in range(count)], columns)

    sides = {
        side: _evenly(sorted(items[row.name] for row in rows if row.split == side), SPLIT_IMAGES)
        for side in ("easy", "hard")
    }
    bar = tqdm(total=len(models) * sum(map(len, sides.values())), desc="easy and hard images", unit="image")
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, model in models.items():
        seen = replace(images, decoder=views[name].decoder, cache=None) if name in views else images
        for part, chosen in sides.items():
            pixels = []
            for item in chosen:
                pixels.append(_entropies(model, seen, item, config))
                bar.update()
            values.setdefault(_title(name), {})[part] = np.concatenate(pixels)
    bar.close()
    entropy_histograms(folder / "entropy" / "easy_hard.png", values)
    caption = (
        f"Entropy of the pixels of up to {SPLIT_IMAGES} easy and as many hard target images, on a logarithmic axis. "
        "The split was made by the teacher. Lines that lie closer for the student are a sign, no proof, that stage 3 "
        "helped: a model that is merely too sure shows the same."
    )
    extremes = "By the teacher's score, from the first to the last place and from the last one up."
    return [
        Picture("entropy/split.png", "The most and the least certain images", extremes),
        Picture("entropy/easy_hard.png", "Easy and hard images", caption),
    ]


def _entropies(model: Segmenter, images: ImageSet, item: Item, config: Config) -> np.ndarray:
    decoded = images.read(item)
    chosen = decided(probabilities(model, decoded.image, config.data), config.eval.head)
    pixels = normalised_entropy(chosen[None])[0].numpy()[decoded.valid]
    return pixels[:: max(1, -(-len(pixels) // SPLIT_PIXELS))]


def draw_tsne(
    domains: Sequence[Domain], models: Mapping[str, Segmenter], config: Config, folder: Path
) -> list[Picture]:
    """One joint embedding of both domains' backbone features per model, of the same pixels in each.

    Raises:
        MissingError: there is no source, or a class is absent.
    """
    target = next(domain for domain in domains if domain.role == "target")
    source = next((domain for domain in domains if domain.role == "source"), None)
    if source is None:
        if not config.source.root:
            raise MissingError("t-SNE compares two domains; give source.root, a folder of labelled images")
        source = Domain("source", config.source, "training images", training_images(config, "source", labels=True))

    def windows(images: ImageSet) -> list[Window]:
        return [_window(item, images, config) for item in _evenly(images, TSNE_IMAGES)]

    reference = list(models)[-1]
    known = {"source": windows(source.images), "target": windows(target.seen_by(reference))}
    pixels, predicted = sample_pixels(known, models[reference], config.eval.tsne_pixels, config.seed)
    panels = {}
    for name, model in tqdm(models.items(), desc="t-SNE", unit="model"):
        as_reference = target.seen_by(name) is target.seen_by(reference)
        seen = known["target"] if as_reference else windows(target.seen_by(name))
        panels[_title(name)] = embed(features_at(model, [*known["source"], *seen], pixels), pixels, config.seed)
    embedding_panels(folder / "tsne.png", panels, pixels.source, pixels.cloud, silhouettes=not predicted)
    classes = "labels" if not predicted else f"labels and, where an image has none, what the {reference} predicts"
    numbers = {
        name: {
            "domain_probe": None if math.isnan(panel.probe) else panel.probe,
            "silhouette": None if predicted else panel.silhouette,  # of one model's predictions: no fair comparison
        }
        for name, panel in panels.items()
    }
    record = {"pixels": len(pixels.source), "classes": classes, "models": numbers}
    write_text(folder / "tsne.json", json.dumps(record, indent=2) + "\n")
    caption = (
        f"{len(pixels.source)} feature pixels of at most {TSNE_IMAGES} images a domain, as many of each class and "
        f"domain, the same in each panel; each panel is one joint embedding of both domains.{_part_of_image(config)} "
        f"Classes are {classes}. The domain probe is the balanced accuracy of a linear classifier that tells source "
        "from target on images it was not fitted to: 50 % where the domains are aligned. The silhouette (-1 to 1) is "
        "high where the classes are apart. Both are taken in the first 50 principal components. "
        "Distances between islands mean little in t-SNE."
    )
    return [Picture("tsne.png", "t-SNE of the backbone's features", caption)]


def _window(item: Item, images: ImageSet, config: Config) -> Window:
    decoded = images.read(item)
    image, valid = _shown(decoded.image, config), _shown(decoded.valid, config)
    label = None if decoded.label is None else thinned(_shown(decoded.label, config))
    return Window(network_input(image, config.data.size, config.data.geometry), label, thinned(valid))


def _shown(raster: np.ndarray, config: Config) -> np.ndarray:
    """What one forward of the network is meant for: the whole image, or its middle of the training crop's size."""
    if config.data.geometry == "letterbox":
        return raster
    top, left = (max(0, (full - config.data.size) // 2) for full in raster.shape[:2])
    return np.ascontiguousarray(raster[top : top + config.data.size, left : left + config.data.size])


def _part_of_image(config: Config) -> str:
    return f" Of an image larger than {config.data.size} pixels the middle is shown." * (config.data.geometry == "crop")


def draw_gradcam(domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path) -> list[Picture]:
    """Where each head of the last model finds clear ground and cloud."""
    name, model = list(models.items())[-1]
    chosen = _evenly(domain.images, min(config.eval.pictures, CAM_IMAGES))
    columns: dict[str, list[np.ndarray]] = {"image": []}
    heads: tuple[Head, ...] = ("main", "aux")
    for item in tqdm(chosen, desc=f"Grad-CAM {domain.role}", unit="image"):
        decoded = domain.seen_by(name).read(item)
        image, valid = _shown(decoded.image, config), _shown(decoded.valid, config)
        columns["image"].append(thinned(as_rgb(image)))
        for head in heads:
            for target, kind in enumerate(("clear", "cloud")):
                maps = columns.setdefault(f"{head} head: {kind}", [])
                maps.append(_cam(model, image, valid, target, head, config))
    (folder / "gradcam").mkdir(exist_ok=True)
    file = f"gradcam/{domain.role}.png"
    picture_grid(folder / file, [item.name for item in chosen], columns, f"{_title(name)} on the {domain.role}")
    layer = config.eval.cam_layer or "the features that each head reads"
    caption = (
        f"Grad-CAM of the {_title(name)} at {layer}: bright where the layer speaks for the class, summed over the "
        f"pixels that the head gives to that class, or over all of them if there is none.{_part_of_image(config)} "
        "Each map is scaled by its own maximum."
    )
    return [Picture(file, f"Class activation on the {domain.role}", caption)]


def _cam(model: Segmenter, image: np.ndarray, valid: np.ndarray, target: int, head: Head, config: Config) -> np.ndarray:
    inputs = network_input(image, config.data.size, config.data.geometry).to(next(model.parameters()).device)
    data = torch.from_numpy(np.array(valid))
    cam = grad_cam(model, inputs, target, head, config.eval.cam_layer, data).cpu().numpy()
    picture = thinned(as_rgb(image))
    cam = cv2.resize(cam, picture.shape[1::-1]) if cam.shape != picture.shape[:2] else cam
    return laid_over(picture, np.where(thinned(valid), cam, 0))


def visible(decoded: Decoded) -> np.ndarray:
    """A picture (H, W, 3) of a whole image file, black where it has no data; a large one is thinned."""
    return thinned(decoded.placed(as_rgb(decoded.image), 0))


def thinned(raster: np.ndarray) -> np.ndarray:
    """Every n-th pixel of a raster (H, W, ...), so many that a side has at most `SHOWN` of them."""
    step = -(-max(raster.shape[:2]) // SHOWN)
    return raster if step == 1 else raster[::step, ::step].copy()


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _title(model: str) -> str:
    return model.replace("_", "-")
