"""All stages on a GPU that is not there: operations do not mix devices, and a step reads one number of the GPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import engine.target_view
import eval as evaluation
import nets.weights
import report.evaluation
import split_entropy
import train_intra
import train_teacher
from config.load import load_config
from config.schema import Config
from engine import loop
from engine.run import uses_split
from methods.student import StudentStage
from nets.segmenter import HEADS
from tests.pretend_gpu import DEVICE, DeviceReadError, MixedDevicesError, PretendGpu
from tests.test_methods import METHODS, arguments_for

Arguments = Callable[..., list[str]]
STEPS, IMAGES = 2, 6  # steps of a stage: from the second on, optimisers have a state


@pytest.fixture(scope="module")
def mode() -> PretendGpu:
    return PretendGpu()


@pytest.fixture
def gpu(mode: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    """Within the test, "meta" is a GPU. A stage may read of it while it is built, for the check of a step, and for what
    it writes."""
    for place, name in (
        *((StudentStage, "__init__"), (loop, "_not_finite"), (loop, "_row"), (loop, "prediction_grid")),
        *((loop.Ledger, "silent"), (nets.weights, "save_weights")),
        *((split_entropy, "mean_over_scales"), (report.evaluation, "probabilities")),
        (engine.target_view, "cloud_of"),
    ):
        monkeypatch.setattr(place, name, mode.reader(getattr(place, name)))
    monkeypatch.setattr(loop, "save_checkpoint", lambda *_: None)  # there are no numbers to save
    mode.reads.clear()
    with mode:
        yield mode


@pytest.fixture
def configured(tmp_path: Path, tiny_arguments: Arguments) -> Callable[[str], Config]:
    """The configuration of a method on this GPU, with timm's smallest network."""
    values = {"device": DEVICE, "data.workers": 0, "net.backbone": "test_resnet"}
    values |= {"teacher.steps": STEPS, "intra.steps": STEPS}
    extra = [f"--{key}={value}" for key, value in values.items()]
    return lambda method: load_config(arguments_for(method, tmp_path, tiny_arguments, *extra))


@pytest.mark.parametrize("method", METHODS)
def test_all_stages_of_a_method(method: str, configured: Callable[[str], Config], gpu: PretendGpu) -> None:
    config = configured(method)
    train_teacher.train_teacher(config)
    split_entropy.split_entropy(config)
    train_intra.train_intra(config)
    # `fit` asks once a step whether all numbers are finite, and a prediction is one copy of each head.
    assert gpu.reads["_not_finite"] == STEPS * (2 if config.intra.enabled else 1)
    assert gpu.reads["mean_over_scales"] == len(HEADS) * IMAGES * len(config.split.scales) * uses_split(config)


def test_the_evaluation(tmp_path: Path, configured: Callable[[str], Config], gpu: PretendGpu) -> None:
    config = configured("source_only")
    train_teacher.train_teacher(config)
    models, domain = evaluation.load_models(config), evaluation.evaluation_domains(config)[0]
    report.evaluation.evaluate_image(domain, models, config, tmp_path, ["entropy"], domain.images[0])
    assert gpu.reads["probabilities"] == len(HEADS)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda there, here: there + here, MixedDevicesError),
        (lambda there, here: torch.nn.functional.conv2d(there[None], here[None]), MixedDevicesError),
        (lambda there, here: torch.stack([there.sum(), here.sum()]), MixedDevicesError),
        (lambda there, here: here[there.long()], MixedDevicesError),
        (lambda there, here: there.sum().item(), DeviceReadError),
        (lambda there, here: bool((there > 0).all()), DeviceReadError),
        (lambda there, here: there.cpu(), DeviceReadError),
        (lambda there, here: here.copy_(there), DeviceReadError),
        (lambda there, here: there[there > 0], NotImplementedError),  # its size is a number of the GPU
        (lambda there, here: there.nonzero(), NotImplementedError),
    ],
)
def test_mistakes_are_found(mistake: Callable[..., object], error: type[Exception], mode: PretendGpu) -> None:
    here = torch.ones(2, 3, 4)
    with mode, pytest.raises(error):
        mistake(here.to(DEVICE), here)


def test_what_a_gpu_allows_is_allowed(mode: PretendGpu) -> None:
    here, places = torch.ones(2, 3, 4), torch.tensor([0, 1])
    with mode:
        there = here.to(DEVICE)
        assert (there * here[0, 0, 0] + 1)[places].is_meta
        assert mode.reader(torch.Tensor.cpu)(there).tolist() == torch.zeros(2, 3, 4).tolist()
        assert mode.reader(float)(there.sum()) == 1
