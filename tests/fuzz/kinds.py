"""What is fuzzed: each kind puts a damaged file into a folder of its own and gives it to the entries that read it."""

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import matplotlib.font_manager  # noqa: F401  it makes its folder when it is imported
import numpy as np

from comparison.jobs import plan as plan_jobs
from comparison.published import read_published
from config.load import load_compare_config, load_config
from config.schema import Config, NetConfig
from datasets.cache import Cache
from datasets.check import inspect_part
from datasets.decode import RGB, read_bands, read_label, size_of
from datasets.decoder import Decoder
from datasets.files import Item, Window, raise_all
from datasets.images import checked
from datasets.measured_scaling import measured_stretch
from datasets.readers import READERS, find_images
from datasets.scaling import Stretch
from engine.build import build_segmenter, device_of
from engine.checkpoint import MARK, NAME, PREVIOUS, TRAILER, resume
from engine.domains import decoder_of, expected_images, listed, rules_of, with_scaling_of
from eval import load_models
from nets.weights import import_deeplab_v2, is_segmenter_file, load_segmenter
from report.data_check import check
from scenes import CloudNetwork, Images, Options, load_network, predict_scene
from scenes.export import model_card
from scenes.rasters import grid_of
from tests.fuzz.mutate import WORDS, mutated
from tests.fuzz.records import record
from tests.fuzz.runner import Case, Try
from tests.fuzz.scenes import scene
from tests.fuzz.seeds import ABOUT, parts, words
from tests.fuzz.shared import deeplab, settings_of, valid


def given(*calls: Callable[[], object], names: tuple[str, ...]) -> Case:
    return [Try(call, names) for call in calls]


def damaged(rng: Random, folder: Path, names: tuple[str, ...], box: Path, chance: float = 1.0) -> Path:
    """Put one of the named seeds into the box, damaged, with the files that belong to it, of which one may be damaged
    in its place."""
    seeds = valid(folder)
    name = rng.choice(names)
    beside = [other for other in seeds if other != name and other.split(".")[0] == name.split(".")[0]]
    beside = [other for other in beside if Path(other).suffix in (".hdr", ".xml", ".msk")]
    target = rng.choice([name, *beside * 2])
    for part in (name, *beside):
        content = seeds[part]
        if part == target and rng.random() < chance:
            content = mutated(rng, part, content, [content, *seeds.values()])
        (box / part).write_bytes(content)
    return box / name


# ---- pixels


LARGE = 2**25  # pixels of a scene


