"""What is timed, one function a case: set up, then seconds of the work alone.

A case runs in a process of its own (``run.py`` starts it) with one checkout on the path, and may
meet an older one. So it uses the names that outsiders rely on, and the command line.

    python tests/bench/cases.py CASE FOLDER      prints {"seconds": ..., "result": ...} as JSON
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SCAN, SIZE = (512, 512, 96), (32, 256, 256)
Timed = tuple[float, Any]  # seconds, and what must be equal on both sides (or None)


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Median seconds of some work, after one run that fills caches, and what it gave."""
    seconds, result = [], work()
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return median(seconds), result


def command(*words: object) -> None:
    """A command of the package, in this process and without its output."""
    from unireason_lib.cli import app

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = app([str(word) for word in words], standalone_mode=False)
    if code:
        raise RuntimeError(shown.getvalue())


# --- imaging ---------------------------------------------------------------------------------


def scan_file(folder: Path, suffix: str) -> Path:
    """A noisy int16 volume with air and tissue, as NIfTI."""
    import nibabel as nib

    path = folder / f"scan{suffix}"
    if not path.exists():
        draw, sides = np.random.default_rng(0), [np.linspace(-1, 1, n) for n in SCAN]
        x, y, z = np.meshgrid(*sides, indexing="ij", sparse=True)
        scan = np.where(x**2 + y**2 + 0.3 * z**2 < 0.7, 40, -1000) + draw.normal(0, 20, SCAN)
        nib.save(nib.Nifti1Image(scan.astype(np.int16), np.diag([0.7, 0.7, 3.0, 1.0])), path)
    return path


def serialize_ours(folder: Path, suffix: str) -> Timed:
    """``load_volume`` and ``serialize``."""
    from unireason_lib.imaging import load_volume, serialize

    path = scan_file(folder, suffix)
    seconds, stack = timed(lambda: serialize(load_volume(path), SIZE))
    return seconds, round(float(stack.pixels.mean()), 1)


def serialize_plain(folder: Path, suffix: str) -> Timed:
    """``get_fdata`` in float64, ``np.percentile``, and trilinear resampling with PyTorch."""
    import nibabel as nib
    import torch

    path = scan_file(folder, suffix)

    def work() -> Any:
        data = nib.as_closest_canonical(nib.load(path)).get_fdata()[::-1, ::-1].transpose(2, 1, 0)
        low, high = np.percentile(data, (1, 99))
        data = np.ascontiguousarray(np.clip((data - low) / (high - low), 0, 1))
        tensor = torch.from_numpy(data)[None, None]
        how = {"mode": "trilinear", "align_corners": False}
        return torch.nn.functional.interpolate(tensor, SIZE, **how)[0, 0].numpy()

    seconds, values = timed(work)
    return seconds, round(float(np.rint(values * 255).mean()), 1)


