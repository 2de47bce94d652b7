"""What is said of the parts of a domain."""

from datasets.check import PartSummary, against_published, warnings_of
from datasets.readers import Published


def test_equal_counts_say_so() -> None:
    parts = {"train": PartSummary(images=3), "eval": PartSummary(images=1)}
    assert against_published(parts, {"both": "all"}, Published({"all": 4})) == ["all: 4 images, as published"]
    assert against_published(parts, {"train": "all"}, Published({"all": 4}, note="x")) == [
        "all: 3 images, published: 4 (x)"
    ]
    assert against_published(parts, {"train": "all"}, None) == [] and warnings_of({"train": PartSummary()}) == []
