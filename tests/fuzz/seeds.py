"""The valid files that are damaged: small, of every kind that the project reads, the same bytes each time."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
import torch
import yaml
from PIL import Image
from rasterio.enums import ColorInterp
from torch import nn

from comparison.results import RESULT
from config.load import load_config
from datasets.cache import Cache
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.generated import make_pair
from datasets.images import ImageSet
from engine.build import build_segmenter
from engine.checkpoint import save_checkpoint
from engine.domains import data_record
from engine.run import open_stage
from eval import evaluate
from nets.segmenter import Segmenter
from nets.weights import save_segmenter
from scenes import Options, Summary
from scenes.folder import Row, open_folder, write_summary
from split_entropy import split_entropy

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 40, 48
ABOUT = {"architecture": '{"backbone": "x", "classes": 2}', "bands": "red, green, blue"}
TINY = {  # a run of a second
    **{"device": "cpu", "out": "run", "source.root": "source", "target.root": "target", "target.scaling": "train"},
    **{"data.size": 32, "net.backbone": "mobilenetv3_small_050", "net.discriminator_width": 4, "eval.pictures": 1},
    **{"teacher.steps": 2, "eval.parts": "scores"},
    **{"log.every": 1, "log.checkpoint": 2, "log.pictures": 9},
}


def words(**changes: Any) -> list[str]:
    """The command line of the tiny run."""
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def scene(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 of dark ground under a bright disc, and the disc as a label of 0 and 255."""
    rows, columns = np.mgrid[:height, :width]
    cloud = np.hypot(rows - rng.uniform(10, 30), columns - rng.uniform(10, 30)) < rng.uniform(6, 14)
    image = np.where(cloud[..., None], 220, 70) + rng.integers(-20, 20, (height, width, 3))
    return image.astype(np.uint8), np.where(cloud, 255, 0).astype(np.uint8)


def make(base: Path) -> None:
    """Write all of them below `base`, which becomes the current folder."""
    os.chdir(base)
    sys.argv = ["fuzz.py"]  # what the records of a run say of their command
    rng = np.random.default_rng(0)
    for role in ("source", "target"):
        for folder in ("images", "labels"):
            (base / role / folder).mkdir(parents=True)
        for i in range(4):
            image, label = scene(rng)
            cv2.imwrite(f"{role}/images/s_{i}.png", image)
            cv2.imwrite(f"{role}/labels/s_{i}.png", label)
    for folder in ("outside", "image", "label", "weights", "config", "cache"):
        (base / folder).mkdir()
    Path("outside/canary.txt").write_text("nobody reads or changes this\n", "utf-8")
    shutil.copy("target/images/s_0.png", "outside/canary.png")
    images(Path("image"), rng)
    labels(Path("label"), rng)
    configs(Path("config"))
    run()
    weights(Path("weights"))
    make_pair(Path("generated"), train=1, evaluation=1, size=64, progress=False)
    item = Item("s_0", (Path("source/images/s_0.png"),), Path("source/labels/s_0.png"))
    cache, decoder = Cache("cache"), Decoder(("red", "green", "blue"))
    ImageSet((item,), decoder, cache, {item.name: cache.key(item, decoder)}).read(item)


