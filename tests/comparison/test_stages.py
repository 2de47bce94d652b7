"""The stages of a run: their scripts, and their progress."""

import json
import sys
from pathlib import Path

import pytest

from comparison.stages import run_script, steps_done
from utils.errors import EvaluationError


def test_progress_is_read_as_far_as_it_is_sound(tmp_path: Path) -> None:
    rows = [{"step": step, "step_time": 0.1, "peak_mib": 1.0} for step in (2, 4)]
    (tmp_path / "timing.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": "x"}\n')
    assert steps_done(tmp_path) == 4
    (tmp_path / "timing.jsonl").write_bytes(b"\xff")
    assert steps_done(tmp_path) == 0


def test_a_script_is_run_as_typed_and_its_failure_is_told(tmp_path: Path) -> None:
    before = sys.argv
    with pytest.raises(EvaluationError, match=r"^train_teacher\.py: error: .*nowhere\.yaml: cannot be read"):
        run_script("train_teacher.py", "--config", str(tmp_path / "nowhere.yaml"))
    run_script("train_teacher.py", "--help")
    assert sys.argv is before
