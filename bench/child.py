"""Programs measured in a process of their own."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# Read before the interpreter shuts down, which takes another 100 MiB and would hide as much.
SCRIPT = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
from engine.memory import process_peak_mib
print(process_peak_mib())
"""


def run(code: str, *arguments: str) -> str:
    """Run Python code with `arguments` in the repository and return the last line that it printed."""
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, text=True, capture_output=True, check=False
    )
    if child.returncode:
        sys.exit(f"{child.stdout}{child.stderr}\n{arguments} ended with status {child.returncode}")
    return (child.stdout.splitlines() or [""])[-1]


def peak_of(script: str, *arguments: str) -> float:
    """Run one of the repository's scripts and return the peak of its resident memory in MiB."""
    return float(run(SCRIPT, script, *arguments))
