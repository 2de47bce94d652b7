"""The pictures of an evaluation: masks and errors, entropy maps, t-SNE and Grad-CAM, each with its caption."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import torch

from config.load import recorded_config
from config.schema import Config
from datasets.files import Item
from datasets.geometry import filled
from datasets.images import ImageSet
from datasets.samples import network_input
from engine.domains import training_images
from engine.inference import decided, probabilities
from engine.layout import RANKING
from engine.pictures import CLOUD, ERROR_KEY, as_rgb, colour_mask, laid_over, outlined, read_png, thinned, visible
from engine.pseudo_labels import read_ranking
from losses.entropy import normalised_entropy
from nets.segmenter import Head
from report.embedding import Patch, embed, features_at, sample_pixels
from report.evaluation import Evaluation
from report.gradcam import grad_cam
from report.metrics import CLASSES
from report.plots import embedding_panels, entropy_histograms, evenly_spaced, picture_grid, whole_label
from report.records import Picture
from utils.errors import MissingError
from utils.output import progress_bar
from utils.records import reading, write_json

SPLIT_IMAGES = 12  # of each split in the histograms of entropy
SPLIT_PIXELS = 2**18  # of each of them at most
EXTREMES = 4
CAM_IMAGES = 5
TSNE_IMAGES = 60  # of each domain; more would only cost memory, a few pixels are drawn from each


def draw_masks(evaluation: Evaluation) -> list[Picture]:
    """Image, label and every model's mask; then outlines, and where each model is wrong."""
    config, folder, *_, results = evaluation
    figures = []
    for result in results:
        domain, role = result.domain, result.domain.role
        chosen = evenly_spaced(domain.images, config.eval.pictures)
        names, images, labels = [item.name for item in chosen], [], []
        for decoded in map(domain.images.read, chosen):
            images.append(visible(decoded))
            labels.append(thinned(whole_label(decoded)))
        masks = _stored(folder / "masks" / role, result.models, chosen)
        truth = {"label": [colour_mask(label) for label in labels]} if domain.labelled else {}
        columns = {"image": images, **truth, **masks}
        picture_grid(folder / "masks" / f"{role}.png", names, columns, f"{role}: {domain.protocol}")
        colours = (
            "Clear ground is pale green, cloud white; grey, where there is any, is not known. Evenly spaced images of "
            "the evaluation list, not chosen by result."
        )
        figures.append(Picture(f"masks/{role}.png", f"Masks on the {role}", colours))

        title, last = list(masks.items())[-1]
        columns = {f"{title}, outline": [outlined(i, (m == CLOUD).all(2)) for i, m in zip(images, last, strict=True)]}
        note = "The outline of the cloud drawn over the image."
        if domain.labelled:
            outlines = {"label, outline": [outlined(i, k) for i, k in zip(images, labels, strict=True)]}
            columns = outlines | columns | _stored(folder / "errors" / role, result.models, chosen, truth["label"])
            note += " In the error views red is cloud that the model missed, blue is clear ground that it calls cloud."
        key = ERROR_KEY if domain.labelled else ()
        picture_grid(folder / "masks" / f"{role}_errors.png", names, columns, key=key)
        figures.append(Picture(f"masks/{role}_errors.png", f"Outlines and errors on the {role}", note))
    return figures


def draw_entropy(evaluation: Evaluation) -> list[Picture]:
    """Entropy maps of every model; where there is a split, the distributions over easy and hard images."""
    config, folder, *_, results = evaluation
    figures = []
    for result in results:
        domain, role = result.domain, result.domain.role
        chosen = evenly_spaced(domain.images, config.eval.pictures)
        columns = {"image": [visible(domain.images.read(item)) for item in chosen]}
        columns |= _stored(folder / "entropy" / role, result.models, chosen)
        picture_grid(folder / "entropy" / f"{role}.png", [i.name for i in chosen], columns, entropy_bar=True)
        caption = (
            "Normalised entropy of the class probabilities, from yellow (0, the model is sure) to red (1, both classes "
            "equally likely). Sure is not right: compare with the errors above."
        )
        figures.append(Picture(f"entropy/{role}.png", f"Entropy on the {role}", caption))
    return figures + _draw_split(evaluation)


def _draw_split(evaluation: Evaluation) -> list[Picture]:
    """The most and least certain images, and each model's entropy on easy and hard ones; nothing without a split."""
    config, folder, models, domains, _ = evaluation
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

    views = {name: view for domain in domains for name, view in domain.views.items()}  # the source has none
    chosen = {half: evenly_spaced(sorted(items[i.name] for i in of), SPLIT_IMAGES) for half, of in halves.items()}
    shown = [(name, half, item) for name in models for half, of in chosen.items() for item in of]
    pixels: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for name, half, item in progress_bar(shown, desc="easy and hard images", unit="image"):
        seen = replace(images, decoder=views[name].decoder, cache=None) if name in views else images
        decoded = seen.read(item)
        probability = probabilities(models[name], decoded.image, config.data, decoded.valid)
        entropy = normalised_entropy(decided(probability, config.eval.head)[None])[0].numpy()[decoded.valid]
        pixels[name, half].append(entropy[:: math.ceil(len(entropy) / SPLIT_PIXELS)])
    values = {_title(name): {half: np.concatenate(pixels[name, half]) for half in chosen} for name in models}
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


