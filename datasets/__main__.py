"""Look at the data of a configuration before anything is trained.

    python -m datasets check --config configs/demo.yaml

Reads every file of both domains once and says what is there: counts, sizes, types, ranges of values, shares of cloud
and of pixels without data, what differs from the published facts, images that are in train and in eval, and every file
that cannot be used. Writes OUT/check/: report.json, report.md and a sheet of samples with their labels for each domain.
Ends with status 1 if a file cannot be used.
"""

import sys

from engine.cli import configure, run

if __name__ == "__main__":
    command = " ".join(sys.argv[1:2]) or "nothing"
    if command == "check":
        del sys.argv[1]
    elif command not in ("-h", "--help"):
        sys.exit(f"error: found {command!r}, expected: python -m datasets check --config CONFIG [--key value ...]")
    config = configure(__doc__)

    from report.data_check import check  # imports torch, which --help and a wrong key need not wait for

    run(check, config)
