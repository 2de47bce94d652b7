"""The pictures of an evaluation: masks and errors, entropy maps, t-SNE and Grad-CAM, each with its caption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.files import Item, list_domain, read_image, read_item
from datasets.samples import network_input
from losses import normalised_entropy
from nets.segmenter import Head, Segmenter
from utils.config import Config
from utils.embedding import Window, embed, features_at, sample_pixels
from utils.engine import device_of
from utils.errors import EvaluationError
from utils.gradcam import grad_cam
from utils.plots import (
    CLEAR,
    CLOUD,
    FALSE_ALARM,
    MISS,
    colour_mask,
    embedding_panels,
    entropy_histograms,
    laid_over,
    outlined,
    picture_grid,
)
from utils.predict import decided, probabilities
from utils.report import Figure
from utils.run import write_text
from utils.survey import Domain, Survey

SPLIT_IMAGES = 12  # of each split in the histograms of entropy
CAM_IMAGES = 5


def draw_masks(result: Survey, config: Config, folder: Path) -> list[Figure]:
    """Image, label and every model's mask; then outlines, and where each model is wrong."""
    domain, models = result.domain, list(result.tallies)
    role = domain.role
    chosen = _evenly(domain.items, config.eval.pictures)
    pairs = [read_item(item, domain.config.label_map) for item in chosen]
    names, images = [item.name for item in chosen], [image for image, _ in pairs]
    labels = [np.full(image.shape[:2], 255, np.uint8) if label is None else label for image, label in pairs]

    def of(kind: str, model: str) -> list[np.ndarray]:
        return [read_image(folder / kind / role / model / f"{name}.png") for name in names]

    columns = {"image": images} | ({"label": [colour_mask(label) for label in labels]} if domain.labelled else {})
    columns |= {_title(model): of("masks", model) for model in models}
    picture_grid(folder / "masks" / f"{role}.png", names, columns, f"{role}: {domain.protocol}")
    figures = [
        Figure(
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
        known = [label is not None for _, label in pairs]
        errors = {
            _title(model): [
                read_image(folder / "errors" / role / model / f"{name}.png") if labelled else image
                for name, image, labelled in zip(names, images, known, strict=True)
            ]
            for model in models
        }
        columns = truth | columns | errors
    key = (("cloud, found", CLOUD), ("clear, found", CLEAR), ("missed cloud", MISS), ("false alarm", FALSE_ALARM))
    picture_grid(folder / "masks" / f"{role}_errors.png", names, columns, key=key if domain.labelled else ())
    caption = "The outline of the cloud drawn over the image." + (
        " In the error views red is cloud that the model missed, blue is clear ground that it calls cloud."
        if domain.labelled
        else ""
    )
    return [*figures, Figure(f"masks/{role}_errors.png", f"Outlines and errors on the {role}", caption)]


def draw_entropy(
    surveys: Sequence[Survey], models: Mapping[str, Segmenter], config: Config, folder: Path
) -> list[Figure]:
    """Entropy maps of every model; where there is a split, the distributions over easy and hard images."""
    figures = []
    for result in surveys:
        role = result.domain.role
        chosen = _evenly(result.domain.items, config.eval.pictures)
        columns = {"image": [read_image(item.image) for item in chosen]}
        for model in result.tallies:
            paths = (folder / "entropy" / role / model / f"{item.name}.png" for item in chosen)
            columns[_title(model)] = [read_image(path) for path in paths]
        picture_grid(folder / "entropy" / f"{role}.png", [i.name for i in chosen], columns, entropy_bar=True)
        caption = (
            "Normalised entropy of the class probabilities, from yellow (0, the model is sure) to red (1, both classes "
            "equally likely). Sure is not right: compare with the errors above."
        )
        figures.append(Figure(f"entropy/{role}.png", f"Entropy on the {role}", caption))
    split = Path(config.out) / "split"
    if config.eval.weights is None and (split / "entropy.csv").exists():
        parts = {
            part: _evenly(
                list_domain(config.target.root, (split / f"{part}.txt").resolve(), labels=False), SPLIT_IMAGES
            )
            for part in ("easy", "hard")
        }
        bar = tqdm(models.items(), desc="entropy of easy and hard images", unit="model")
        values = {
            _title(name): {
                part: np.concatenate([_entropies(model, item, config) for item in items])
                for part, items in parts.items()
            }
            for name, model in bar
        }
        entropy_histograms(folder / "entropy" / "easy_hard.png", values)
        caption = (
            f"Entropy of the pixels of up to {SPLIT_IMAGES} easy and as many hard target images, on a logarithmic "
            "axis. The split was made by the teacher; if stage 3 did its work, the student's two lines lie closer."
        )
        figures.append(Figure("entropy/easy_hard.png", "Easy and hard images", caption))
    return figures


def _entropies(model: Segmenter, item: Item, config: Config) -> np.ndarray:
    chosen = decided(probabilities(model, read_image(item.image), config.data), config.eval.head)
    return normalised_entropy(chosen[None]).flatten().cpu().numpy()


def draw_tsne(domains: Sequence[Domain], models: Mapping[str, Segmenter], config: Config, folder: Path) -> list[Figure]:
    """One joint embedding of both domains' backbone features per model, of the same pixels in each.

    Raises:
        EvaluationError: there is no source, or a class is absent.
    """
    target = next(domain for domain in domains if domain.role == "target")
    source = next((domain for domain in domains if domain.role == "source"), None)
    if source is None:
        if not config.source.root:
            raise EvaluationError("t-SNE compares two domains; give source.root, a folder of labelled images")
        items = list_domain(config.source.root, config.source.train, labels=True)
        source = Domain("source", config.source, "training images", items, None)
    windows = {domain.role: [_window(item, domain, config) for item in domain.items] for domain in (source, target)}
    reference = list(models)[-1]
    pixels, predicted = sample_pixels(windows, models[reference], config.eval.tsne_pixels, config.seed)
    everything = [*windows["source"], *windows["target"]]
    panels = {
        _title(name): embed(features_at(model, everything, pixels), pixels, config.seed)
        for name, model in tqdm(models.items(), desc="t-SNE", unit="model")
    }
    embedding_panels(folder / "tsne.png", panels, pixels.source, pixels.cloud)
    classes = "labels" if not predicted else f"labels and, where an image has none, what the {reference} predicts"
    numbers = {name: {"domain_probe": p.probe, "silhouette": p.silhouette} for name, p in panels.items()}
    record = {"pixels": len(pixels.source), "classes": classes, "models": numbers}
    write_text(folder / "tsne.json", json.dumps(record, indent=2) + "\n")
    caption = (
        f"{len(pixels.source)} feature pixels, as many of each class and domain, the same in each panel; each panel is "
        f"one joint embedding of both domains. Classes are {classes}. The domain probe is the accuracy of a linear "
        "classifier that tells source from target on images it was not fitted to: 50 % where the domains are aligned. "
        "The silhouette (-1 to 1) is high where the classes are apart. Distances between islands mean little in t-SNE."
    )
    return [Figure("tsne.png", "t-SNE of the backbone's features", caption)]


def _window(item: Item, domain: Domain, config: Config) -> Window:
    image, label = read_item(item, domain.config.label_map)
    image, label = _shown(image, config), None if label is None else _shown(label, config)
    return Window(network_input(image, config.data.size, config.data.geometry).to(device_of(config)), label)


def _shown(raster: np.ndarray, config: Config) -> np.ndarray:
    """What one forward of the network is meant for: the whole image, or its middle of the training crop's size."""
    if config.data.geometry == "letterbox":
        return raster
    top, left = (max(0, (full - config.data.size) // 2) for full in raster.shape[:2])
    return np.ascontiguousarray(raster[top : top + config.data.size, left : left + config.data.size])


def draw_gradcam(domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path) -> list[Figure]:
    """Where each head of the last model finds clear ground and cloud."""
    name, model = list(models.items())[-1]
    chosen = _evenly(domain.items, min(config.eval.pictures, CAM_IMAGES))
    images = [_shown(read_image(item.image), config) for item in chosen]
    columns = {"image": images}
    heads: tuple[Head, ...] = ("main", "aux")
    for head in heads:
        for target, kind in enumerate(("clear", "cloud")):
            columns[f"{head} head: {kind}"] = [_cam(model, image, target, head, config) for image in images]
    (folder / "gradcam").mkdir(exist_ok=True)
    file = f"gradcam/{domain.role}.png"
    picture_grid(folder / file, [item.name for item in chosen], columns, f"{_title(name)} on the {domain.role}")
    layer = config.eval.cam_layer or "the features that each head reads"
    caption = (
        f"Grad-CAM of the {_title(name)} at {layer}: bright where the layer speaks for the class, summed over the "
        "pixels that the head gives to that class. Each map is scaled by its own maximum."
    )
    return [Figure(file, f"Class activation on the {domain.role}", caption)]


def _cam(model: Segmenter, image: np.ndarray, target: int, head: Head, config: Config) -> np.ndarray:
    device = next(model.parameters()).device
    inputs = network_input(image, config.data.size, config.data.geometry).to(device)
    cam = grad_cam(model, inputs, target, head, config.eval.cam_layer).cpu().numpy()
    return laid_over(image, cv2.resize(cam, image.shape[1::-1]) if cam.shape != image.shape[:2] else cam)


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _title(model: str) -> str:
    return model.replace("_", "-")