def cloud_of(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Stands for a network: the mean brightness."""
    return np.full((len(windows), *size), windows.mean() / 255, np.float32)


def image(rng: Random, base: Path, box: Path) -> Case:
    seeds = base / "image"
    names = tuple(name for name in valid(seeds) if Path(name).suffix not in (".hdr", ".xml", ".msk"))
    path = damaged(rng, seeds, names, box)
    if rng.random() < 0.2:
        path = path.rename(path.with_name(path.stem + rng.choice((".png", ".tif", ".jpg", ".img", ".bmp"))))
    whole = Item("fuzzed", (path,))
    bands = rng.choice((RGB, ("red",), ("gray",), ("red", "green", "blue", "nir")))
    file_bands = rng.choice((None, None, bands, ("blue", "green", "red")))
    scaling = rng.choice((None, None, "shift8", Stretch((0.0,) * len(bands), (1e4,) * len(bands), 2.2)))
    decoder = Decoder(bands, file_bands, scaling, rng.choice(("file", "none", "all_zero", 70.0, "band:red")))
    tile, corner = rng.choice((None, 16, 32)), rng.randrange(30)
    cache = Cache(box / "cache") if rng.random() < 0.3 else None

    def part() -> None:
        height, width = size_of(path)
        read_bands(path, window=Window(min(corner, height - 1), 0, 1, max(1, width // 2)))

    def survey() -> None:
        raise_all(inspect_part([whole], decoder, "fuzz").problems, str(path))

    def scenes() -> None:
        images = Images(decoder, 16, rng.choice(("crop", "letterbox")), 32)
        outputs = {name: box / "out" / f"fuzzed_{name}.tif" for name in ("mask", "probability")}
        outputs["quicklook"] = box / "out" / "fuzzed_quicklook.png"
        network = CloudNetwork(path, images, cloud_of)
        if math.prod(size_of(path)) < LARGE:
            predict_scene(network, path, outputs)
        else:  # it would be read to its end, however long that takes
            grid = grid_of(path)
            Options().plan(grid.height, grid.width, network)

    calls = [
        lambda: size_of(path),
        lambda: read_bands(path),
        lambda: read_bands(path, file_bands, None, bands),
        part,
        lambda: checked([whole], decoder, "fuzz", cache, tile),
        survey,
    ]
    if rng.random() < 0.3:
        calls += [scenes, lambda: measured_stretch([whole], decoder)]
    if rng.random() < 0.015:
        calls.append(lambda: survey_domain(path, None, base, box))
    return given(*calls, names=(path.name, "report.md"))


def survey_domain(picture: Path, mask: Path | None, base: Path, box: Path) -> None:
    """What `python -m datasets check` does with a domain of this image."""
    root = box / "domain"
    for folder, path in (("images", picture), ("labels", mask)):
        if path is not None:
            (root / folder).mkdir(parents=True)
            shutil.copy(path, root / folder / f"s_0{path.suffix}")
    check(load_config(words(out=box / "run", target__root=root, target__scaling="null")))


def label(rng: Random, base: Path, box: Path) -> Case:
    seeds = base / "label"
    names = tuple(name for name in valid(seeds) if Path(name).suffix not in (".hdr", ".xml", ".msk"))
    path = damaged(rng, seeds, names, box)
    label_map = rng.choice(({0: 0, 255: 1}, {0: 0, 1: 1}, {value: value % 2 for value in range(256)}))
    decoder = Decoder(RGB, label_map=label_map)
    item = Item("fuzzed", (base / "source/images/s_0.png",), path)
    window = Window(rng.randrange(40), rng.randrange(48), 1, 1)
    cache = Cache(box / "cache") if rng.random() < 0.3 else None

    def survey() -> None:
        raise_all(inspect_part([item], decoder, "fuzz").problems, str(path))

    calls: list[Callable[[], object]] = [
        lambda: read_label(path, label_map),
        lambda: checked([item], decoder, "fuzz", cache, 16),
        lambda: decoder.read(item._replace(window=window, label_window=window)),
        survey,
    ]
    if rng.random() < 0.015:
        calls.append(lambda: survey_domain(item.image, path, base, box))
    return given(*calls, names=(path.name, "report.md"))


# ---- lists and names of files


LAYOUTS = {  # reader -> files of a small tree, name of a list, its rows
    "folder": (
        [f"{folder}/s {i}.png" for folder in ("images", "labels") for i in range(3)],
        "train.txt",
        "\ufeffimages/s 0.png\tlabels/s 0.png\nimages/s 1.png labels/s 1.png\n\nimages/s 2.png\tlabels/s 2.png\n",
    ),
    "ms_cloud": (
        [f"{folder}/{i}_0_960.{end}" for folder, end in (("images", "jpg"), ("labels", "png")) for i in range(3)],
        "list.txt",
        "".join(f"images/{i}_0_960.jpg labels/{i}_0_960.png\r\n" for i in range(3)),
    ),
    "hrc_whu": (
        [f"water_{i}{end}.tif" for i in range(1, 7) for end in ("", "_ReferenceMask")],
        "list.txt",
        "".join(f"water_{i}.tif water_{i}_ReferenceMask.tif\n" for i in range(1, 7)),
    ),
    "cloud38": (
        [
            f"38-Cloud_training/train_{band}/{band}_patch_{i}_1_by_{i}_LC08_1.TIF"
            for band in ("red", "green", "blue", "nir", "gt")
            for i in range(1, 4)
        ],
        "training_patches_38-cloud_nonempty.csv",
        "name,other\n" + "".join(f"patch_{i}_1_by_{i}_LC08_1,{i}\n" for i in range(1, 4)),
    ),
    "l8_biome": (
        [f"BC/LC8{i}/LC8{i}_{end}" for i in range(2) for end in ("B4.TIF", "fixedmask.img")],
        "list.txt",
        "LC80\nLC81\n",
    ),
    "sparcs": (
        [f"sending/LC8{i}_24_{end}" for i in range(2) for end in ("data.tif", "mask.png")],
        "list.txt",
        "LC80_24\nLC81_24\n",
    ),
    "cloudsen12": (
        [f"high/ROI_{i}/a/{end}" for i in range(2) for end in ("S2L1C.tif", "labels/manual_hq.tif")],
        "list.txt",
        "high/ROI_0/a\nhigh/ROI_1/a\n",
    ),
}
LAYOUTS["cloud95"] = (LAYOUTS["cloud38"][0], "names.txt", "patch_1_1_by_1_LC08_1\npatch_2_1_by_2_LC08_1\n")
NAMES = (*(word for word in WORDS if 0 < len(word) < 200 and not set("/\x00") & set(word)), "-rf", "a\nb", "*", "%s")


def lists(rng: Random, base: Path, box: Path) -> Case:
    reader = rng.choice(sorted(LAYOUTS))
    files, list_name, rows = LAYOUTS[reader]
    root = box / "data"
    for name in files:
        path = root / name
        if rng.random() < 0.03:  # an odd name, or a folder or a link in a file's place
            way, path = rng.randrange(3), path.with_name(rng.choice(NAMES) + path.suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if way == 1:
                path.mkdir(exist_ok=not path.is_file())
                continue
            if way == 2 and not path.exists():
                path.symlink_to(rng.choice((path, base / "outside", base / "missing")))
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"")
    others = [text.encode() for _, _, text in LAYOUTS.values()]
    (root / list_name).write_bytes(mutated(rng, list_name, rows.encode(), others))
    wanted = rng.choice((None, list_name, list_name, list_name, *READERS[reader].parts))
    scene = rng.choice((None, None, r"(\d+)", "^x"))
    partial, with_labels = rng.random() < 0.5, rng.random() < 0.7

    def find() -> None:
        found = find_images(root, wanted, reader=reader, scene=scene, labels=with_labels, partial=partial)
        for item in found.items:  # whatever is written for it is written by its name
            place = (box / "out" / f"{item.name}.png").resolve()
            assert place.is_relative_to(box / "out"), f"{item.name!r} leads out"
            for path in (*item.files, *filter(None, [item.label])):
                assert path.absolute().is_relative_to(root) and ".." not in path.parts, f"{path} leads out"
        (box / "easy.txt").write_text(READERS[reader].list_text(found.items, root), "utf-8")
        READERS[reader].published_key(root, wanted)
        READERS[reader].scene_truth(root)
        raise_all(found.faults, str(root))

    return given(find, names=(str(root), list_name))


# ---- configurations


SETTINGS = ("configuration:", "command line:", "device is", ".gamma is", ".options")  # of no one file


def config(rng: Random, base: Path, box: Path) -> Case:
    """One of the project's own files, a method of a comparison, published scores, or the command line."""
    seeds = valid(base / "config")
    way = rng.random()
    if way < 0.25:
        return comparison(rng, base, box)
    if way < 0.35:
        path = damaged(rng, base / "config", ("published.yaml",), box)
        return given(*(lambda p=pair: read_published(path, p) for pair in ("ms_to_whu", "x")), names=(path.name,))
    special = ("compare.yaml", "published.yaml", "pair.yaml")
    path = damaged(rng, base / "config", tuple(name for name in seeds if name not in special), box, 0.85)
    arguments = [*words(), "--config", str(path), "--out", str(box / "run")]
    names: tuple[str, ...] = (path.name, *SETTINGS)
    if rng.random() < 0.3:
        keys = [word.removeprefix("--") for word in words()[::2]]
        key = rng.choice((*keys, "source.nodata", "target.label_map", "teacher.options", "net.mean", "data.bands", "x"))
        word = rng.choice([word for word in WORDS if "\x00" not in word])
        arguments += [f"--{key}", word] if rng.random() < 0.7 else [f"--{key}={word}"]

    def load() -> None:
        loaded = load_config(arguments)
        loaded = replace(loaded, out=str(box / "run"), generated=None)
        use(loaded, base)

    return given(load, names=(*names, str(base / "source"), str(base / "target")))


def use(loaded: Config, base: Path) -> None:
    """What every stage asks of a configuration before it trains."""
    device_of(loaded)
    for role in ("source", "target"):
        rules_of(loaded, role)
        mine = getattr(loaded, role)
        here = replace(mine, root=str(base / role))
        loaded = replace(loaded, **{role: here})
        items = listed(loaded, role, "train", labels=False)
        checked(items[:1], replace(decoder_of(loaded, role)), role, None, loaded.data.tile)
    expected_images(loaded, "target")
    if loaded.net.backbone == words()[words().index("--net.backbone") + 1]:
        build_segmenter(loaded)


def comparison(rng: Random, base: Path, box: Path) -> Case:
    path = damaged(rng, base / "config", ("compare.yaml",), box)
    for name in ("pair.yaml", "published.yaml"):
        shutil.copy(base / "config" / name, box)

    def plan() -> None:
        loaded = load_compare_config(["--config", str(path), "--out", str(box / "compared")])
        if len(loaded.methods) * len(loaded.pairs) * len(loaded.seeds) < 6:
            for job in plan_jobs(loaded):
                assert job.folder.resolve().is_relative_to(box), f"{job.folder} leads out"

    return given(
        plan,
        names=(path.name, "configuration:", "command line:", "pair", "methods.", "overrides", "expected a YAML file"),
    )


# ---- weights and checkpoints


def weights(rng: Random, base: Path, box: Path) -> Case:
    names = ("teacher.safetensors", "teacher.safetensors", "bare.pth", "advent.pth", "asda.pth", "tiny.onnx")
    if rng.random() < 0.1:
        damaged(rng, base / "weights", ("config.yaml",), box)
        path = Path(shutil.copy(base / "weights" / "plain.safetensors", box))
    else:
        path = damaged(rng, base / "weights", names, box)
    if rng.random() < 0.1:
        path = path.rename(path.with_suffix(rng.choice((".safetensors", ".pth", ".onnx", ""))))
    if not (box / "config.yaml").exists() and rng.random() < 0.5:
        shutil.copy(base / "weights" / "config.yaml", box)
    settings = settings_of(str(box / "run"))
    picture = base / "source/images/s_0.png"
    out = {"mask": box / "out" / "s_0_mask.png"}

    def predict() -> None:
        predict_scene(load_network(path, "cpu"), picture, out)

    def card() -> None:
        network = load_network(path, "cpu")
        model_card(path, network.images, load_segmenter(path).architecture if path.suffix != ".onnx" else "{}")

    calls: list[Callable[[], object]] = [predict]
    if path.suffix != ".onnx":
        calls += [
            lambda: with_scaling_of(str(path), Decoder(RGB)),
            lambda: load_segmenter(path),
            card,
            lambda: load_models(replace(settings, eval=replace(settings.eval, weights=str(path)))),
        ]
    if path.suffix != ".safetensors" or rng.random() < 0.2:
        calls += [lambda: import_deeplab_v2(path, deeplab()), lambda: is_segmenter_file(path)]
        net = NetConfig(backbone="mobilenetv3_small_050", weights=str(path))
        calls.append(lambda: build_segmenter(Config(net=net)))
    chosen = rng.sample(calls, min(len(calls), 3))
    return given(*chosen, names=(path.name, "s_0.png", "config.yaml"))


def checkpoint(rng: Random, base: Path, box: Path) -> Case:
    """The newest of two, or of one; with the checksum as it was, which has to be missed, or made anew."""
    seeds = valid(base / "weights")
    kept, signed = rng.random() < 0.3, rng.random() < 0.6
    sound = seeds[NAME]
    body = sound[:-TRAILER] if signed else sound
    content = mutated(rng, NAME, body, [body, seeds["bare.pth"]])
    if signed:
        content += MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"
    (box / NAME).write_bytes(content)
    if kept:
        shutil.copy(base / "weights" / PREVIOUS, box)

    def load() -> None:
        step = resume(box, *parts(), ABOUT)
        if not signed:
            assert step == (2 if content == sound else 1), f"a damaged checkpoint was taken, of step {step}"

    return given(load, names=(NAME,))


KINDS: dict[str, Callable[[Random, Path, Path], Case]] = {
    **{"image": image, "label": label, "list": lists, "config": config},
    **{"weights": weights, "checkpoint": checkpoint, "record": record, "scene": scene},
}
