"""The pictures of an evaluation: masks and errors, entropy maps, t-SNE and Grad-CAM, each with its caption."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from config.load import recorded_config
from config.schema import Config
from datasets.files import Item
from datasets.images import ImageSet
from datasets.samples import network_input
from engine.domains import training_images
from engine.inference import decided, probabilities
from engine.pictures import CLOUD, ERROR_KEY, as_rgb, colour_mask, laid_over, outlined, read_png, thinned, visible
from engine.pseudo_labels import RANKING, read_ranking
from losses.entropy import normalised_entropy
from nets.segmenter import Head, Segmenter
from report.embedding import Patch, embed, features_at, sample_pixels
from report.evaluation import Domain, DomainScores, Evaluation
from report.gradcam import grad_cam
from report.plots import embedding_panels, entropy_histograms, picture_grid
from report.records import Picture
from utils.errors import MissingError
from utils.labels import IGNORE
from utils.records import reading, write_json

SPLIT_IMAGES = 12  # of each split in the histograms of entropy
SPLIT_PIXELS = 2**18  # of each of them at most
EXTREMES = 4
CAM_IMAGES = 5
TSNE_IMAGES = 60  # of each domain; more would only cost memory, a few pixels are drawn from each


def draw_masks(evaluation: Evaluation) -> list[Picture]:
    """Image, label and every model's mask; then outlines, and where each model is wrong."""
    config, folder = evaluation.config, evaluation.folder
    return [picture for result in evaluation.scores for picture in _masks_of(result, config, folder)]


def _masks_of(result: DomainScores, config: Config, folder: Path) -> list[Picture]:
    domain, role = result.domain, result.domain.role
    chosen = _evenly(domain.images, config.eval.pictures)
    names = [item.name for item in chosen]
    images, labels = [], []
    for item in chosen:
        decoded = domain.images.read(item)
        images.append(visible(decoded))
        label = np.full(decoded.valid.shape, IGNORE, np.uint8) if decoded.label is None else decoded.label
        labels.append(thinned(decoded.placed(label, IGNORE)))
    masks = _stored(folder / "masks" / role, result.models, chosen)
    truth = {"label": [colour_mask(label) for label in labels]} if domain.labelled else {}
    caption = f"{role}: {domain.protocol}"
    picture_grid(folder / "masks" / f"{role}.png", names, {"image": images, **truth, **masks}, caption)

    title, last = list(masks.items())[-1]
    columns = {f"{title}, outline": [outlined(i, (m == CLOUD).all(2)) for i, m in zip(images, last, strict=True)]}
    note = "The outline of the cloud drawn over the image."
    if domain.labelled:
        outlines = {"label, outline": [outlined(i, k) for i, k in zip(images, labels, strict=True)]}
        columns = outlines | columns | _stored(folder / "errors" / role, result.models, chosen, truth["label"])
        note += " In the error views red is cloud that the model missed, blue is clear ground that it calls cloud."
    key = ERROR_KEY if domain.labelled else ()
    picture_grid(folder / "masks" / f"{role}_errors.png", names, columns, key=key)
    colours = (
        "Clear ground is pale green, cloud white; grey, where there is any, is not known. Evenly spaced images of the "
        "evaluation list, not chosen by result."
    )
    return [
        Picture(f"masks/{role}.png", f"Masks on the {role}", colours),
        Picture(f"masks/{role}_errors.png", f"Outlines and errors on the {role}", note),
    ]


def draw_entropy(evaluation: Evaluation) -> list[Picture]:
    """Entropy maps of every model; where there is a split, the distributions over easy and hard images."""
    config, folder, models, _, results = evaluation
    figures = []
    views: dict[str, ImageSet] = {}
    for result in results:
        domain, role = result.domain, result.domain.role
        views |= domain.views  # those of the target, the source has none
        chosen = _evenly(domain.images, config.eval.pictures)
        columns = {"image": [visible(domain.images.read(item)) for item in chosen]}
        columns |= _stored(folder / "entropy" / role, result.models, chosen)
        picture_grid(folder / "entropy" / f"{role}.png", [i.name for i in chosen], columns, entropy_bar=True)
        caption = (
            "Normalised entropy of the class probabilities, from yellow (0, the model is sure) to red (1, both classes "
            "equally likely). Sure is not right: compare with the errors above."
        )
        figures.append(Picture(f"entropy/{role}.png", f"Entropy on the {role}", caption))
    return figures + _draw_split(models, config, folder, views)


