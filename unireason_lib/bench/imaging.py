"""Reading and serializing a scan, and label maps to boxes, against the obvious way of doing it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

SHAPE = (512, 512, 96)
SIZE = (32, 256, 256)

_CHILD = """
import json, sys, time
import numpy as np
from unireason_lib.bench.imaging import RUNS, peak_kib
before = peak_kib()
started = time.perf_counter()
values = RUNS[sys.argv[1]](sys.argv[2])
seconds = time.perf_counter() - started
peak = peak_kib() - before
np.save(sys.argv[3], values)
print(json.dumps({"seconds": seconds, "peak": peak}))
"""


def plain_way(path: str) -> np.ndarray:
    """``get_fdata`` (float64), ``np.percentile``, scaling and trilinear resampling with PyTorch.

    Returns:
        ``(32, 256, 256)`` float32 in [0, 1], axes turned to L-P-S.
    """
    import nibabel as nib
    import torch

    image = nib.as_closest_canonical(nib.load(path))
    data = image.get_fdata()[::-1, ::-1].transpose(2, 1, 0)
    low, high = np.percentile(data, (1, 99))
    data = np.clip((data - low) / (high - low), 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(data))[None, None]
    return torch.nn.functional.interpolate(tensor, SIZE, mode="trilinear", align_corners=False)[
        0, 0
    ].numpy()


def our_way(path: str) -> np.ndarray:
    """:func:`unireason_lib.imaging.load_volume` and :func:`unireason_lib.imaging.serialize`."""
    from unireason_lib.imaging import load_volume, serialize

    return serialize(load_volume(path), SIZE).values


RUNS = {"baseline": plain_way, "ours": our_way}


def peak_kib() -> int:
    """Largest resident memory of this process so far, in KiB.

    Linux starts ``ru_maxrss`` at that of the starting process, so ``VmHWM`` is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(
            int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
        1024 if sys.platform == "darwin" else 1
    )


def bench_serialize(repeats: int = 3, shape: tuple[int, int, int] = SHAPE) -> list[dict]:
    """Serializing a file the plain way and ours.

    Seconds and peak memory of both ways, each run in a process of its own so that memory is that run's.

    Imports are done before the clock and the memory count start. Targets: 4x from ``.nii``, 2x from
    ``.nii.gz``, at most half the peak memory, values equal to 1e-4.

    Returns:
        A row of time and a row of memory for each of the two files.
    """
    import nibabel as nib

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scan = _made_scan(shape)
        for suffix, target in ((".nii", 4.0), (".nii.gz", 2.0)):
            path = Path(folder) / f"scan{suffix}"
            nib.save(nib.Nifti1Image(scan, np.diag([0.7, 0.7, 3.0, 1.0])), path)
            taken = {name: [] for name in RUNS}
            for _ in range(repeats):
                for name in RUNS:
                    taken[name].append(_in_child(name, path, Path(folder) / f"{name}.npy"))
            seconds = {name: median(run["seconds"] for run in runs) for name, runs in taken.items()}
            peak = {name: median(run["peak"] for run in runs) for name, runs in taken.items()}
            arrays = [np.load(Path(folder) / f"{name}.npy") for name in RUNS]
            apart = float(np.abs(arrays[0] - arrays[1]).max())
            ratio = seconds["baseline"] / seconds["ours"]
            rows.append(
                {
                    "name": f"serialize {'x'.join(map(str, shape))} int16 {suffix}: time",
                    "baseline_s": seconds["baseline"],
                    "ours_s": seconds["ours"],
                    "ratio": ratio,
                    "target": target,
                    "largest_difference": apart,
                    "ok": ratio >= target and apart <= 1e-4,
                }
            )
            rows.append(
                {
                    "name": f"serialize {'x'.join(map(str, shape))} int16 {suffix}: peak memory",
                    "baseline_mib": peak["baseline"] / 1024,
                    "ours_mib": peak["ours"] / 1024,
                    "ratio": peak["baseline"] / max(peak["ours"], 1),
                    "target": 2.0,
                    "ok": peak["baseline"] >= 2 * peak["ours"] > 0,
                }
            )
    return rows


