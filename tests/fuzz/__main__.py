"""Throw damaged files at the project's entries and tell what else than success or an error of its own comes of it.

    python -m tests.fuzz --cases 5000              # of all kinds
    python -m tests.fuzz --kind image --case 123   # one case again, with what it raised

A case is made of its kind and its number alone. It runs in a process that was forked for it and others, with limits of
time and memory, in a folder of its own, and anything that is written elsewhere is a failure like a crash, a hang or a
traceback. Nothing is kept.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # no threads in the process that is forked
os.environ["ASDA_MAX_IMAGE_MIB"] = "128"  # of which a case may take several times as much
SHARES = {"image": 38, "label": 16, "list": 16, "config": 6, "weights": 6, "checkpoint": 10, "record": 8, "scene": 20}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200, help="of all kinds together, by their shares (200)")
    parser.add_argument("--kind", action="append", metavar="KIND[=COUNT]", help="this kind alone; any number of times")
    parser.add_argument("--case", type=int, help="this number alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind (0)")
    parser.add_argument("--seconds", type=float, default=60, help="that a case may take (60)")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that a case may take (2048)")
    given = parser.parse_args(arguments)
    from tests.fuzz.runner import run

    asked = [word.partition("=") for word in given.kind or SHARES]
    total = sum(SHARES.get(kind, 1) for kind, _, _ in asked)
    counts = {kind: int(count or -(-given.cases * SHARES.get(kind, 1) // total)) for kind, _, count in asked}
    wanted = [
        (kind, number)
        for kind in counts
        for number in ([given.case] if given.case is not None else range(given.first, given.first + counts[kind]))
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        results = run(wanted, Path(folder).resolve(), given.seconds, given.memory * 2**20)
    failed = [result for result in results if result["fault"]]
    for result in failed:
        print(f"FAILED {result['kind']} {result['case']}: {result['fault']}")
        print(f"  again: python -m tests.fuzz --kind {result['kind']} --case {result['case']}")
    if given.case is not None:
        print(json.dumps(results, indent=2))
    for kind in counts:
        mine = [result for result in results if result["kind"] == kind]
        ways = Counter(way for result in mine for way in result["ways"])
        slowest = max(mine, key=lambda result: result["seconds"])
        print(
            f"{kind}: {len(mine)} cases, {ways['success']} calls succeeded, {ways['error']} ended in an error of the "
            f"project, {sum(bool(result['fault']) for result in mine)} failed; slowest {slowest['case']}: "
            f"{slowest['seconds']:.1f} s"
        )
    print(f"{len(results)} cases, {len(failed)} failed, {time.monotonic() - began:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
