"""A trained network as prediction sees it: 8-bit windows in, the probability of cloud out, by torch or onnxruntime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.data_record import Images, images_of
from engine.windows import PredictBatch, usual_window
from utils.errors import WeightsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CloudNetwork:
    """A network that finds clouds.

    Attributes:
        path: its file.
        images: what it was trained for.
        cloud: windows (B, h, w, C) uint8, bands in the order of `images.decoder.bands`, and a size (H, W), to the
            probability of cloud (B, H, W) float32 on the grid of that size.
        workers: threads that may call `cloud` at the same time. On a CPU they share the cores, one core each: on a busy
            machine several cores on one window would wait for one another at every layer.
        settle: to be called once in each of them.
        device: PyTorch's, where it is in use.
        window: side in pixels of the windows in which it sees a scene; None: as it was trained.
    """

    path: Path
    images: Images
    cloud: PredictBatch
    workers: int = 1
    settle: Callable[[], object] = lambda: None
    device: torch.device | None = None
    window: int | None = None

    @cached_property
    def name(self) -> str:
        """Its file's name and, where the file is there, what tells its content from any other."""
        digest = f", sha256 {hashlib.sha256(self.path.read_bytes()).hexdigest()}" if self.path.is_file() else ""
        return self.path.name + digest


def load_network(path: str | Path, device: str | None = None) -> CloudNetwork:
    """Load a weights file of this project, or what export.py made of it, for prediction.

    Args:
        path: .safetensors, run by torch; or .onnx, run by onnxruntime on the CPU, without torch.
        device: torch's name of a device; None takes a GPU where there is one.

    Raises:
        WeightsError: the file cannot be read, is no network of this project, or does not say what images it is for.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    return _load_onnx(path) if path.suffix == ".onnx" else _load_torch(path, device)


def _load_torch(path: Path, device: str | None) -> CloudNetwork:
    import torch  # seconds, which nobody pays who runs an ONNX file

    from nets.segmenter import resize_logits
    from nets.weights import load_segmenter, load_weights

    segmenter = load_segmenter(path)
    images = _images_of(path, load_weights(path)[1], segmenter.in_channels, segmenter.classes)
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        network = segmenter.requires_grad_(False).to(place)
    except (RuntimeError, AssertionError) as error:
        raise WeightsError(f"{path}: cannot be put on the device {device!r} ({error}); give --device cpu") from None

    @torch.inference_mode()
    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        # Seen as (B, C, h, w), an array (B, h, w, C) is what torch calls channels last.
        image = torch.from_numpy(windows).to(place).permute(0, 3, 1, 2).float().div_(255)
        scores = network.main_scores(image)
        # Two classes: softmax is the sigmoid of the difference, and resizing is linear, so one map is resized.
        score = resize_logits(network.on_image(scores[:, 1:] - scores[:, :1], image), size)
        return score[:, 0].sigmoid_().cpu().numpy()

    window = usual_window(images, segmenter.architecture)
    if place.type != "cpu":
        return CloudNetwork(path, images, cloud, device=place, window=window)
    one_thread = partial(torch.set_num_threads, 1)
    return CloudNetwork(path, images, cloud, torch.get_num_threads(), one_thread, place, window)


def _load_onnx(path: Path) -> CloudNetwork:
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(f"{path}: needs onnxruntime, which is not installed; pip install onnxruntime") from None
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1
    try:
        session: Any = onnxruntime.InferenceSession(str(path), one_thread, providers=["CPUExecutionProvider"])
        shapes = {value.name: value.shape for value in session.get_inputs()}
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own, one for each kind of damage
        raise WeightsError(f"{path}: cannot be read as an ONNX model ({error})") from None
    if [*shapes] != ["image", "size"] or len(shapes["image"]) != 4:
        raise WeightsError(f"{path}: has the inputs {', '.join(shapes)}, expected image, size; make it with export.py")
    images = _images_of(path, metadata, shapes["image"][1], 2)

    def cloud(windows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        image = windows.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        try:
            found: np.ndarray = session.run(["cloud"], {"image": image, "size": np.array(size, np.int64)})[0]
        except Exception as error:
            raise WeightsError(f"{path}: cannot be run by onnxruntime ({error})") from None
        if found.shape != (len(windows), *size):
            raise WeightsError(f"{path}: gave {found.shape}, expected {(len(windows), *size)}; make it with export.py")
        return found

    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the first is of the outermost level
    workers = (int(threads) if threads.isdecimal() else 0) or os.cpu_count() or 1  # as OpenMP takes what is no number
    return CloudNetwork(path, images, cloud, workers, window=usual_window(images, metadata.get("architecture", "{}")))


def _images_of(path: Path, metadata: Mapping[str, str], bands: int, classes: int) -> Images:
    """What the file says of its images, if its network is one for them."""
    images = images_of(path, metadata)
    if bands != len(images.decoder.bands):
        names = ", ".join(images.decoder.bands)
        raise WeightsError(f"{path}: takes {bands} band(s), and its record names {names}; export it again")
    if classes != 2:
        raise WeightsError(f"{path}: has {classes} classes, expected 2: clear and cloud")
    return images