def images(folder: Path, rng: np.random.Generator) -> None:
    rgb, mask = scene(rng)
    deep = rgb.astype(np.uint16) * 200
    pictures = {
        **{
            "rgb": Image.fromarray(rgb),
            "gray": Image.fromarray(rgb[..., 0]),
            "bit": Image.fromarray(mask).convert("1"),
        },
        **{"rgba": Image.fromarray(np.dstack([rgb, mask])), "palette": Image.fromarray(rgb).quantize(16)},
        **{
            "gray16": Image.fromarray(deep[..., 0]),
            "gray_alpha": Image.fromarray(np.dstack([rgb[..., 0], mask]), "LA"),
        },
    }
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    cv2.imwrite(str(folder / "rgb16.png"), deep)
    for name in ("rgb", "gray", "palette", "bit"):
        pictures[name].save(folder / f"{name}.bmp")
    for name in ("rgb", "gray"):
        pictures[name].save(folder / f"{name}.jpg", quality=90)
    pictures["rgb"].save(folder / "progressive.jpg", progressive=True)
    pictures["rgb"].convert("CMYK").save(folder / "inks.jpg")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "a description"
    pictures["rgb"].save(folder / "exif.jpg", exif=exif)
    tiffs: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "u8_strips": (rgb, {}),
        "u8_packbits": (rgb, {"compress": "packbits"}),
        "u8_jpeg": (
            rgb,
            {"compress": "jpeg", "photometric": "ycbcr", "tiled": True, "blockxsize": 16, "blockysize": 16},
        ),
        "u8_bands": (rgb, {"interleave": "band", "compress": "lzw"}),
        "u8_mask": (rgb[..., :1], {"nodata": 70}),
        "u16_tiles": (deep, {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate", "predictor": 2}),
        "u16_big": (deep, {"BIGTIFF": "YES"}),
        "u16_swapped": (deep, {"ENDIANNESS": "BIG", "compress": "lzma"}),
        "i16": (deep.astype(np.int16)[..., :1], {"compress": "zstd"}),
        "f32": (rgb / np.float32(255), {"compress": "lzw", "predictor": 3, "nodata": float("nan")}),
        "f64": (rgb / 255, {"tiled": True, "blockxsize": 16, "blockysize": 16}),
        "u32": (deep.astype(np.uint32)[..., :1], {}),
        "alpha": (np.dstack([rgb, mask]), {"photometric": "rgb", "alpha": "yes"}),
    }
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    for name, (pixels, profile) in tiffs.items():
        raster(folder / f"{name}.tif", pixels, "GTiff", **profile, **place)
    with rasterio.open(folder / "u16_tiles.tif", "r+") as file:
        file.build_overviews([2])
        file.descriptions = ("red", "green", "blue")
    with rasterio.open(folder / "u8_jpeg.tif", "r+") as file:
        file.write_mask(mask)
    raster(folder / "envi8.img", rgb, "ENVI")
    raster(folder / "envi16.img", deep, "ENVI", INTERLEAVE="BIL")
    raster(folder / "envi32.img", rgb / np.float32(255), "ENVI", INTERLEAVE="BIP")
    shutil.copy(folder / "u8_strips.tif", folder / "beside.tif")
    (folder / "beside.tif.aux.xml").write_text(
        "<PAMDataset>\n<SRS>EPSG:32633</SRS>\n<GeoTransform>1, 2, 0, 3, 0, -2</GeoTransform>\n"
        '<PAMRasterBand band="1">\n<NoDataValue>70</NoDataValue>\n<Description>red</Description>\n'
        "<ColorInterp>Red</ColorInterp>\n<Scale>2</Scale>\n</PAMRasterBand>\n</PAMDataset>\n",
        "utf-8",
    )


def raster(path: Path, pixels: np.ndarray, driver: str, **profile: Any) -> None:
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    if profile.pop("alpha", None):
        profile["ALPHA"] = "YES"
    with rasterio.open(path, "w", driver=driver, **shape, **profile) as file:
        file.write(pixels.transpose(2, 0, 1))
        if count == 4:
            file.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def labels(folder: Path, rng: np.random.Generator) -> None:
    _, mask = scene(rng)
    classes = Image.fromarray(mask // 255)
    Image.fromarray(mask).save(folder / "gray.png")
    Image.fromarray(mask).convert("1").save(folder / "bit.png")
    Image.fromarray(np.dstack([mask] * 3)).save(folder / "colour.png")
    palette = Image.fromarray(mask // 255, "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "palette.png")
    palette.save(folder / "palette.bmp")
    Image.fromarray(mask.astype(np.uint16)).save(folder / "gray16.png")
    classes.save(folder / "classes.bmp")
    Image.fromarray(mask).save(folder / "gray.jpg", quality=100)
    raster(folder / "u8.tif", mask[..., None], "GTiff", compress="lzw", tiled=True, blockxsize=16, blockysize=16)
    raster(folder / "u16.tif", mask[..., None].astype(np.uint16), "GTiff")
    raster(folder / "f32.tif", mask[..., None].astype(np.float32), "GTiff")
    raster(folder / "envi.img", mask[..., None], "ENVI")


def configs(folder: Path) -> None:
    for path in (*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "methods").glob("*.yaml")):
        shutil.copy(path, folder)
    shutil.copy(ROOT / "configs" / "compare" / "published.yaml", folder)
    comparison = {
        "out": "compared",
        "pairs": {"tiny": "pair.yaml"},
        "methods": {
            "source_only": None,
            "mine": {"base": "asda", "intra": {"contrast": "none"}, "baseline": "source_only"},
        },
        "protocol": {"data": {"size": 32}, "net": {"backbone": "mobilenetv3_small_050"}, "log": {"snapshots": 2}},
        "set": {"net.discriminator_width": 4},
        "seeds": [0],
        "reference": "mine",
        "threads": 1,
        "published": "published.yaml",
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(comparison, sort_keys=False), "utf-8")
    (folder / "pair.yaml").write_text("source: {root: source}\ntarget: {root: target, eval_share: 0.5}\n", "utf-8")


def run() -> None:
    """Every record that a run, its evaluation, a prediction and a comparison leave; the teacher was never trained."""
    config = load_config(words())
    teacher = open_stage(config, "teacher", "teacher")
    save_segmenter(teacher / "teacher.safetensors", build_segmenter(config), data_record(config))
    numbers = {"lr": 0.1, "loss": 1.5, "raw/seg_main": 0.7, "weighted/seg_main": 0.7, "stats/entropy_target": 0.9}
    times = {"data_time": 0.01, "step_time": 0.1, "images_per_s": 40.0, "peak_mib": 100.0}
    for name, row in (("metrics", numbers), ("timing", times)):
        lines = (json.dumps({"step": step, **row}) + "\n" for step in (1, 2))
        (teacher / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (teacher / "warnings.txt").write_text("term contrast was exactly 0 on each of 2 steps\n", "utf-8")
    split_entropy(config)
    evaluate(config)
    scores = {"precision": 0.5, "recall": 0.25, "specificity": 1.0, "jaccard": 0.2, "accuracy": 0.9}
    scenes = {"teacher": {"12/255": {"LC08": scores}, "1/2": {"LC08": scores}}}
    Path("run/eval/scenes.json").write_text(json.dumps(scenes), "utf-8")
    shutil.copy("source/images/s_0.png", "run/eval/masks.png")
    pictures = {"masks": [{"file": "masks.png", "title": "Masks", "caption": "as they are"}]}
    Path("run/eval/pictures.json").write_text(json.dumps(pictures), "utf-8")
    open_folder(Path("masks"), Path("run/teacher/teacher.safetensors"), Options())
    rows = {"a": Row(Summary(0.5, 1.0, 0.25, 3.0), 9, 1), "b/c": Row(Summary(*[float("nan")] * 4), 8, 2)}
    write_summary(Path("masks/summary.csv"), rows)
    result = {
        "choice": {"selection": "last", "best_on_labels": False, "snapshots": None},
        **{"images": ["s_0", "s_1"], "scenes": [], "matrices": [[[9, 1], [2, 8]], [[7, 3], [0, 10]]], "best": []},
        **{"steps": 2, "seconds": 0.2, "peak_mib": 100.0, "warnings": [], "selected": "last", "chosen": "last"},
    }
    Path(RESULT).write_text(json.dumps(result), "utf-8")


def weights(folder: Path) -> None:
    for name in ("teacher.safetensors", "config.yaml"):
        shutil.copy(Path("run/teacher", name), folder)
    networks, optimizers = parts()
    for step in (1, 2):
        save_checkpoint(folder, step, networks, optimizers, ABOUT)
    torch.manual_seed(0)
    plain = Segmenter("mobilenetv3_small_050")
    save_segmenter(folder / "plain.safetensors", plain)  # what images it is for stands in the config.yaml beside it
    torch.save(plain.state_dict(), folder / "bare.pth")
    state = deeplab_state()
    torch.save(state, folder / "advent.pth")
    asda = {f"module.{key}": value for key, value in state.items()}
    torch.save({"featuremodel": asda, "epoch": 3}, folder / "asda.pth")
    onnx_file(folder / "tiny.onnx")


def parts() -> tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]:
    """Networks and optimizers of a few numbers, after a step; they are what the checkpoint of the seeds is for."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    optimizers: dict[str, torch.optim.Optimizer] = {
        "segmenter": torch.optim.SGD(network[0].parameters(), 0.1, momentum=0.9),
        "discriminators": torch.optim.Adam(network[1].parameters(), 0.1),
    }
    network(torch.rand(2, 3, 5, 5)).square().sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    return {"trainee": network}, optimizers


def deeplab_state() -> Mapping[str, torch.Tensor]:
    """The state of a checkpoint of ADVENT, each tensor one number expanded to its shape, so that the file is small."""
    with torch.device("meta"):
        own = Segmenter("resnet50", decoder="deeplab_v2", output_stride=8, layout="deeplab_v2").state_dict()
    names = {"head_aux.branches": "layer5.conv2d_list", "head_main.branches": "layer6.conv2d_list", "backbone.": ""}
    state = {}
    for key, value in own.items():
        for ours, theirs in names.items():
            if key.startswith(ours):
                state[key.replace(ours, theirs, 1)] = torch.zeros((), dtype=value.dtype).expand(value.shape)
    return state


def onnx_file(path: Path) -> None:
    """What export.py writes, with the smallest graph that has its inputs and outputs."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["grey"], keepdims=1),
        helper.make_node("Shape", ["grey"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["head"]),
        helper.make_node("Concat", ["head", "size"], ["wanted"], axis=0),
        helper.make_node("Resize", ["grey", "", "", "wanted"], ["resized"], mode="linear"),
        helper.make_node("Squeeze", ["resized", "axes"], ["cloud"]),
    ]
    numbers = {"axes": [1], "zero": [0], "two": [2]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, "h", "w"]),
            helper.make_tensor_value_info("size", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("cloud", TensorProto.FLOAT, ["b", "H", "W"])],
        [helper.make_tensor(name, TensorProto.INT64, [1], values) for name, values in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    record = {
        **{"bands": ["red", "green", "blue"], "size": 32, "geometry": "letterbox", "tile": 64},
        "target": {"bands": None, "scaling": None, "nodata": "file"},
    }
    helper.set_model_props(model, {"data": json.dumps(record), "architecture": "{}"})
    onnx.save_model(model, path)
