"""Solutions of notebook 00. Run it, ``python notebooks/solutions/00_quickstart.py``, or import its
functions."""

from itertools import count, islice

from PIL import ImageOps

from unireason_lib.boxes import Box2D
from unireason_lib.evaluation import open_benchmark, wilson
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, load_profile_model


def questions_for_width(points: float, proportion: float = 0.4) -> int:
    """Exercise 1: the number of questions for which Wilson's interval is at most ``points``
    percentage points wide, if this proportion of the answers is right. Four times as many questions
    halve the width."""

    def width(n: int) -> float:
        low, high = wilson(proportion * n, n)
        return 100 * (high - low)

    return next(n for n in count(1) if width(n) <= points)


def answers_changed(
    generator: GroundedGenerator, patients: int = 20, **settings: int
) -> tuple[int, int, int]:
    """Exercise 2: the number of answers about textures that change when boxes fetch nothing, and
    how many answers are right with crops and without."""
    about = {"families": ("lesion analysis",), "a_patient": 1, "frame": generator.frame}
    benchmark = open_benchmark("phantom", limit=6 * patients, prior_studies=0, **about)
    items = list(islice((item for item in benchmark if item.kind == "texture"), patients))
    requests = [item.request(item.load()) for item in items]
    replies = [generator.generate(requests, **settings)]
    replies.append(generator.generate(requests, **settings | {"max_rounds": 0}))
    changed = sum(a.choice != b.choice for a, b in zip(*replies, strict=True))
    right = [
        sum(one.choice == item.answer for one, item in zip(traces, items, strict=True))
        for traces in replies
    ]
    return changed, *right


def boxes_that_follow(
    generator: GroundedGenerator, patients: int = 20, **settings: int
) -> tuple[int, int]:
    """Exercise 3: the number of replies whose first box overlaps the mirrored first box of the
    original image with an IoU of 0.5 or more, and the number of pairs in which both replies have a
    box. The boxes of a model that knows only where livers lie do not follow the mirroring."""
    about = {"families": ("spatial localization",), "a_patient": 1, "frame": generator.frame}
    benchmark = open_benchmark("phantom", dimension="2d", limit=patients, prior_studies=0, **about)
    originals = [item.request(item.load()) for item in benchmark]
    mirrored = [
        GroundedRequest(one.question, [ImageOps.mirror(one.images[0])], one.options, id=one.id)
        for one in originals
    ]
    follow = both = 0
    traces = zip(*(generator.generate(r, **settings) for r in (originals, mirrored)), strict=True)
    for plain, flipped in traces:
        if plain.boxes and flipped.boxes:
            box, width = plain.boxes[0], generator.frame.aligned(plain.request.images[0]).width
            expected = Box2D(width - box.x2, box.y1, width - box.x1, box.y2)
            follow += flipped.boxes[0].iou(expected) >= 0.5
            both += 1
    return follow, both


if __name__ == "__main__":
    from unireason_lib.config import load_profile
    from unireason_lib.notebooks import project_root

    low, high = wilson(40, 100)
    print(f"1. {100 * low:.0f} to {100 * high:.0f} %; {questions_for_width(6)} questions for 6 points")
    profile = load_profile()
    generator = GroundedGenerator(*load_profile_model(profile.model, project_root()))
    limits = {name: getattr(profile.generation, name) for name in ("max_new_tokens", "max_rounds")}
    changed, with_crops, without = answers_changed(generator, batch_size=10, **limits)
    print(f"2. {changed} of 20 answers change; {with_crops} right with crops, {without} without")
    follow, both = boxes_that_follow(generator, batch_size=20, **limits)
    print(f"3. the first box follows in {follow} of {both} replies")
