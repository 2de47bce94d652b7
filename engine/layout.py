"""What lies in a run's directory, by name; without torch, for those who only mask scenes."""

from pathlib import Path
from typing import NamedTuple

from utils.errors import DataError

WARNINGS = "warnings.txt"  # of a training stage
RANKING = "entropy.csv"  # of stage 2
SNAPSHOTS = "snapshots"  # of a training stage, a folder


class Model(NamedTuple):
    """A network that a run may hold: its `name` in tables and of its weights, the folder of its `stage`."""

    name: str
    stage: str

    def weights(self, run: str | Path) -> Path:
        """Its weights file below the directory of a run."""
        return Path(run) / self.stage / f"{self.name}.safetensors"


MODELS = {  # in the order of their making
    name: Model(name, "intra" if name == "student" else name)
    for name in ("source_only", "teacher", "student", "oracle")
}
PREFERRED = ("student", "teacher", "oracle", "source_only")  # the best that a run holds comes first


def models_in(run: str | Path) -> list[Model]:
    """The models that a run has finished, in the order of their making."""
    return [model for model in MODELS.values() if model.weights(run).is_file()]


def best_model(run: str | Path) -> Model:
    """The model of a run that masks are made with: the student, else teacher, oracle or source-only.

    Raises:
        DataError: it has none.
    """
    there = {model.name: model for model in models_in(run)}
    if found := [there[name] for name in PREFERRED if name in there]:
        return found[0]
    expected = ", ".join(f"{MODELS[name].stage}/{name}.safetensors" for name in PREFERRED)
    raise DataError(
        f"{run}: holds no weights, expected one of {expected}; give the folder of a trained run (an oracle's folds are "
        "fold*/), or a file as --weights"
    )


def read_warnings(stage: Path) -> list[str]:
    """What a training stage warned of, a line each."""
    path = stage / WARNINGS
    return path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
