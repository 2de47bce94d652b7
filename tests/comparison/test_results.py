"""result.json, and which results can be compared."""

import json
import re
from pathlib import Path

import pytest

from comparison.jobs import Job
from comparison.results import finished, gather, paired, read_result, write_result
from config.comparison import CompareConfig
from config.schema import Config
from tests.comparison.examples import matrices_of, result
from utils.errors import DataError


def made(folder: Path) -> tuple[Job, Path]:
    """A job whose result is there."""
    result = {
        "choice": {"selection": "last"},
        **{"images": ["a", "b"], "scenes": [], "matrices": [[[9, 1], [2, 8]], [[7, 3], [0, 10]]], "best": []},
        **{"steps": 2, "seconds": 0.2, "peak_mib": None, "warnings": [], "selected": "last"},
    }
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    return Job("tiny", "asda", Config(out=str(folder)), {"selection": "last"}, None), folder / "result.json"


@pytest.mark.parametrize(
    "change",
    [
        *({"matrices": [[[9, 1], [2, 8]]]}, {"matrices": [1, 2]}, {"matrices": [[[9, 1], [2, -8]], [[7, 3], [0, 1]]]}),
        *({"images": None}, {"scenes": ["a"]}, {"best": [[[1, 1], [1, 1]]]}, {"steps": "x"}, {"warnings": 1}),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    job, path = made(tmp_path / "run")
    config = CompareConfig(methods={"asda": None}, seeds=[0])
    assert gather("tiny", [job], config).results[0].matrices.sum() == 40
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = gather("tiny", [job], config)
    assert not found.results and len(found.left_out) == 1
    message = r"asda, seed 0: .*result\.json: is not the result of a run .*remove it to score the run again"
    assert re.match(message, found.left_out[0])


@pytest.mark.parametrize("text", ["[]", "{", "{}", "[" * 99_999])
def test_a_result_that_cannot_be_read_is_named_before_anything_runs(tmp_path: Path, text: str) -> None:
    job, path = made(tmp_path / "run")
    path.write_text(text)
    with pytest.raises(DataError, match=r"result\.json: is not the result of a run"):
        finished(job)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    job, _ = made(tmp_path / "run")
    for written in (
        result("asda", best=matrices_of([1, 2]), scenes=["s", "t"], peak_mib=3.5, repeatability=0.25, chosen="last"),
        result("asda", warnings=["w"]),
    ):
        write_result(job, written)
        found = read_result(job)
        assert found is not None and repr(found) == repr(written)
    assert read_result(job._replace(choice={"selection": "entropy"})) is None


def test_what_most_results_are_scored_on_is_kept() -> None:
    """Whichever comes first: one odd result does not cost those of all others."""
    odd, plain = result("oracle", images=["x", "y"]), [result("asda"), result("advent")]
    kept, reasons = paired([odd, *plain])
    assert [run.method for run in kept] == ["asda", "advent"]
    assert reasons == ["oracle, seed 0: scored on other images than asda; paired tests need the same ones"]
    assert paired([]) == ([], [])
