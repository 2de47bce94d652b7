"""export.py: the ONNX file gives the same mask as the network, and the card says what the files are for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from export import Request, export, largest_difference, read_request
from nets.segmenter import Segmenter
from nets.weights import load_weights, save_segmenter
from predict import predict
from predict import read_request as read_predict_request
from scenes import CloudNetwork, load_network, predict_array
from utils.errors import ConfigError, DataError, WeightsError

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = """# python 3.11, torch 2.14, commit 0123abc
# command: python train_intra.py --config configs/mine.yaml
generated: null
source: {root: data/hrc_whu, reader: hrc_whu}
target: {root: data/mine, reader: folder}
"""
DATA = {
    "bands": ["red", "nir"],
    "size": 64,
    "geometry": "crop",
    "tile": None,
    "target": {
        "bands": ["red", "green", "nir"],
        "scaling": [[100.0, 200.0], [4000.0, 5000.0], 2.0, "uint16", None],
        "scale": None,
        "offset": None,
        "nodata": 0,
    },
}


def write_run(run: Path) -> Path:
    """A random network whose probabilities cover [0, 1]."""
    torch.manual_seed(0)
    segmenter = Segmenter("resnet10t", in_channels=2, init="kaiming")
    path = run / "intra" / "student.safetensors"
    path.parent.mkdir(parents=True)
    save_segmenter(path, segmenter, {"data": json.dumps(DATA)})
    (run / "intra" / "config.yaml").write_text(CONFIG)
    (run / "eval").mkdir()
    (run / "eval" / "metrics.md").write_text("| model | mIoU |\n| --- | --: |\n| student | 71.00 |\n")
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run and what export.py made of it; tracing the graph takes seconds."""
    folder = tmp_path_factory.mktemp("export")
    run = write_run(folder / "run")
    export(read_request(["--run", str(run), "--out", str(folder / "out")]))
    return run, folder / "out"


def test_the_folder_holds_two_files_and_a_card(exported: tuple[Path, Path]) -> None:
    run, out = exported
    assert {path.name for path in out.iterdir()} == {"README.md", "student.safetensors", "student.onnx"}
    ours, theirs = (load_weights(path / "student.safetensors") for path in (run / "intra", out))
    assert ours[1]["architecture"] == theirs[1]["architecture"] and json.loads(theirs[1]["data"]) == DATA
    assert all(torch.equal(tensor, theirs[0][name]) for name, tensor in ours[0].items())
    onnx.checker.check_model(str(out / "student.onnx"), full_check=True)


@pytest.mark.parametrize("shape", [(150, 117), (64, 64), (33, 40)])
def test_onnx_and_torch_agree_but_for_pixels_at_the_threshold(
    exported: tuple[Path, Path], shape: tuple[int, int]
) -> None:
    run, out = exported
    rng = np.random.default_rng(0)
    knots = rng.random((6, 6, 2)).astype(np.float32)
    image = (4500 * cv2.resize(knots, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)).astype(np.uint16)
    networks = [load_network(path, "cpu") for path in (run / "intra" / "student.safetensors", out / "student.onnx")]
    assert networks[0].images == networks[1].images
    by_torch, by_onnx = (predict_array(network, image) for network in networks)
    assert np.ptp(by_torch.probability) > 0.01
    near = np.abs(by_torch.probability - 0.5) <= 1e-4
    assert ((by_torch.mask == by_onnx.mask) | near).all()
    np.testing.assert_allclose(by_onnx.probability, by_torch.probability, rtol=0, atol=1e-4)


