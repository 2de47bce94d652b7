"""A figure added to the report shows the scores of an evaluation."""

import re
from pathlib import Path

import cv2
import numpy as np

from config.schema import Config
from report.evaluation import Domain, DomainScores, Evaluation, ModelScores

EXTENDING = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def test_the_worked_example_of_a_figure(tmp_path: Path) -> None:
    """docs/extending.md draws the predicted cloud of each image, a line a model in matplotlib's order of colours."""
    block = re.search(r"```python\n(# report.*?)```", EXTENDING.read_text("utf-8"), re.S)
    assert block is not None
    names: dict[str, object] = {}
    exec(compile(block[1], str(EXTENDING), "exec"), names)
    cloud = {"teacher": [0.2, 0.0, 0.1], "student": [0.9, 1.0, 0.8]}
    models = {name: ModelScores([None] * 3, 0.0, [0.5] * 3, [1.0] * 3, shares) for name, shares in cloud.items()}
    domain = Domain("target", None, "", None)  # type: ignore[arg-type] - its images are not read
    scores = DomainScores(domain, models, {}, np.zeros((2, 256)))
    (picture,) = names["draw_cover"](Evaluation(Config(), tmp_path, {}, [domain], [scores]))  # type: ignore[operator]

    drawn = cv2.imread(str(tmp_path / picture.file)).astype(int)
    rows = {
        name: np.nonzero((np.abs(drawn - blue_green_red) < 3).all(2))[0]
        for name, blue_green_red in {"teacher": (180, 119, 31), "student": (14, 127, 255)}.items()
    }
    assert rows["student"].min() < rows["teacher"].min()  # more cloud is drawn higher; the legend stands between
    assert rows["student"].max() < rows["teacher"].max()