def _draw_split(
    models: Mapping[str, Segmenter], config: Config, folder: Path, views: Mapping[str, ImageSet]
) -> list[Picture]:
    """The most and least certain images, and each model's entropy on easy and hard ones; nothing without a split."""
    split = Path(config.out) / "split"
    if config.eval.weights is not None or not (split / RANKING).exists():
        return []
    with reading(split / "config.yaml", "the config.yaml of the split", "make the split again"):
        if recorded_config(split / "config.yaml")["target"]["root"] != config.target.root:
            return []  # another target is evaluated
    halves = read_ranking(split)
    names = [image.name for half in halves.values() for image in half]
    images = training_images(config, "target", labels=False)
    items = {item.name: item for item in images.only(names, split / RANKING)}
    count = min(EXTREMES, len(names))
    columns = {
        "most certain": [visible(images.read(items[name])) for name in names[:count]],
        "least certain": [visible(images.read(items[name])) for name in names[: -count - 1 : -1]],
    }
    picture_grid(folder / "entropy" / "split.png", [f"{i + 1}." for i in range(count)], columns)

    chosen = {half: _evenly(sorted(items[image.name] for image in of), SPLIT_IMAGES) for half, of in halves.items()}
    values: dict[str, dict[str, np.ndarray]] = {}
    with tqdm(total=len(models) * sum(map(len, chosen.values())), desc="easy and hard images", unit="image") as bar:
        for name, model in models.items():
            seen = replace(images, decoder=views[name].decoder, cache=None) if name in views else images
            for half, of in chosen.items():
                pixels = []
                for item in of:
                    pixels.append(_entropies(model, seen, item, config))
                    bar.update()
                values.setdefault(_title(name), {})[half] = np.concatenate(pixels)
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


def draw_tsne(evaluation: Evaluation) -> list[Picture]:
    """One joint embedding of both domains' features per model, of the same pixels; a MissingError without a source."""
    config, folder, models, domains, _ = evaluation
    target = next(domain for domain in domains if domain.role == "target")
    source = next((domain.images for domain in domains if domain.role == "source"), None)
    if source is None:
        if not config.source.root:
            raise MissingError("t-SNE compares two domains; give source.root, a folder of labelled images")
        source = training_images(config, "source", labels=True)

    def patches(images: ImageSet) -> list[Patch]:
        return [_patch(item, images, config) for item in _evenly(images, TSNE_IMAGES)]

    reference = list(models)[-1]
    known = {"source": patches(source), "target": patches(target.seen_by(reference))}
    pixels, predicted = sample_pixels(known, models[reference], config.eval.tsne_pixels, config.seed)
    panels = {}
    for name, model in tqdm(models.items(), desc="t-SNE", unit="model"):
        as_reference = target.seen_by(name) is target.seen_by(reference)
        seen = known["target"] if as_reference else patches(target.seen_by(name))
        panels[_title(name)] = embed(features_at(model, [*known["source"], *seen], pixels), pixels, config.seed)
    embedding_panels(folder / "tsne.png", panels, pixels.source, pixels.cloud, silhouettes=not predicted)
    classes = "labels" if not predicted else f"labels and, where an image has none, what the {reference} predicts"
    numbers: dict[str, dict[str, float | None]] = {}
    for name, panel in panels.items():
        probe = None if math.isnan(panel.probe) else panel.probe
        silhouette = None if predicted else panel.silhouette  # of one model's predictions: no fair comparison
        numbers[name] = {"domain_probe": probe, "silhouette": silhouette}
    record = {"pixels": len(pixels.source), "classes": classes, "models": numbers}
    write_json(folder / "tsne.json", record)
    caption = (
        f"{len(pixels.source)} feature pixels of at most {TSNE_IMAGES} images a domain, as many of each class and "
        f"domain, the same in each panel; each panel is one joint embedding of both domains.{_part_of_image(config)} "
        f"Classes are {classes}. The domain probe is the balanced accuracy of a linear classifier that tells source "
        "from target on images it was not fitted to: 50 % where the domains are aligned. The silhouette (-1 to 1) is "
        "high where the classes are apart. Both are taken in the first 50 principal components. "
        "Distances between islands mean little in t-SNE."
    )
    return [Picture("tsne.png", "t-SNE of the backbone's features", caption)]