def test_predict_runs_the_onnx_file(exported: tuple[Path, Path], tmp_path: Path) -> None:
    import rasterio
    from rasterio.transform import from_origin

    run, out = exported
    pixels = np.random.default_rng(0).integers(1, 5000, (3, 90, 80), np.uint16)
    shape = {"height": 90, "width": 80, "count": 3, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", transform=from_origin(0, 0, 10, 10), **shape) as file:
        file.write(pixels)
    masks = []
    for weights in (run / "intra" / "student.safetensors", out / "student.onnx"):
        words = ["--weights", weights, "--out", tmp_path / weights.suffix[1:], tmp_path / "a.tif"]
        predict(read_predict_request([str(word) for word in words]))
        masks.append(rasterio.open(tmp_path / weights.suffix[1:] / "a_mask.tif").read(1))
    assert np.mean(masks[0] != masks[1]) < 1e-3
    code = "import sys, predict; predict.predict(predict.read_request(sys.argv[1:])); print('torch' in sys.modules)"
    words = ["--weights", out / "student.onnx", "--out", tmp_path / "alone", tmp_path / "a.tif"]
    command = [sys.executable, "-c", code, *map(str, words)]
    child = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert child.returncode == 0 and child.stdout.splitlines()[-1] == "False", child.stderr


@pytest.mark.parametrize(("threads", "workers"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)])
def test_threads_of_the_onnx_file_are_read_as_openmp_does(
    exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, threads: str, workers: int | None
) -> None:
    """The first number of a list is that of the outermost level; what is no number is as if nothing were set."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert load_network(exported[1] / "student.onnx").workers == (workers or os.cpu_count())


def test_the_card_says_what_the_files_are_for(exported: tuple[Path, Path]) -> None:
    card = (exported[1] / "README.md").read_text()
    for part in (
        "resnet10t",
        "| bands, in this order | red, nir |",
        "| bands of the files | red, green, nir |",
        "red from 100 to 4000; nir from 200 to 5000; tone curve of gamma 2",
        "windows of 64 pixels at native resolution",
        "| source | data/hrc_whu | hrc_whu | with labels | academic use only |",
        "| target | data/mine | folder | without labels | not known to this project |",
        "command: python train_intra.py --config configs/mine.yaml",
        "| student | 71.00 |",
    ):
        assert part in card


def test_the_graph_tells_nothing_of_the_machine(exported: tuple[Path, Path]) -> None:
    assert str(REPOSITORY).encode() not in (exported[1] / "student.onnx").read_bytes()


def test_a_network_that_differs_is_found(exported: tuple[Path, Path]) -> None:
    network = load_network(exported[1] / "student.onnx")
    other = CloudNetwork(network.path, network.images, lambda windows, size: network.cloud(windows, size) + 0.01)
    assert largest_difference(network, other) == pytest.approx(0.01, rel=1e-3)


def test_what_cannot_be_exported_is_told(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"file: cannot be written \(File exists\)"):
        export(Request(run / "intra" / "student.safetensors", tmp_path / "file"))
    (run / "intra" / "config.yaml").unlink()
    with pytest.raises(DataError, match=r"config\.yaml: cannot be read .*export from the run that was trained"):
        export(Request(run / "intra" / "student.safetensors", tmp_path / "out"))


def test_an_onnx_file_that_is_none_of_ours_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match="cannot be read as an ONNX model"):
        load_network(tmp_path / "a.onnx")
    identity = onnx.helper.make_node("Identity", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([identity], "other", ends[:1], ends[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "b.onnx")
    with pytest.raises(WeightsError, match="has the inputs x, expected image, size"):
        load_network(tmp_path / "b.onnx")


@pytest.mark.parametrize("text", ["[", "source: 1", "a: &a [*a]"])
def test_a_damaged_configuration_is_named(exported: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "intra" / "config.yaml").write_text(text)
    with pytest.raises((ConfigError, DataError), match=r"config\.yaml: (is not|is too large)"):
        export(Request(run / "intra" / "student.safetensors", tmp_path / "out"))


def changed(exported: tuple[Path, Path], path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(exported[1] / "student.onnx")
    change(model)
    onnx.save_model(model, path)
    return path


def test_a_damaged_onnx_file_is_named(exported: tuple[Path, Path], tmp_path: Path) -> None:
    content = (exported[1] / "student.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(content.replace(b"letterbox", b"\xff" * 9).replace(b"crop", b"\xff" * 4))
    with pytest.raises(WeightsError, match=r"a\.onnx: cannot be read as an ONNX model"):
        load_network(tmp_path / "a.onnx")

    def flat(model: onnx.ModelProto) -> None:
        del model.graph.input[0].type.tensor_type.shape.dim[1:]

    with pytest.raises(WeightsError, match=r"b\.onnx: (has the inputs|cannot be read)"):
        load_network(changed(exported, tmp_path / "b.onnx", flat))


def test_an_onnx_file_that_gives_something_else_is_named(exported: tuple[Path, Path], tmp_path: Path) -> None:
    def other_shape(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.output[0] == "cloud")
        node.output[0] = "one"
        model.graph.node.append(onnx.helper.make_node("Concat", ["one", "one"], ["cloud"], axis=0))

    def other_axis(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.output[0] == "cloud")
        node.input[1] = "first"  # squeezes the batch, of more than one

    windows = np.zeros((2, 64, 64, 2), np.uint8)
    for change, message in ((other_shape, r"gave \(4, 64, 64\), expected"), (other_axis, "cannot be run")):
        network = load_network(changed(exported, tmp_path / "a.onnx", change))
        with pytest.raises(WeightsError, match=rf"a\.onnx: {message}"):
            network.cloud(windows, (64, 64))
