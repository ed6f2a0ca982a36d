"""Speed as ratios, measured side by side: ``make bench``.

Absolute seconds say more about a machine than about a program. So each row compares two ways of
doing the same work, a process each, in turns within one run, so that a machine that slows down
slows both. The other way is the plain one, or with ``--against FOLDER`` another checkout:

    git worktree add ../before COMMIT
    python tests/bench/run.py --against ../before

A row with a bar says whether it was met; against another checkout the bar is 0.95 for all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pandas as pd

HERE = Path(__file__).resolve().parent
PLAIN = {
    "serialize .nii": ("get_fdata, percentile, PyTorch", 4.0),
    "serialize .nii.gz": ("get_fdata, percentile, PyTorch", 2.0),
    "boxes": ("one np.where a label", 15.0),
    "build": ("1,000 records/s", 1.0),
    "3 boxes": ("encode all again after each box", 2.5),
    "8 boxes": ("encode all again after each box", 5.0),
    "SFT step": ("bare PyTorch loop", 0.85),
}
"""Case -> what it is compared with, and the ratio that it must reach."""

RECORDS_PER_SECOND = 1000
LEAST_AGAINST = 0.95


def measure(case: str, checkout: Path, folder: Path) -> tuple[float, object]:
    """Seconds and result of a case in a new process, with a checkout on the path."""
    paths = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    run = subprocess.run(
        [sys.executable, str(HERE / "cases.py"), case, str(folder)],
        env={**os.environ, **offline, "PYTHONPATH": paths},
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise SystemExit(f"{case} in {checkout} failed:\n{run.stderr[-2000:]}")
    found = json.loads(run.stdout.splitlines()[-1])
    return found["seconds"], found["result"]


def compare(case: str, folder: Path, repeats: int, other: Path | None) -> dict[str, object]:
    """Both sides in turns; medians and their ratio (above 1: ours is faster). Where a case gives a
    result, both sides must give the same."""
    here = HERE.parents[1]
    against, bar = PLAIN[case]
    sides = {"ours": (case, here), "theirs": (f"{case}, plain", here)}
    if other is not None:
        against, bar = other.name, LEAST_AGAINST
        sides["theirs"] = (case, other)
    elif case == "build":
        del sides["theirs"]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results = {}
    for _ in range(repeats):
        for side, (name, checkout) in sides.items():
            place = folder / ("other" if checkout == other else "here") / "work"
            elapsed, results[side] = measure(name, checkout, place)
            seconds[side].append(elapsed)
    if "theirs" not in seconds:
        seconds["theirs"] = [results["ours"] / RECORDS_PER_SECOND]
    elif other is None and results["ours"] != results["theirs"]:
        raise SystemExit(f"{case}: both ways should give the same, found {results}")
    theirs, ours = median(seconds["theirs"]), median(seconds["ours"])
    row = {"case": case, "against": against, "theirs": theirs, "ours": ours}
    return row | {"ratio": theirs / ours, "bar": bar, "met": theirs / ours >= bar}


def main(words: list[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 when a bar was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"which: {', '.join(PLAIN)}; default: all")
    parser.add_argument("--against", type=Path, help="another checkout, in place of the plain ways")
    parser.add_argument("--repeats", type=int, default=3, help="turns; medians are compared")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="JSON file")
    given = parser.parse_args(words)
    if unknown := sorted(set(given.cases) - set(PLAIN)):
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(PLAIN)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in given.cases or PLAIN:
            other = given.against and given.against.resolve()
            rows.append(compare(case, Path(folder), given.repeats, other))
            print(f"{case}: {rows[-1]['ratio']:.2f}", flush=True)
    table = pd.DataFrame(rows)
    print("\n" + table.to_markdown(index=False, floatfmt=".3g"))
    machine = {"cores": os.cpu_count(), "torch": version("torch"), "numpy": version("numpy")}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "rows": table.to_dict("records")}
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if table["met"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