def bench_boxes(
    repeats: int = 5, shape: tuple[int, int, int] = SHAPE, labels: int = 30
) -> list[dict]:
    """Boxes of many labels, against one ``np.where`` a label (target 15x) and ``find_objects`` (at most 1.5x its time).

    Args:
        repeats: At least 3; the slow baseline is repeated 3 times.
        shape: (x, y, z) of the label map.
        labels: How many labels it holds.
    """
    from scipy.ndimage import find_objects

    from unireason_lib.imaging import label_boxes

    made = _made_labels(shape, labels)

    def one_by_one() -> dict[int, tuple[int, ...]]:
        boxes = {}
        for label in range(1, labels + 1):
            z, y, x = np.where(made == label)
            boxes[label] = (x.min(), y.min(), z.min(), x.max() + 1, y.max() + 1, z.max() + 1)
        return boxes

    taken: dict[str, list[float]] = {"where": [], "find_objects": [], "ours": []}
    runs = {
        "where": one_by_one,
        "find_objects": lambda: find_objects(made),
        "ours": lambda: label_boxes(made),
    }
    results = {}
    for turn in range(repeats):
        for name, run in runs.items():
            if name == "where" and turn >= 3:
                continue
            started = time.perf_counter()
            results[name] = run()
            taken[name].append(time.perf_counter() - started)
    seconds = {name: median(values) for name, values in taken.items()}
    same = {label: tuple(map(int, box)) for label, box in results["where"].items()} == {
        label: box.as_tuple() for label, box in results["ours"].items()
    }
    rows = []
    for name, against, target in (
        ("one np.where a label", "where", 15.0),
        ("find_objects", "find_objects", 1 / 1.5),
    ):
        ratio = seconds[against] / seconds["ours"]
        rows.append(
            {
                "name": f"boxes of {labels} labels in {'x'.join(map(str, shape))}: against {name}",
                "baseline_s": seconds[against],
                "ours_s": seconds["ours"],
                "ratio": ratio,
                "target": round(target, 3),
                "same_boxes": same,
                "ok": same and ratio >= target,
            }
        )
    return rows


def _in_child(name: str, path: Path, out: Path) -> dict[str, float]:
    imports = "import nibabel, torch, unireason_lib.imaging, unireason_lib.imaging.serialize\n"
    done = subprocess.run(
        [sys.executable, "-c", imports + _CHILD, name, str(path), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def bench_feeding(repeats: int = 3, gpus: str = "8xH100") -> list[dict]:
    """Whether volumes are read fast enough for many GPUs: seconds that one core takes for a volume of 32 slices of
    256 x 256, up to the pixels that the processor cuts into patches, against the seconds that it may take.

    How long it may take follows from the bill of the profile ``gpu``: when the GPUs are used well, so many volumes a
    second are learnt from, and each GPU's process has ``sft.workers`` cores that read ahead.

    Args:
        repeats: Volumes read of each form; the median is taken.
        gpus: Which the bill is for.
    """
    import nibabel as nib

    from unireason_lib.imaging import load_volume, serialize
    from unireason_lib.imaging.frame import QWEN_FRAME
    from unireason_lib.planning import Cluster, bill, samples_of, shape_of
    from unireason_lib.planning.machines import assumptions
    from unireason_lib.profiles import load_profile

    profile, cluster = load_profile("gpu"), Cluster.named(gpus)
    samples = samples_of(QWEN_FRAME, SIZE, 512)
    made = bill(profile, shape_of(profile.model.base), cluster, samples, stages=("sft",))
    learnt = assumptions()["records"]["3d"] * profile.sft.epochs / (made.hours("sft").low * 3600)
    cores = profile.sft.workers * cluster.count
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scan, place = _made_scan(SHAPE), Path(folder)
        nib.save(nib.Nifti1Image(scan, np.diag([0.7, 0.7, 3.0, 1.0])), place / "scan.nii.gz")
        np.save(place / "volume.npy", np.random.default_rng(0).random((1, *SIZE), dtype=np.float32))
        for name, shape in (("scan.nii.gz", SHAPE), ("volume.npy", SIZE)):
            seconds = []
            for _ in range(repeats):
                began = time.perf_counter()
                stack = serialize(load_volume(place / name), SIZE)
                for picture in stack.images():
                    np.asarray(QWEN_FRAME.aligned(picture))
                seconds.append(time.perf_counter() - began)
            allowed, taken = cores / learnt, median(seconds)
            rows.append(
                {
                    "name": f"{gpus}, {learnt:.1f} volumes/s, {cores} cores: {'x'.join(map(str, shape))} {name}",
                    "baseline_s": allowed,
                    "ours_s": taken,
                    "ratio": allowed / taken,
                    "target": 1.0,
                    "ok": taken <= allowed,
                }
            )
    return rows


def _made_scan(shape: tuple[int, int, int]) -> np.ndarray:
    """A noisy int16 volume with air, tissue and bone."""
    draw = np.random.default_rng(0)
    grids = np.meshgrid(
        *(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij", sparse=True
    )
    inside = (grids[0] ** 2 + grids[1] ** 2 + 0.3 * grids[2] ** 2) < 0.7
    scan = np.where(inside, 40, -1000).astype(np.int16)
    scan += draw.normal(0, 20, shape).astype(np.int16)
    return scan


def _made_labels(shape: tuple[int, int, int], labels: int) -> np.ndarray:
    """``(Z, Y, X)`` uint8 with ellipsoids."""
    draw = np.random.default_rng(0)
    made = np.zeros(shape[::-1], np.uint8)
    for label in range(1, labels + 1):
        size = draw.integers(8, [shape[2] // 4, shape[1] // 4, shape[0] // 4])
        low = [
            int(draw.integers(0, side - extent))
            for side, extent in zip(made.shape, size, strict=True)
        ]
        made[tuple(slice(a, a + int(n)) for a, n in zip(low, size, strict=True))] = label
    for label in range(1, labels + 1):
        made[label % shape[2], 0, label] = label
    return made
