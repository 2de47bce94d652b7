"""Damaged and hostile files by the hundred and, with -m slow, by the thousand: each ends in success or in an error of
the project that names it, in bounded time and memory, and nothing is written, started or asked elsewhere. What is done
to them, and to which entries they are given, stands in tests/fuzz. Scenes of every kind (tests/fuzz/scenes.py) have to
get the right mask, or none."""

import io
import json
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.faults import WAYS
from tests.fuzz.mutate import HEADERS, mutated, png, safetensors

ROOT = Path(__file__).resolve().parents[1]
FEW = {"image": 100, "label": 50, "list": 60, "config": 4, "weights": 4, "checkpoint": 40, "record": 20, "scene": 50}
MANY = {"image": 1800, "label": 800, "list": 800, "config": 500, "weights": 400, "checkpoint": 600, "record": 700}
MANY |= {"scene": 2000}
FAULTS = {  # what the runner has to say of a case that does it
    "unnamed": "names none of",
    "traceback": "KeyError: 'x'",
    "exit": "its process ended (status 0)",
    "crash": "Segmentation fault",
    "hang": "took more than 2 s",
    "memory": "Unable to allocate 1.00 GiB",
    "written": "open ",
    "written_natively": "escaped was written",
    "changed": "seed was written",
    "started": "subprocess.Popen",
}


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def faultless(counts: dict[str, int]) -> None:
    done = fuzz(*(word for kind, count in counts.items() for word in ("--kind", f"{kind}={count}")))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {kind: int(count) for kind, count in re.findall(r"^(\w+): (\d+) cases, ", done.stdout, re.MULTILINE)}
    assert told == counts and f"{sum(counts.values())} cases, 0 failed" in done.stdout


def test_hundreds_of_damaged_files() -> None:
    faultless(FEW)


@pytest.mark.slow
def test_thousands_of_damaged_files() -> None:
    faultless(MANY)


def test_every_way_to_fail_is_told_with_the_command_that_repeats_it() -> None:
    kinds = [word for name in WAYS for word in ("--kind", name)]
    done = fuzz("--cases", "1", "--seconds", "2", "--memory", "512", *kinds)
    told = dict(re.findall(r"^FAILED (\w+) 0: (.*?)\n  again: ", done.stdout, re.MULTILINE | re.DOTALL))
    assert done.returncode == 1 and told.keys() == FAULTS.keys() == WAYS.keys() - {"sound", "named"}
    for name, expected in FAULTS.items():
        assert expected in told[name], told[name]
        assert f"again: python -m tests.fuzz --kind {name} --case 0" in done.stdout


def test_one_case_again_is_the_same_case() -> None:
    done = fuzz("--kind", "traceback", "--case", "3")
    assert done.returncode == 1 and "FAILED traceback 3" in done.stdout and "1 cases, 1 failed" in done.stdout


def picture() -> bytes:
    """A PNG of 2x2 pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    rows = zlib.compress(b"\x00\x10\x20\x00\x30\x40")
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")):
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in ("data.pkl", "data/0"):
            file.writestr(zipfile.ZipInfo(name), bytes(range(64)))
    return packed.getvalue()


def tensors() -> bytes:
    header = json.dumps(
        {"__metadata__": {"data": '{"size": 32}'}, "w": {"dtype": "U8", "data_offsets": [0, 4]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + b"\x01\x02\x03\x04"


SEEDS = {
    **{".png": picture(), ".jpg": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\x00\x02x\xff\xd9", ".bmp": b"BM" + bytes(60)},
    **{".tif": b"II*\x00\x08\x00\x00\x00\x01\x00" + struct.pack("<HHII", 256, 3, 1, 2) + bytes(8)},
    **{".hdr": b"ENVI\nsamples = 2\nlines = 2\n", ".xml": b"<a>1</a>\n", ".txt": b"a b\nc\td\n", ".csv": b"a,b\n1,2\n"},
    **{".pt": archive(), ".pth": archive(), ".safetensors": tensors(), ".yaml": b"seed: 1\nout: x\n"},
    **{".json": b'{"a": [1, {"b": "c"}]}', ".jsonl": b'{"step": 1}\n{"step": 2}\n'},
}


@pytest.mark.parametrize("suffix", sorted(SEEDS))
def test_a_number_is_a_case_and_numbers_differ(suffix: str) -> None:
    assert SEEDS.keys() == HEADERS.keys()
    content = SEEDS[suffix]
    first, again = ([mutated(Random(i), f"a{suffix}", content, [b"other"]) for i in range(120)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 60 and sum(one == content for one in first) < 30


def test_a_changed_picture_has_sound_checksums() -> None:
    """Else every decoder would stop there, and nothing behind it would be tried."""
    for i in range(100):
        content, place = png(Random(i), picture(), b"other"), 8
        while place < len(content):
            length = int.from_bytes(content[place : place + 4], "big")
            body, check = content[place + 4 : place + 8 + length], content[place + 8 + length : place + 12 + length]
            assert zlib.crc32(body) == int.from_bytes(check, "big")
            place += 12 + length


def test_a_changed_header_of_tensors_is_found_by_its_length() -> None:
    changed = 0
    for i in range(100):
        content = safetensors(Random(i), tensors(), b"other")
        end = 8 + int.from_bytes(content[:8], "little")
        assert content[end:] == b"\x01\x02\x03\x04"
        try:
            changed += json.loads(content[8:end]) != json.loads(tensors()[8:-4])
        except (ValueError, RecursionError):  # nested deeper than anybody reads
            changed += 1
    assert changed > 80