def labels() -> np.ndarray:
    """``(Z, Y, X)`` uint8 with 30 boxes."""
    draw, made = np.random.default_rng(0), np.zeros(SCAN[::-1], np.uint8)
    for label in range(1, 31):
        size = [int(draw.integers(2, side // 4)) for side in made.shape]
        low = [int(draw.integers(0, a - b)) for a, b in zip(made.shape, size, strict=True)]
        made[tuple(slice(a, a + b) for a, b in zip(low, size, strict=True))] = label
    made[0, 0, 1:31] = range(1, 31)  # none is covered by the others
    return made


def boxes_ours(folder: Path) -> Timed:
    """``label_boxes``."""
    from unireason_lib.imaging import label_boxes

    made = labels()
    seconds, found = timed(lambda: label_boxes(made))
    return seconds, [[int(n) for n in found[label].as_tuple()] for label in range(1, 31)]


def boxes_plain(folder: Path) -> Timed:
    """One ``np.where`` a label."""
    made = labels()

    def work() -> list[list[int]]:
        found = []
        for label in range(1, 31):
            z, y, x = np.where(made == label)
            ends = [int(one.max()) + 1 for one in (x, y, z)]
            found.append([*(int(one.min()) for one in (x, y, z)), *ends])
        return found

    return timed(work, 2)


# --- data sets -------------------------------------------------------------------------------

STUDIES = 400


def build(folder: Path, studies: int = 0) -> Path:
    """A data set of phantom slices and volumes with the smallest images, made by the command."""
    out, half = folder / "data", (studies or STUDIES) // 2
    if not (out / "manifest.json").exists():
        words = ["build", "--out", out, "--size", "8,64,64", "--model", tiny(folder)]
        words += ["--source", f"phantom:dimension=2d,count={half}"]
        words += ["--source", f"phantom:start=500000,count={half}", "--seed", 0]
        command(*words, "--prior-studies", 0)
    return out


def build_ours(folder: Path) -> Timed:
    """Studies of phantoms to Parquet: records, images, split; without the time of imports."""
    build(folder / f"first-{os.getpid()}", studies=2)
    began = time.perf_counter()
    out = build(folder / f"run-{os.getpid()}")
    seconds = time.perf_counter() - began
    return seconds, json.loads((out / "manifest.json").read_text())["records"]


# --- models ----------------------------------------------------------------------------------


def tiny(folder: Path, **sizes: int) -> Path:
    """A checkpoint with random weights: speed does not depend on what a model knows."""
    from unireason_lib.grounding import build_tiny

    path = folder.parent / f"tiny{'-'.join(map(str, sizes.values()))}"
    return path if path.exists() else build_tiny(path, **sizes)


def generation(folder: Path, boxes: int, **how: Any) -> Timed:
    """One reply about a volume in which the model is made to write some boxes.

    With hidden size 256, six layers, 14-pixel patches and Qwen2.5-VL's limits, 32 slices of 256 x
    256 pixels are about 2,650 tokens as in the paper.
    """
    from PIL import Image

    from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, load_model

    sizes = {"hidden": 256, "layers": 6, "patch_size": 14}
    sizes |= {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    model, processor = load_model(tiny(folder, **sizes), device="cpu")
    generator = GroundedGenerator(model, processor, **how)
    count, side, draw = SIZE[0], SIZE[1], np.random.default_rng(0)
    slices = [
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)
    ]
    options = {"A": "liver", "B": "spleen", "C": "left kidney", "D": "right kidney"}
    request = GroundedRequest("Where is the lesion?", slices, options, "3d")
    parts: list[Any] = []
    for i in range(boxes):
        z, x1, x2 = i % count, i % 8, i % 8 + side // 4
        parts += [1, f"<|box_start|>[{x1},{x1},{z},{x2},{x2},{z + 1}]<|box_end|>"]
    script = Script(processor.tokenizer, (*parts, 1))
    limits = {"max_new_tokens": len(script), "max_rounds": boxes}
    seconds, found = timed(lambda: generator.generate([request], scripts=[script], **limits), 1)
    digest = hashlib.sha256(str(list(map(int, found[0].token_ids))).encode()).hexdigest()
    return seconds, digest[:16]


STEPS, BATCH = 24, 16
SFT = f"""sft.max_steps={STEPS} sft.per_device_train_batch_size={BATCH} sft.logging_steps=1 sft.bf16=false
grounding.free_running_questions=0 grounding.feature_cache=false grounding.muon_learning_rate=0.0"""


def sft_ours(folder: Path) -> Timed:
    """Seconds of a step of the command ``sft``, by the trainer's own clock; conversations and
    images are encoded in every step."""
    data, out = build(folder), folder / f"sft-{os.getpid()}"
    words = ["sft", "--data", data, "--model", tiny(folder), "--out", out, "--quiet"]
    command(*words, *(f"--set={setting}" for setting in SFT.split()))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    runtime = [line["train_runtime"] for line in lines if "train_runtime" in line]
    return runtime[-1] / STEPS, None


def sft_plain(folder: Path) -> Timed:
    """The same step in a bare loop of PyTorch over batches that are ready made."""
    import torch

    from unireason_lib.grounding import load_model
    from unireason_lib.training.data import Examples, images_from, training_records
    from unireason_lib.training.encoding import Collator
    from unireason_lib.training.sft import freeze

    data = build(folder)
    model, processor = load_model(tiny(folder), dtype="float32", device="cpu")
    freeze(model.train())
    records = training_records(data)
    records = [records[k % len(records)] for k in range(STEPS * BATCH)]
    examples = list(Examples(records, images_from(data), processor))
    examples.sort(key=len)  # the trainer, too, makes batches of similar length
    collate = Collator(processor)
    batches = [collate(examples[k : k + BATCH]) for k in range(0, len(examples), BATCH)]
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, fused=True)
    began = time.perf_counter()
    for batch in batches:
        labels = batch.pop("labels")[:, 1:]
        hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[labels != -100])
        torch.nn.functional.cross_entropy(logits, labels[labels != -100]).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - began) / STEPS, None


CASES: dict[str, Callable[[Path], Timed]] = {
    "serialize .nii": lambda folder: serialize_ours(folder, ".nii"),
    "serialize .nii, plain": lambda folder: serialize_plain(folder, ".nii"),
    "serialize .nii.gz": lambda folder: serialize_ours(folder, ".nii.gz"),
    "serialize .nii.gz, plain": lambda folder: serialize_plain(folder, ".nii.gz"),
    "boxes": boxes_ours,
    "boxes, plain": boxes_plain,
    "build": build_ours,
    "3 boxes": lambda folder: generation(folder, 3),
    "3 boxes, plain": lambda folder: generation(folder, 3, reuse_cache=False),
    "8 boxes": lambda folder: generation(folder, 8),
    "8 boxes, plain": lambda folder: generation(folder, 8, reuse_cache=False),
    "SFT step": sft_ours,
    "SFT step, plain": sft_plain,
}

if __name__ == "__main__":
    name, where = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    elapsed, outcome = CASES[name](Path(where))
    print(json.dumps({"seconds": elapsed, "result": outcome}))
