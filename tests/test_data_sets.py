"""Published layouts, bands, depths and missing data through the whole program, as a user runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import eval as evaluation
import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config
from nets.weights import load_weights
from report.data_check import check

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SHORT = {  # what a training of seconds changes: the network and the length, nothing about the data
    "device": "cpu",
    "net.backbone": "mobilenetv3_small_050",
    "net.weights": "null",
    "net.discriminator_width": 4,
    "optim.algorithm": "sgd",
    "teacher.steps": 2,
    "teacher.epochs": "null",
    "teacher.batch": 2,
    "intra.steps": 2,
    "intra.epochs": "null",
    "intra.batch": 2,
    "eval.parts": "scores,scenes,masks,report",
    "eval.pictures": 2,
    "log.pictures": 100,
}


def run(arguments: list[str]) -> Config:
    config = load_config(arguments)
    train_teacher.train_teacher(config)
    split_entropy.split_entropy(config)
    train_intra.train_intra(config)
    evaluation.evaluate(config)
    return config


def words(values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


PAIRS = ("ms_to_whu", "whu_to_ms", "whu_to_38cloud", "whu_to_95cloud", "biome_to_sparcs", "biome_to_cloudsen12")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("pair", [pytest.param(p, marks=[pytest.mark.slow] * p.startswith("whu_to")) for p in PAIRS])
def test_official_layouts_run_with_the_shipped_configs_and_their_roots_alone(
    pair: str, tmp_path: Path, make_tree: Callable[[str, Path], Path]
) -> None:
    file = ROOT / "configs" / f"{pair}.yaml"
    shipped = load_config(["--config", str(file)])
    roots = {f"{role}.root": make_tree(d.reader, tmp_path / role) for role, d in vars(shipped).items() if role in ROLES}
    places = roots | {"out": tmp_path / "run", "data.cache": tmp_path / "cache"}
    arguments = ["--config", str(file), *words(places | SHORT)]
    check(load_config(arguments))  # raises if a file cannot be used
    report = json.loads((tmp_path / "run/check/report.json").read_text())
    assert not report["source"]["problems"] and not report["target"]["problems"]
    assert (tmp_path / "run/check/target.png").stat().st_size > 10_000

    config = run(arguments)
    out = Path(config.out)
    rows = (out / "split/entropy.csv").read_text().splitlines()[1:]
    expected = {
        "ms_to_whu": 8 * 6,  # 8 of 10 images, each cut into 3 x 2 tiles of 512
        "whu_to_ms": 3 * 2,  # a tenth of four scenes is one
        "whu_to_38cloud": 2 * 2,  # of three patches a scene one holds no data
        "whu_to_95cloud": 2 * 2,  # two of three scenes, the nonempty patches
        "biome_to_sparcs": 4,
        "biome_to_cloudsen12": 4,
    }
    assert len(rows) == expected[pair]
    entry = json.loads((out / "eval/metrics.json").read_text())["domains"]["target"]
    assert entry["protocol"].startswith("held-back")
    if pair == "whu_to_38cloud":  # patches without labels, scored as whole scenes
        assert entry["models"] == {} and entry["images"] == 2
        scenes = json.loads((out / "eval/scenes.json").read_text())
        assert scenes.keys() == {"teacher", "student"} and scenes["student"].keys() == {"12/255", "1/2"}
        assert "Whole scenes" in (out / "eval/report.html").read_text()
    else:
        assert 0 < entry["models"]["student"]["miou"] < 1
        assert not (out / "eval/scenes.json").exists()
    if "biome" in pair:
        tensors, metadata = load_weights(out / "intra/student.safetensors")
        assert json.loads(metadata["data"])["bands"] == ["red", "green", "blue", "nir", "swir1", "swir2"]
        assert tensors["mean"].shape == (1, 6, 1, 1)
    if pair.endswith("8cloud") or pair.endswith("95cloud"):
        scaling = json.loads((out / "scaling_target.json").read_text())
        assert scaling["bands"] == ["red", "green", "blue"]
        assert scaling["high"] == [230 * 200] * 3  # the discs are more than half a percent of the pixels
        assert all(0 <= low < 90 * 200 for low in scaling["low"])
        _, metadata = load_weights(out / "intra/student.safetensors")
        assert json.loads(metadata["data"])["target"]["scaling"] == [scaling["low"], scaling["high"], 1, "uint16"]


ROLES = ("source", "target")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not beside the checkout")
@pytest.mark.parametrize("pair", ["hrc_to_38cloud_16bit", "biome_4band_to_hrc"])
def test_real_images_of_16_bits_run_with_the_shipped_configs(pair: str, tmp_path: Path) -> None:
    file = ROOT / "configs" / f"{pair}.yaml"
    shipped = load_config(["--config", str(file)])
    roots = {f"{role}.root": SHARED / Path(getattr(shipped, role).root).name for role in ROLES}
    arguments = ["--config", str(file), *words(roots | SHORT | {"out": tmp_path / "run", "eval.parts": "scores"})]
    check(load_config(arguments))
    config = run(arguments)
    entry = json.loads((Path(config.out) / "eval/metrics.json").read_text())["domains"]["target"]
    assert entry["images"] == entry["labelled"] == {"hrc_to_38cloud_16bit": 16, "biome_4band_to_hrc": 26}[pair]


@pytest.mark.parametrize(
    ("geometry", "tile"),
    [
        ("crop", 512),
        pytest.param("letterbox", 512, marks=pytest.mark.slow),
        pytest.param("crop", 32, marks=pytest.mark.slow),
    ],
)
def test_margins_without_data_change_nothing(
    geometry: str, tile: int, tmp_path: Path, make_domain: Callable[..., Path], tiny_arguments: Callable[..., list[str]]
) -> None:
    """The same domains, plain and with a margin of zeros around each image: same weights, ranking, masks and scores."""
    plain, padded = tmp_path / "plain", tmp_path / "padded"
    for folder in (plain, padded):
        for seed, role in enumerate(ROLES):
            make_domain(folder / role, seed=seed)
    for path in sorted(padded.rglob("*.png")):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if path.parent.name == "images":
            pixels = np.maximum(pixels, 1)
            cv2.imwrite(str(plain / path.relative_to(padded)), pixels)
        size = path.stem.removeprefix("scene_")  # image and label of one scene get the same margin
        top, left = 3 + int(size), 7 * (int(size) % 2)
        cv2.imwrite(str(path), cv2.copyMakeBorder(pixels, top, 5, left, 2, cv2.BORDER_CONSTANT, value=0))
    rules = (
        "--source.nodata=all_zero",
        "--target.nodata=all_zero",
        f"--data.geometry={geometry}",
        f"--data.tile={tile}",
        "--eval.parts=scores",
    )
    out = {folder: Path(run(tiny_arguments(folder, *rules)).out) for folder in (plain, padded)}

    for file in ("teacher/teacher.safetensors", "intra/student.safetensors"):
        first, second = (load_weights(out[folder] / file)[0] for folder in (plain, padded))
        assert all(torch.equal(first[key], second[key]) for key in first)
    for file in ("split/entropy.csv", "split/easy.txt", "intra/metrics.jsonl", "eval/images_target.csv"):
        assert (out[plain] / file).read_bytes() == (out[padded] / file).read_bytes(), file
    scores = [json.loads((out[f] / "eval/metrics.json").read_text())["domains"]["target"]["models"] for f in out]
    assert scores[0] == scores[1]
    for path in (out[plain] / "split/pseudo_labels").iterdir():
        inside, whole = (cv2.imread(str(out[f] / "split/pseudo_labels" / path.name), -1) for f in (plain, padded))
        if tile < 48:  # a tile lies inside the data, so it has no margin
            assert (whole == inside).all() and inside.shape == (32, 32)
            continue
        number = int(path.stem.removeprefix("scene_"))
        top, left = 3 + number, 7 * (number % 2)
        assert (whole[top : top + 40, left : left + 48] == inside).all()
        assert (whole == 128).sum() == whole.size - inside.size  # what has no data is not known
    assert len((out[plain] / "split/entropy.csv").read_text().splitlines()) == (6 * 4 if tile < 48 else 6) + 1


def test_a_cache_changes_no_byte(tmp_path: Path, tiny_arguments: Callable[..., list[str]]) -> None:
    scored = "--eval.parts=scores"
    first = Path(run(tiny_arguments(tmp_path, scored)).out)
    cached = [f"--data.cache={tmp_path / 'cache'}", f"--out={tmp_path / 'second'}", "--data.workers=2"]
    second = Path(run(tiny_arguments(tmp_path, scored, *cached)).out)
    assert (
        len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 6 * 4
    )  # images and labels, twice
    for file in ("teacher/teacher.safetensors", "split/entropy.csv", "intra/student.safetensors", "eval/metrics.csv"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_bands_are_taken_by_name_and_the_network_has_as_many(
    tmp_path: Path, make_domain: Callable[..., Path], tiny_arguments: Callable[..., list[str]]
) -> None:
    """Source in RGB, target with its bands turned round: by name they are the same data."""
    arguments = tiny_arguments(tmp_path, "--eval.parts=scores")
    make_domain(tmp_path / "turned", seed=1)
    for path in (tmp_path / "turned/images").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[..., ::-1])
    first = Path(run([*arguments, "--data.bands=[red, blue]"]).out)
    turned = [
        f"--target.root={tmp_path / 'turned'}",
        "--target.bands=[blue, green, red]",
        f"--out={tmp_path / 'second'}",
    ]
    second = Path(run([*arguments, "--data.bands=[red, blue]", *turned]).out)
    weights, metadata = load_weights(first / "intra/student.safetensors")
    assert json.loads(metadata["architecture"])["in_channels"] == 2
    assert all(torch.equal(v, load_weights(second / "intra/student.safetensors")[0][k]) for k, v in weights.items())
