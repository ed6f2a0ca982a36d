"""Solutions of notebook 06. Run it, ``python notebooks/solutions/06_evaluation.py``, or import its
functions."""

from collections.abc import Callable, Sequence
from math import ceil

import pandas as pd

from unireason_lib.boxes import Box, format_box
from unireason_lib.dataset.schema import box_of
from unireason_lib.evaluation import Interval, Item, open_benchmark
from unireason_lib.grounding import GroundedGenerator, Script


def proportion_missed(results: pd.DataFrame, touching: float) -> float:
    """Exercise 1: the proportion of replies in which a structure is touched by no box, from the
    table of results. The stricter the threshold, the more "misread" turns into "missed": the border
    between classes is a convention, so they are reported with the threshold. (``touching`` is also an
    argument of the notebook's ``diagnose``.)"""

    def touched(true: Box, written: Sequence[Box]) -> bool:
        return any(type(b) is type(true) and b.iou(true) >= touching for b in written)

    rows = zip(results["truth_boxes"], results["boxes"], strict=True)
    rows = [([box_of(box) for _, box in true], list(map(box_of, written))) for true, written in rows]
    return sum(any(not touched(t, written) for t in true) for true, written in rows) / len(rows)


def patients_needed(accuracy: Interval, half_width: float = 0.015) -> int:
    """Exercise 2: the patients needed for an interval of plus or minus ``half_width``, from an
    interval that was measured. The width falls with the square root of the number of patients. A
    paired comparison of two models needs fewer, if both find the same questions hard."""
    return ceil(accuracy.patients * ((accuracy.high - accuracy.low) / (2 * half_width)) ** 2)


def moved(box: Box, fraction: float) -> Box:
    """The box, moved to the right by a fraction of its width."""
    corners = list(box.as_tuple())
    n = len(corners) // 2
    step = round(fraction * (corners[n] - corners[0]))
    corners[0], corners[n] = corners[0] + step, corners[n] + step
    return type(box)(*corners)


def accuracy_of_moved(
    generator: GroundedGenerator,
    items: Sequence[Item],
    fractions: Sequence[float],
    start: Callable[[Box], str] = lambda box: f"<think>{format_box(box)}",
) -> dict[float, tuple[float, float]]:
    """Exercise 3: for each fraction of its width by which the true box is moved, the mean IoU of
    the moved boxes and the accuracy of replies that begin with them. A texture is recognized as
    long as enough of the lesion is in the crop; there is no need for a perfect box."""
    requests, outcome = [item.request(item.load()) for item in items], {}
    for fraction in fractions:
        boxes = [moved(item.truth_boxes[0][1], fraction) for item in items]
        scripts = [Script(generator.tokenizer, (start(box),)) for box in boxes]
        traces = generator.generate(requests, scripts=scripts, batch_size=50, max_new_tokens=128)
        pairs = list(zip(items, boxes, traces, strict=True))
        overlap = sum(item.truth_boxes[0][1].iou(box) for item, box, _ in pairs)
        right = sum(trace.choice == item.answer for item, _, trace in pairs)
        outcome[fraction] = overlap / len(pairs), right / len(pairs)
    return outcome


if __name__ == "__main__":
    from unireason_lib.config import load_profile
    from unireason_lib.evaluation import as_table, ask_items, mean
    from unireason_lib.grounding import Settings, load_profile_model
    from unireason_lib.notebooks import project_root

    generator = GroundedGenerator(*load_profile_model(load_profile().model, project_root()))
    phantoms = {"size": (8, 64, 64), "frame": generator.frame, "limit": 60}
    benchmark = open_benchmark("phantom", **phantoms)
    lines = ask_items(generator, benchmark.items, settings=Settings(256, 4), batch_size=30)
    results = as_table(lines)
    for touching in (0.1, 0.3, 0.5):
        print(f"1. missed from {touching}: {100 * proportion_missed(results, touching):.0f} %")
    print(f"2. {patients_needed(mean(results))} patients")
    phantoms |= {"families": ["lesion analysis"], "a_patient": 1, "prior_studies": 0}
    items = [item for item in open_benchmark("phantom", **phantoms) if item.kind == "texture"]
    fractions = (0, 0.25, 0.5, 0.75, 1)
    for fraction, (overlap, right) in accuracy_of_moved(generator, items, fractions).items():
        print(f"3. moved by {fraction}: IoU {overlap:.2f}, {100 * right:.0f} % right")
