"""How much the kept cache and batching save in grounded generation.

All weights are random: speed does not depend on what a model knows. What it writes is scripted where it has
to point (see :class:`unireason_lib.grounding.Script`) and its own greedy choice in between, so both sides do
the same work, and must write the same tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from unireason_lib.grounding import (
    GroundedGenerator,
    GroundedRequest,
    Script,
    Trace,
    build_tiny,
    load_model,
)

OPTIONS = {"A": "liver", "B": "spleen", "C": "left kidney", "D": "right kidney"}


def pictures(count: int, side: int, seed: int = 0) -> list[Image.Image]:
    """Random pictures of ``side`` x ``side`` pixels."""
    draw = np.random.default_rng(seed)
    return [
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def pointing_script(tokenizer, boxes: int, between: int, side: int, depth: int) -> Script:
    """A reply that points ``boxes`` times, one slice each, with ``between`` tokens of the model's own around them."""
    parts: list[str | int] = []
    for i in range(boxes):
        z, x1, x2 = i % depth, i % 8, i % 8 + side // 4
        parts += [between, f"<|box_start|>[{x1},{x1},{z},{x2},{x2},{z + 1}]<|box_end|>"]
    return Script(tokenizer, (*parts, between))


def side_by_side(
    runs: dict[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, float], dict[str, object]]:
    """Median seconds of each run, taken in turns so that a change of the machine's pace hits all alike.

    Returns:
        ``(seconds, results)`` by name; the results are those of the last turn.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, object] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            results[name] = run()
            taken[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in taken.items()}, results


SHORT, LONG = 1, 24
"""Tokens of the model's own choice before each box; the box itself is about seventeen. With the cache kept, a reply
costs mostly its own tokens, so the ratio falls as replies grow: both lengths are measured."""


def kept_against_again(
    model, processor, slices: Sequence[Image.Image], boxes: int, repeats: int, between: int = SHORT
) -> tuple[dict[str, float], dict[str, list[Trace]]]:
    """One reply about a volume, with the cache kept (``ours``) and with everything encoded again (``baseline``).

    Args:
        model, processor: Any checkpoint.
        slices: The volume.
        boxes: How often the reply points, at one slice each.
        repeats: Turns of both.
        between: Tokens of the model's own choice before each box.

    Returns:
        Median seconds and traces of both.
    """
    kept, again = (
        GroundedGenerator(model, processor),
        GroundedGenerator(model, processor, reuse_cache=False),
    )
    side = kept.frame.size(slices[0].height, slices[0].width)[1]
    request = GroundedRequest("Where is the lesion?", slices, OPTIONS, "3d")
    script = pointing_script(processor.tokenizer, boxes, between, side, len(slices))
    options = {"scripts": [script], "max_new_tokens": len(script), "max_rounds": boxes}
    return side_by_side(
        {
            "baseline": lambda: again.generate([request], **options),
            "ours": lambda: kept.generate([request], **options),
        },
        repeats,
    )


def cost_by_boxes(
    model, processor, slices: Sequence[Image.Image], counts: Sequence[int], repeats: int
) -> dict[str, list[tuple[int, float]]]:
    """Seconds a reply against the number of boxes in it.

    Returns:
        ``{"ours": [(boxes, seconds), ...], "baseline": [...]}``; see :func:`kept_against_again`.
    """
    curves: dict[str, list[tuple[int, float]]] = {"ours": [], "baseline": []}
    for boxes in counts:
        seconds, _ = kept_against_again(model, processor, slices, boxes, repeats)
        for name, curve in curves.items():
            curve.append((boxes, seconds[name]))
    return curves


def cost_by_slices(
    model, processor, side: int, counts: Sequence[int], repeats: int
) -> dict[str, list[tuple[int, float]]]:
    """Seconds that one more box costs, against the number of slices: the difference of 5 boxes and 1, divided by 4.

    Args:
        model, processor: Any checkpoint.
        side: Height and width of the slices in pixels.
        counts: Numbers of slices.
        repeats: Turns; medians are taken.

    Returns:
        ``{"ours": [(slices, seconds), ...], "baseline": [...]}``.
    """
    curves: dict[str, list[tuple[int, float]]] = {"ours": [], "baseline": []}
    for count in counts:
        few, _ = kept_against_again(model, processor, pictures(count, side), 1, repeats)
        many, _ = kept_against_again(model, processor, pictures(count, side), 5, repeats)
        for name, curve in curves.items():
            curve.append((count, (many[name] - few[name]) / 4))
    return curves


def bench_cache(repeats: int = 3, slices: int = 32) -> list[dict]:
    """Three and eight boxes in a 32-slice volume, cache kept against everything encoded again after every box.

    The model has hidden size 256 and 6 layers, 14-pixel patches and Qwen2.5-VL's limits, so that 32 slices of
    256 x 256 are about 2,650 tokens as in the paper.

    Returns:
        One row a number of boxes: seconds of both, ratio, target, whether all tokens are the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, processor = _paper_shaped(Path(folder) / "model")
    rows = []
    for boxes, between, target in ((3, SHORT, 2.5), (8, SHORT, 5.0), (8, LONG, None)):
        seconds, traces = kept_against_again(
            model, processor, pictures(slices, 256), boxes, repeats, between
        )
        ours, baseline = traces["ours"][0], traces["baseline"][0]
        ratio, same = seconds["baseline"] / seconds["ours"], ours.token_ids == baseline.token_ids
        rows.append(
            {
                "name": f"{slices} slices, {boxes} boxes, {sum(ours.own_mask)} own tokens: kept cache / encode again",
                "baseline_s": seconds["baseline"],
                "ours_s": seconds["ours"],
                "ratio": ratio,
                "target": target,
                "same_tokens": same,
                "prompt_tokens": len(ours.prompt_ids),
                "reply_tokens": len(ours.token_ids),
                "ok": same and ratio >= (target or 0),
            }
        )
    return rows