def draw_gradcam(evaluation: Evaluation) -> list[Picture]:
    """Where each head of the last model finds clear ground and cloud."""
    config, folder, models, domains, _ = evaluation
    return [_gradcam_of(domain, models, config, folder) for domain in domains]


def _gradcam_of(domain: Domain, models: Mapping[str, Segmenter], config: Config, folder: Path) -> Picture:
    name, model = list(models.items())[-1]
    chosen = _evenly(domain.images, min(config.eval.pictures, CAM_IMAGES))
    device = next(model.parameters()).device
    columns: dict[str, list[np.ndarray]] = {"image": []}
    heads: tuple[Head, ...] = ("main", "aux")
    for item in tqdm(chosen, desc=f"Grad-CAM {domain.role}", unit="image"):
        decoded = domain.seen_by(name).read(item)
        image, valid = _middle(decoded.image, config), _middle(decoded.valid, config)
        patch, known = network_input(image, config.data.size, config.data.geometry), torch.from_numpy(valid.copy())
        picture = thinned(as_rgb(image))
        columns["image"].append(picture)
        for head in heads:
            for target, kind in enumerate(("clear", "cloud")):
                cam = grad_cam(model, patch.to(device), target, head, config.eval.cam_layer, known).cpu().numpy()
                cam = cv2.resize(cam, picture.shape[1::-1]) if cam.shape != picture.shape[:2] else cam
                heat = laid_over(picture, np.where(thinned(valid), cam, 0))
                columns.setdefault(f"{head} head: {kind}", []).append(heat)
    (folder / "gradcam").mkdir(exist_ok=True)
    file = f"gradcam/{domain.role}.png"
    picture_grid(folder / file, [item.name for item in chosen], columns, f"{_title(name)} on the {domain.role}")
    layer = config.eval.cam_layer or "the features that each head reads"
    caption = (
        f"Grad-CAM of the {_title(name)} at {layer}: bright where the layer speaks for the class, summed over the "
        f"pixels that the head gives to that class, or over all of them if there is none.{_part_of_image(config)} "
        "Each map is scaled by its own maximum."
    )
    return Picture(file, f"Class activation on the {domain.role}", caption)


FIGURES: dict[str, tuple[Callable[[Evaluation], list[Picture]], ...]] = {  # part of the report -> what draws it
    "masks": (draw_masks,),
    "entropy": (draw_entropy,),
    "tsne": (draw_tsne,),
    "gradcam": (draw_gradcam,),
}


def _patch(item: Item, images: ImageSet, config: Config) -> Patch:
    decoded = images.read(item)
    image, valid = _middle(decoded.image, config), _middle(decoded.valid, config)
    label = None if decoded.label is None else thinned(_middle(decoded.label, config))
    return Patch(network_input(image, config.data.size, config.data.geometry), label, thinned(valid))


def _middle(raster: np.ndarray, config: Config) -> np.ndarray:
    """What one forward of the network is meant for: the whole image, or its middle of the training crop's size."""
    if config.data.geometry == "letterbox":
        return raster
    top, left = (max(0, (full - config.data.size) // 2) for full in raster.shape[:2])
    return np.ascontiguousarray(raster[top : top + config.data.size, left : left + config.data.size])


def _part_of_image(config: Config) -> str:
    return f" Of an image larger than {config.data.size} pixels the middle is shown." * (config.data.geometry == "crop")


def _stored(
    folder: Path, models: Iterable[str], items: Sequence[Item], missing: Sequence[np.ndarray] = ()
) -> dict[str, list[np.ndarray]]:
    """A column for each model of what `evaluate_domain` has drawn; `missing` stands for images without a label."""
    return {
        _title(model): [
            thinned(read_png(folder / model / f"{item.name}.png")) if item.label is not None or not missing else blank
            for item, blank in zip_longest(items, missing)
        ]
        for model in models
    }


def _evenly(items: Sequence[Item], count: int) -> list[Item]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def _title(model: str) -> str:
    return model.replace("_", "-")
