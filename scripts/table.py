"""A Markdown table of success rates from results files of ``hmrl test``.

    python scripts/table.py "three levels=results/ml10-2m/test.json" "flat PPO=results/ml10-2m/flat/test.json"

Each cell is success at any step with its 95 % interval; ``--modes`` chooses the ways of acting.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def cell(score: dict[str, Any]) -> str:
    """``0.47 [0.44, 0.51]``."""
    return f"{score['success']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"


def main() -> None:
    """Parse arguments and print."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("results", nargs="+", metavar="LABEL=FILE")
    parser.add_argument("--modes", nargs="+", default=["sampled"])
    args = parser.parse_args()
    columns: list[tuple[str, dict[str, Any]]] = []
    for named in args.results:
        label, _, file = named.partition("=")
        if not file or not Path(file).is_file():
            parser.error(f"{named!r} is not LABEL=FILE of a results file")
        result = json.loads(Path(file).read_text())
        for mode in args.modes:
            if mode not in result["scores"]["train"]:
                parser.error(f"{file} has no mode {mode!r}, only {', '.join(result['scores']['train'])}")
            columns.append((f"{label}, {mode}", {s: result["scores"][s][mode] for s in ("train", "test")}))
    print("| family |" + "".join(f" {label} |" for label, _ in columns))
    print("|---|" + "---|" * len(columns))
    for split in ("train", "test"):
        for family in columns[0][1][split]:
            bold = "**" if family == "mean" else ""
            cells = "".join(f" {bold}{cell(scores[split][family])}{bold} |" for _, scores in columns)
            print(f"| {bold}{split} {family}{bold} |{cells}")


if __name__ == "__main__":
    main()
