"""Every method on every pair of domains with every seed, under one protocol, in one table.

    python compare.py --config configs/compare/demo.yaml
    python compare.py --config configs/compare/demo.yaml --workers 2 --threads 1 --only asda,advent

A run of one method is what bash.sh does with its configuration; a stage that another method of the same pair and seed
has finished with the same settings is copied from there. Started again, it continues: nothing finished is done twice.
Writes OUT/PAIR/seedS/METHOD/ (the runs) and OUT/NAME/: table.{md,csv,tex}, results.json, plot_*.png.
"""

if __name__ == "__main__":
    from config.load import load_compare_config
    from engine.cli import configure

    CONFIG = configure(__doc__, load_compare_config)

from contextlib import suppress
from pathlib import Path

from comparison.averages import grouped
from comparison.jobs import plan
from comparison.published import read_published
from comparison.results import finished, gather
from comparison.run import run_jobs
from comparison.tables import write
from config.comparison import CompareConfig
from engine.cli import run
from engine.lock import LOCK
from utils.errors import DataError, EvaluationError


def compare(config: CompareConfig) -> None:
    """Run what is not finished, then write the tables; at the end, EvaluationError names the runs that failed and the
    results that cannot be used, while the tables show the others."""
    jobs, waiting = plan(config), []
    published = {pair: read_published(Path(config.published), pair) for pair in config.pairs if config.published}
    for job in jobs:
        with suppress(DataError):  # its result is damaged: the table says so, and its user removes it
            if not finished(job) and job.method in config.selected:
                waiting.append(job)
    planned = sum(job.method in config.selected for job in jobs)
    failed = run_jobs(waiting, planned, config)
    comparisons = [gather(pair, jobs, config, published.get(pair, ())) for pair in config.pairs]
    folder = Path(config.out) / config.name
    write(folder, comparisons, grouped(comparisons, config.groups))
    files = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    print(f"\n{(folder / 'table.md').read_text('utf-8')}\n{folder}: {', '.join(files)}")
    faults = []
    if failed:
        runs = "; ".join(f"{job.name} (see {job.folder / 'log.txt'})" for job in failed)
        faults.append(f"{len(failed)} of {planned} runs failed: {runs}")
    if left_out := [f"{pair.pair}, {reason}" for pair in comparisons for reason in pair.left_out]:
        faults.append(f"left out of the tables: {'; '.join(left_out)}")
    if faults:
        raise EvaluationError("\n".join(faults))


if __name__ == "__main__":
    run(compare, CONFIG, Path(CONFIG.out) / CONFIG.name, together=False)
