"""Figures show what they are given."""

from pathlib import Path

import cv2
import numpy as np

from report.embedding import Panel
from report.plots import EMBEDDED, embedding_panels, entropy_histograms, picture_grid, training_curves


def test_training_curves_draw_every_row(tmp_path: Path) -> None:
    rows = [{"step": s, "lr": 0.1, "loss": 1.0, "raw/seg": 1 / s, "stats/entropy": 0.1 * s} for s in (1, 2, 3)]
    training_curves(tmp_path / "one.png", {"teacher": rows})
    training_curves(tmp_path / "other.png", {"teacher": [*rows[:2], rows[2] | {"raw/seg": 9.0}]})
    one, other = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "other"))
    changed = (one != other).any(2)
    assert changed.any() and not changed[:, one.shape[1] // 3 + 20 :].any()  # the losses' panel alone


def test_histograms_differ_where_the_entropies_do(tmp_path: Path) -> None:
    low, high = np.full(100, 0.5), np.tile([0.1, 0.9], 50)  # of one mean, so the legends are the same
    entropy_histograms(tmp_path / "a.png", {"teacher": {"easy": low, "hard": high}})
    entropy_histograms(tmp_path / "b.png", {"teacher": {"easy": low, "hard": low}})
    assert not np.array_equal(cv2.imread(str(tmp_path / "a.png")), cv2.imread(str(tmp_path / "b.png")))


def test_each_kind_of_point_has_its_colour(tmp_path: Path) -> None:
    """Four far points, one of each kind, in a known order from left to right."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    source, cloud = np.array([True, True, False, False]), np.array([False, True, False, True])
    panel = Panel(np.repeat(points, 50, 0), 0.5, 0.25)
    embedding_panels(tmp_path / "t.png", {"student": panel}, np.repeat(source, 50), np.repeat(cloud, 50))
    picture = cv2.imread(str(tmp_path / "t.png"))[..., ::-1].astype(int)
    picture = picture[: picture.shape[0] // 2 + 60]  # above the legend
    places = []
    for _, name, colour in EMBEDDED:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        found = np.argwhere((np.abs(picture - rgb) < 3).all(2))
        assert len(found), name
        places.append(found[:, 1].mean())
    assert places == sorted(places)


def test_picture_grid_shows_every_picture(tmp_path: Path) -> None:
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]]
    columns = {
        title: [np.full((8, 8, 3), colour, np.uint8) for colour in column]
        for title, column in zip(("image", "student"), colours, strict=True)
    }
    picture_grid(tmp_path / "o.png", ["one", "two"], columns, "target: held-back images")
    drawn = cv2.imread(str(tmp_path / "o.png"))[..., ::-1]
    centres = {}
    for column in colours:
        for colour in column:
            rows, across = np.nonzero((drawn == colour).all(-1))
            assert len(rows) > 50 * 50
            centres[colour] = rows.mean(), across.mean()
    assert centres[200, 0, 0][0] < centres[0, 200, 0][0]  # rows below each other
    assert centres[200, 0, 0][1] < centres[0, 0, 200][1]  # columns side by side