def bench_cost_of_a_box(repeats: int = 3, counts: Sequence[int] = (4, 8, 16, 32)) -> list[dict]:
    """What one more box costs, against the number of slices, on the model of :func:`bench_cache`.

    Returns:
        One row a number of slices. The last is ok when a box at most slices costs at most 1.5 times one at fewest.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, processor = _paper_shaped(Path(folder) / "model")
    curves = cost_by_slices(model, processor, 256, counts, repeats)
    rows = [
        {
            "name": f"one more box, {slices} slices",
            "slices": slices,
            "baseline_s": baseline,
            "ours_s": ours,
            "ratio": baseline / ours,
        }
        for (slices, ours), (_, baseline) in zip(curves["ours"], curves["baseline"], strict=True)
    ]
    growth = {name: curve[-1][1] / curve[0][1] for name, curve in curves.items()}
    name = (
        f"one more box, growth of its cost from {counts[0]} to {counts[-1]} slices: baseline / ours"
    )
    ok = growth["ours"] <= 1.5
    return [
        *rows,
        {"name": name, "growth": growth, "ratio": growth["baseline"] / growth["ours"], "ok": ok},
    ]


def bench_batching(
    repeats: int = 3, requests: int = 16, slices: int = 8, new_tokens: int = 48
) -> list[dict]:
    """Own tokens a second of 16 requests in one batch against one at a time, tiny checkpoint, 8-slice volumes."""
    with tempfile.TemporaryDirectory() as folder:
        model, processor = load_model(build_tiny(Path(folder) / "model"), device="cpu")
        generator = GroundedGenerator(model, processor)
        asked = [
            GroundedRequest(
                "Where is the lesion?", pictures(slices, 64, seed), OPTIONS, "3d", id=str(seed)
            )
            for seed in range(requests)
        ]
        scripts = [
            pointing_script(processor.tokenizer, 1 + i % 3, 4 + i % 5, 64, slices)
            for i in range(requests)
        ]
        seconds, traces = side_by_side(
            {
                "baseline": lambda: generator.generate(
                    asked, scripts=scripts, max_new_tokens=new_tokens, batch_size=1
                ),
                "ours": lambda: generator.generate(
                    asked, scripts=scripts, max_new_tokens=new_tokens
                ),
            },
            repeats,
        )
    tokens = {name: sum(sum(trace.own_mask) for trace in found) for name, found in traces.items()}
    ratio = (tokens["ours"] / seconds["ours"]) / (tokens["baseline"] / seconds["baseline"])
    same = [t.token_ids for t in traces["ours"]] == [t.token_ids for t in traces["baseline"]]
    return [
        {
            "name": f"{requests} requests, {slices}-slice volumes: one batch / one at a time (own tokens a second)",
            "baseline_s": seconds["baseline"],
            "ours_s": seconds["ours"],
            "ratio": ratio,
            "target": 3.0,
            "same_tokens": same,
            "ok": same and ratio >= 3.0,
        }
    ]


def bench_rollouts(
    repeats: int = 1, prompts: int = 8, rollouts: int = 8, slices: int = 8
) -> list[dict]:
    """Rollouts of one RL step: all in one batch, those of a prompt sharing its encoding, against one at a time with
    everything encoded again after every box. Replies are sampled and made to point one to three times.

    Returns:
        One row: seconds of both, ratio of the replies a second, target, whether all replies point alike.
    """
    with tempfile.TemporaryDirectory() as folder:
        model, processor = load_model(build_tiny(Path(folder) / "model"), device="cpu")
    together = GroundedGenerator(model, processor)
    alone = GroundedGenerator(model, processor, reuse_cache=False)
    asked = [
        GroundedRequest(
            "Where is the lesion?", pictures(slices, 64, seed), OPTIONS, "3d", id=str(seed)
        )
        for seed in range(prompts)
    ]
    scripts = [
        pointing_script(processor.tokenizer, 1 + k % 3, 4 + k % 5, 64, slices)
        for k in range(prompts)
    ]
    options = {"max_new_tokens": max(map(len, scripts)), "temperature": 1.0}

    def one_by_one() -> list[Trace]:
        found = []
        for request, script in zip(asked, scripts, strict=True):
            for seed in range(rollouts):
                found += alone.generate([request], scripts=[script], seed=seed, **options)
        return found

    seconds, traces = side_by_side(
        {
            "baseline": one_by_one,
            "ours": lambda: together.generate(asked, samples=rollouts, scripts=scripts, **options),
        },
        repeats,
    )
    points = {name: [len(trace.boxes) for trace in found] for name, found in traces.items()}
    ratio, same = seconds["baseline"] / seconds["ours"], points["baseline"] == points["ours"]
    name = f"{prompts} prompts x {rollouts} rollouts, {slices}-slice volumes: together / one at a time, encoding again"
    return [
        {
            "name": name,
            "baseline_s": seconds["baseline"],
            "ours_s": seconds["ours"],
            "ratio": ratio,
            "target": 5.0,
            "replies_per_s": prompts * rollouts / seconds["ours"],
            "same_boxes": same,
            "ok": same and ratio >= 5.0,
        }
    ]


def _paper_shaped(folder: Path):
    sizes = {
        "hidden": 256,
        "layers": 6,
        "patch_size": 14,
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 1280,
    }
    return load_model(build_tiny(folder, **sizes), device="cpu")
