"""What the tables of a comparison say, and their files."""

import csv
import json
from pathlib import Path

from comparison.published import read_published
from comparison.statistics import table
from comparison.tables import csv_table, latex, markdown, write
from tests.comparison.examples import compared, miou, noisy, result

PUBLISHED = Path(__file__).parents[2] / "configs/compare/published.yaml"


def test_failed_method_has_an_empty_row() -> None:
    comparison = compared(result("asda"), methods=["clan", "asda"])
    assert [row["method"] for row in table(comparison)] == ["clan", "asda"]
    text = markdown(comparison)
    cells = next(line for line in text.splitlines() if line.startswith("| clan")).strip("| ").split(" | ")
    assert set(cells[1:]) == {"-"} and "WARNING: clan: has no result" in text


def test_notes_name_their_runs() -> None:
    rule = "lowest mean entropy of 4 checkpoints"
    runs = [result("asda", seed, warnings=["contrast was 0 on every step"], selected=rule) for seed in (0, 1)]
    text = markdown(compared(*runs, result("advent")))
    assert "\nWARNING: asda, seeds 0, 1: contrast was 0 on every step\n" in text
    assert f"Checkpoint: {rule} (all others)." in text and "Checkpoint: last (advent)." in text
    assert "Protocol: held-back images." in text
    assert f"Checkpoint: {rule} (all runs)." in markdown(compared(*runs))


def test_latex_escapes_names_and_makes_the_best_bold() -> None:
    runs = result("source_only"), result("asda", wrong=(20, 20)), result("oracle", wrong=(5, 5))
    text = latex(compared(*runs))
    assert r"source\_only &" in text and "source_only &" not in text and r"95 \% interval" in text
    assert text.count(r"\textbf") == 1 and rf"asda & \textbf{{{miou(20):.1f}}}" in text
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") for line in lines}) == 1 and len(lines) == 4


def test_published_rows_stand_under_the_table() -> None:
    published = read_published(PUBLISHED, "ms_to_whu")
    text = markdown(compared(result("asda", wrong=(20, 20)), published=published))
    row = f"| asda | {miou(20):.1f} | 63.87 | 73.98 | 53.76 | README of gasking/ASDA, figure 3 |"
    assert "### Published" in text and row in text and "| clan | - | 27.77 | - | - |" in text


def test_files(tmp_path: Path) -> None:
    published = read_published(PUBLISHED, "ms_to_whu")
    first = compared(*(noisy(name, s) for name in ("source_only", "asda", "oracle") for s in (0, 1)), methods=["clan"])
    second = compared(result("asda", peak_mib=512.0), published=published)._replace(pair="c_to_d")
    write(tmp_path / "out", [first, second])
    names = {"table.md", "table.csv", "table.tex", "results.json", "plot_a_to_b.png", "plot_c_to_d.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert [(row["pair"], row["method"]) for row in rows] == [
        *(("a_to_b", name) for name in ("clan", "source_only", "asda", "oracle")),
        ("c_to_d", "asda"),
    ]
    assert csv_table([first, second]) == (tmp_path / "out/table.csv").read_text()
    numbers = json.loads((tmp_path / "out/results.json").read_text())
    assert numbers["a_to_b"]["table"] == table(first) and numbers["c_to_d"]["runs"][0]["peak_mib"] == 512
    assert (tmp_path / "out/plot_a_to_b.png").read_bytes().startswith(b"\x89PNG")
    assert "## a_to_b" in (tmp_path / "out/table.md").read_text()


def test_a_seed_that_failed_everywhere_is_missing() -> None:
    text = markdown(compared(result("asda"), result("advent"), seeds=[0, 1]))
    assert "asda: has no result of seed 1" in text and "advent: has no result of seed 1" in text
