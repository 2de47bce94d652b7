"""Records that an earlier command left in a run, damaged before the next command reads them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from comparison.jobs import Job
from comparison.results import gather
from comparison.stages import find_reusable, stages_of, steps_done
from comparison.statistics import table
from config.comparison import CompareConfig
from config.schema import Config
from datasets.cache import Cache
from datasets.decode import RGB
from datasets.decoder import Decoder
from datasets.files import Item
from datasets.generated import make_pair
from datasets.images import ImageSet
from engine.domains import decoder_of
from engine.layout import read_warnings
from engine.log import Logger
from engine.pseudo_labels import STORED_CLASSES
from engine.run import open_stage
from methods.student import easy_and_hard
from predict import read_request
from report.evaluation import Evaluation
from report.figures import draw_entropy
from report.page import write_report
from report.protocol import check_view
from report.records import remember_pictures
from report.summary import summary
from scenes import Images, load_network
from scenes.export import model_card
from scenes.folder import open_folder, read_summary
from tests.fuzz.mutate import mutated
from tests.fuzz.runner import Case, Try
from tests.fuzz.shared import settings_of, small

Read = Callable[[Config, Path, Path], object]  # the run's configuration, the folder of the seeds, that of the case


def record(rng: Random, base: Path, box: Path) -> Case:
    """One of `READS`, damaged, and up to two of the commands that read it."""
    name = rng.choice(sorted(READS))
    target, source = box / name, base / name
    if name == "cache":
        source = next(path for path in sorted(source.rglob("*")) if path.is_file())
        target = box / source.relative_to(base)
    top = name.split("/")[0]
    for folder in {"run": ("run/eval", "run/split"), "masks": (), "result.json": ()}.get(top, (top,)):
        shutil.copytree(base / folder, box / folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    other = (base / rng.choice([name for name in sorted(READS) if name != "cache"])).read_bytes()
    target.write_bytes(mutated(rng, target.name, content, [content, other]))
    settings = settings_of(str(box / "run"))
    chosen = rng.sample(READS[name], min(2, len(READS[name])))
    return [Try(partial(read, settings, base, box), (target.name, str(target.parent))) for read in chosen]


def scaling(settings: Config, base: Path, box: Path) -> None:
    decoder_of(settings, "target")


def report(settings: Config, base: Path, box: Path) -> None:
    write_report(box / "run/eval", settings, {}, {})


def remembered(settings: Config, base: Path, box: Path) -> None:
    remember_pictures(box / "run/eval", "masks", [])


def summarised(settings: Config, base: Path, box: Path) -> None:
    summary([box / "run", base / "run"])


def continued(settings: Config, base: Path, box: Path) -> None:
    open_stage(settings, "teacher", "teacher")


def viewed(settings: Config, base: Path, box: Path) -> None:
    check_view(settings, box / "run/teacher")


def reused(settings: Config, base: Path, box: Path) -> None:
    shutil.copy(base / "run/teacher/teacher.safetensors", box / "run/teacher")
    find_reusable(replace(settings, out=str(box / "x")), stages_of(settings)[0])


def described(settings: Config, base: Path, box: Path) -> None:
    architecture = json.dumps({"backbone": "x", "output_stride": None})
    model_card(box / "run/teacher/teacher.safetensors", Images(Decoder(RGB), 32, "letterbox", 64), architecture)


def loaded(settings: Config, base: Path, box: Path) -> None:
    path = shutil.copy(base / "weights/plain.safetensors", box / "run/teacher")
    load_network(path, "cpu")


def drawn(settings: Config, base: Path, box: Path) -> None:
    settings = replace(settings, target=replace(settings.target, root=str(base / "target")))
    draw_entropy(Evaluation(settings, box / "run/eval", {"teacher": small()}, [], []))


def split(settings: Config, base: Path, box: Path) -> None:
    target = replace(settings.target, root=str(base / "target"), scaling=None)
    easy_and_hard(replace(settings, target=target), box / "run/split", stored=False)


def stored(settings: Config, base: Path, box: Path) -> None:
    item = Item("s_0", (base / "target/images/s_0.png",))
    ImageSet((item,), Decoder(RGB)).with_labels(box / "run/split/pseudo_labels", STORED_CLASSES).read(item)


def resumed(settings: Config, base: Path, box: Path) -> None:
    with Logger(box / "run/teacher", 1):
        pass


def progress(settings: Config, base: Path, box: Path) -> None:
    steps_done(box / "run")


def warned(settings: Config, base: Path, box: Path) -> None:
    read_warnings(box / "run/teacher")


def masks(settings: Config, base: Path, box: Path) -> None:
    request = read_request(["scene.tif", "--run", str(base / "run"), "--out", str(box / "masks")])
    open_folder(request.out, request.weights, request.options)


def predicted(settings: Config, base: Path, box: Path) -> None:
    read_summary(box / "masks/summary.csv")


def gathered(settings: Config, base: Path, box: Path) -> None:
    choice = {"selection": "last", "best_on_labels": False, "snapshots": None}
    job = Job("tiny", "asda", Config(out=str(box)), choice, None)
    table(gather("tiny", [job], replace(CompareConfig(), methods={"asda": None}, seeds=[0])))


def generated(settings: Config, base: Path, box: Path) -> None:
    make_pair(box / "generated", train=1, evaluation=1, size=64, progress=False)


def cached(settings: Config, base: Path, box: Path) -> None:
    item = Item("s_0", (base / "source/images/s_0.png",), base / "source/labels/s_0.png")
    cache, decoder = Cache(box / "cache"), Decoder(RGB)
    ImageSet((item,), decoder, cache, {item.name: cache.key(item, decoder)}).read(item)


READS: dict[str, tuple[Read, ...]] = {
    "run/scaling_target.json": (scaling,),
    "run/teacher/config.yaml": (continued, viewed, reused, described, loaded, report),
    "run/teacher/metrics.jsonl": (resumed, report),
    "run/teacher/timing.jsonl": (resumed, progress),
    "run/teacher/warnings.txt": (warned, report),
    "run/split/config.yaml": (drawn, report),
    "run/split/entropy.csv": (drawn, report),
    "run/split/easy.txt": (split,),
    "run/split/pseudo_labels/s_0.png": (stored,),
    "run/eval/pictures.json": (remembered, report),
    "run/eval/commands.json": (remembered, report),
    "run/eval/metrics.json": (summarised, report),
    "run/eval/scenes.json": (report,),
    "run/eval/masks.png": (report,),
    "masks/predict.json": (masks,),
    "masks/summary.csv": (predicted,),
    "result.json": (gathered,),
    "generated/generated.json": (generated,),
    "cache": (cached,),
}
