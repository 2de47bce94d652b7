"""What repeatability, the sign without labels, tells of the gain of each run that docs/shifts.csv keeps, seed 0.

python bench/signs.py
"""

import csv
from pathlib import Path

from scipy.stats import pearsonr, spearmanr

TABLE = Path(__file__).resolve().parents[1] / "docs" / "shifts.csv"


def main() -> None:
    """Print correlations with the true gain over real pairs, generated ones and each pair, and how often it fell."""
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seed"] == "0" and row["repeatability"]]
    runs = {(row["pair"], row["method"]): (float(row["repeatability"]), float(row["miou"])) for row in rows}
    pairs = list(dict.fromkeys(pair for pair, _ in runs))
    generated = [pair for pair in pairs if pair.startswith("demo")]
    real = [pair for pair in pairs if pair not in generated]
    for name, chosen in {"real": real, "generated": generated, **{pair: [pair] for pair in pairs}}.items():
        moves = []
        for (pair, method), (sign, miou) in runs.items():
            if pair in chosen and method not in ("source_only", "oracle"):
                before, baseline = runs[pair, "source_only"]
                moves.append((sign - before, miou - baseline))
        signs, gains = zip(*moves, strict=True)
        lost = sum(gain < 0 for gain in gains)
        fell_right = sum(sign < 0 and gain < 0 for sign, gain in moves)
        fell_wrong = sum(sign < 0 and gain >= 0 for sign, gain in moves)
        print(
            f"{name}: {len(moves)} runs, correlation {pearsonr(signs, gains).statistic:+.2f}, of ranks "
            f"{spearmanr(signs, gains).statistic:+.2f}; fell in {fell_right} of {lost} that lost, "
            f"{fell_wrong} of {len(moves) - lost} that did not"
        )


if __name__ == "__main__":
    main()