def draw_tsne(evaluation: Evaluation) -> list[Picture]:
    """One joint embedding of both domains' features per model, of the same pixels; a MissingError without a source."""
    config, folder, models, domains, _ = evaluation
    by_role = {domain.role: domain for domain in domains}
    target = by_role["target"]
    if "source" not in by_role and not config.source.root:
        raise MissingError("t-SNE compares two domains; give source.root, a folder of labelled images")
    source = by_role["source"].images if "source" in by_role else training_images(config, "source", labels=True)

    def patches(images: ImageSet) -> list[Patch]:
        found = []
        for decoded in map(images.read, evenly_spaced(images, TSNE_IMAGES)):
            label = None if decoded.label is None else thinned(_middle(decoded.label, config))
            image, valid = _middle(decoded.image, config), _middle(decoded.valid, config)
            patch = network_input(filled(image, valid), config.data.size, config.data.geometry)
            found.append(Patch(patch, label, thinned(valid)))
        return found

    reference = list(models)[-1]
    known = {"source": patches(source), "target": patches(target.seen_by(reference))}
    pixels, predicted = sample_pixels(known, models[reference], config.eval.tsne_pixels, config.seed)
    panels = {}
    for name, model in progress_bar(models.items(), desc="t-SNE", unit="model"):
        as_reference = target.seen_by(name) is target.seen_by(reference)
        seen = known["target"] if as_reference else patches(target.seen_by(name))
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
    write_json(folder / "tsne.json", {"pixels": len(pixels.source), "classes": classes, "models": numbers})
    caption = (
        f"{len(pixels.source)} feature pixels of at most {TSNE_IMAGES} images a domain, as many of each class and "
        f"domain, the same in each panel; each panel is one joint embedding of both domains.{_part_of_image(config)} "
        f"Classes are {classes}. The domain probe is the balanced accuracy of a linear classifier that tells source "
        "from target on images it was not fitted to: 50 % where the domains are aligned. The silhouette (-1 to 1) is "
        "high where the classes are apart. Both are taken in the first 50 principal components. Distances between "
        "islands mean little in t-SNE."
    )
    return [Picture("tsne.png", "t-SNE of the backbone's features", caption)]


def draw_gradcam(evaluation: Evaluation) -> list[Picture]:
    """Where each head of the last model finds clear ground and cloud."""
    config, folder, models, domains, _ = evaluation
    name, model = list(models.items())[-1]
    device, layer = next(model.parameters()).device, config.eval.cam_layer
    caption = (
        f"Grad-CAM of the {_title(name)} at {layer or 'the features that each head reads'}: bright where the layer "
        "speaks for the class, summed over the pixels that the head gives to that class, or over all of them if there "
        f"is none.{_part_of_image(config)} Each map is scaled by its own maximum."
    )
    figures = []
    for domain in domains:
        chosen = evenly_spaced(domain.images, min(config.eval.pictures, CAM_IMAGES))
        columns: dict[str, list[np.ndarray]] = {"image": []}
        for item in progress_bar(chosen, desc=f"Grad-CAM {domain.role}", unit="image"):
            decoded = domain.seen_by(name).read(item)
            image, valid = _middle(decoded.image, config), _middle(decoded.valid, config)
            patch = network_input(filled(image, valid), config.data.size, config.data.geometry).to(device)
            picture, known = thinned(as_rgb(image)), torch.from_numpy(valid.copy())
            columns["image"].append(picture)
            for head, (target, kind) in product(get_args(Head), enumerate(CLASSES)):
                cam = grad_cam(model, patch, target, head, layer, known).cpu().numpy()
                cam = cv2.resize(cam, picture.shape[1::-1]) if cam.shape != picture.shape[:2] else cam
                heat = laid_over(picture, np.where(thinned(valid), cam, 0))
                columns.setdefault(f"{head} head: {kind}", []).append(heat)
        (folder / "gradcam").mkdir(exist_ok=True)
        file = f"gradcam/{domain.role}.png"
        picture_grid(folder / file, [item.name for item in chosen], columns, f"{_title(name)} on the {domain.role}")
        figures.append(Picture(file, f"Class activation on the {domain.role}", caption))
    return figures


FIGURES: dict[str, tuple[Callable[[Evaluation], list[Picture]], ...]] = {  # part of the report -> what draws it
    "masks": (draw_masks,),
    "entropy": (draw_entropy,),
    "tsne": (draw_tsne,),
    "gradcam": (draw_gradcam,),
}


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


def _title(model: str) -> str:
    return model.replace("_", "-")
