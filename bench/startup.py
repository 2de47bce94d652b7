"""How long `--help` of each script takes, and which imports that time goes to.

    python bench/startup.py

Each script is started several times; the smallest of the wall-clock times counts, since what else the machine does can
only add to it. The imports are those of `python -X importtime`, own time without what they import in turn. Ends with
status 1 if a script takes a second or more, or imports one of the packages that take long. Takes half a minute.
"""

import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT, STARTS, SHOWN = 1.0, 5, 4
HEAVY = {"torch", "torchvision", "timm", "sklearn", "matplotlib", "tensorboardX", "rasterio", "onnxruntime", "onnx"}


def started(*options: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *options, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, done


def imports_of(script: str) -> dict[str, int]:
    """Own microseconds of each module."""
    rows = [
        line.removeprefix("import time:").split("|")
        for line in started("-X", "importtime", script)[1].stderr.splitlines()
    ]
    return {name.strip(): int(own) for own, _, name in rows[1:] if own.strip().isdigit()}


def main() -> None:
    faults = []
    for path in sorted(REPOSITORY.glob("*.py")):
        seconds = min(started(path.name)[0] for _ in range(STARTS))
        own = imports_of(path.name)
        heavy = HEAVY & {name.partition(".")[0] for name in own}
        largest = sorted(own.items(), key=lambda item: -item[1])[:SHOWN]
        told = ", ".join(f"{name} {microseconds / 1000:.0f} ms" for name, microseconds in largest)
        print(f"{path.name:18s} {seconds:.2f} s; {len(own)} modules, {sum(own.values()) / 1e6:.2f} s, of these {told}")
        faults += [f"{path.name} took {seconds:.2f} s"] * (seconds >= LIMIT) + [
            f"{path.name} imports {name}" for name in heavy
        ]
    print("\n".join(faults) or f"all below {LIMIT:.0f} s, none imports {', '.join(sorted(HEAVY))}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
