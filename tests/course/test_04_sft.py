"""The functions of notebook 04 as they are written there, and its solutions."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.config import load_profile
from unireason_lib.dataset.build import phantom_set
from unireason_lib.evaluation import as_table, summary
from unireason_lib.grounding import load_model
from unireason_lib.training import encoding
from unireason_lib.training.data import images_from, training_records

NAME = "04_sft"


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_model):
    """A few records of slices and volumes, and what gives their images."""
    frame = encoding.Encoder(tiny_model[1]).frame
    folder = tmp_path_factory.mktemp("data") / "set"
    phantom_set(folder, 12, 6, frame, load_profile("smoke").dataset)
    records = list(training_records(folder))
    return SimpleNamespace(
        records=records,
        images=images_from(folder),
        boxed={one.dimension: one for one in records if one.boxes},
    )


@pytest.fixture(scope="module")
def functions(tiny_model):
    """The functions of the notebook, over the objects that its cells would have made."""
    processor = tiny_model[1]
    names = {"np": np, "pd": pd, "processor": processor, "tokenizer": processor.tokenizer}
    names |= {"frame": encoding.Encoder(processor).frame, "encoding": encoding, "summary": summary}
    return functions_of(NAME, **names)


def line(number, **more):
    """A line of results of an imagined patient, with an answer that follows from its reasoning."""
    values = {"id": f"q{number}", "patient": f"p{number}", "dimension": "2d", "family": "f"}
    values |= {"options": {"A": "liver", "B": "spleen"}, "truth": "A", "prediction": "A"}
    values |= {"text": "<think>It is the liver.</think>A. liver", "correct": True}
    return values | {"in_format": True, "kind": "k", "iou_all": 0.5} | more


def test_comments_say_what_is_wrong(functions):
    wrong = {"prediction": "B", "correct": False}
    lines = [line(0), line(1, **wrong), line(2, text="<think>Hm.</think>B. spleen", **wrong)]
    lines.append(line(3, prediction=None, correct=False, text="A thought", iou_all=None))
    table = as_table(lines)
    comments = [functions.comment(row) for _, row in table.iterrows()]
    assert comments == [
        "Right: A. IoU with the true boxes: 0.50. The reasoning ends on it.",
        "Wrong: B, not A. IoU with the true boxes: 0.50. The reasoning ends on another option.",
        "Wrong: B, not A. IoU with the true boxes: 0.50. The reasoning names no option.",
        "Wrong: no option, not A. The reasoning names no option.",
    ]


def test_intervals_are_by_dimension_and_only_where_a_measure_applies(functions):
    functions.tables = {"a": as_table([line(k, correct=k < 3) for k in range(6)])}
    ((row, (value, low, high)),) = functions.measured("a", "accuracy", "accuracy").items()
    assert row == "2D accuracy" and value == 50 and 0 < low < 50 < high < 100
    assert functions.measured("a", "iou_average_box", "IoU", 1) == {}


def test_the_solutions_run(study, tiny_model, tiny_checkpoint):
    solutions, (model, processor) = solutions_of(NAME), tiny_model
    records, record = list(study.boxed.values()), study.boxed["3d"]
    both = solutions.train_with_both_masks(
        lambda: load_model(tiny_checkpoint, device="cpu")[0], processor, record, study.images, 2
    )
    assert len(both) == 2 and all(map(math.isfinite, sum(both.values(), ())))
    assert solutions.accuracy_of_letters(model, processor, records, study.images) in (0, 0.5, 1)
    encoder = encoding.Encoder(processor)
    two = [encoder(encoding.conversation(record, study.images(record))) for record in records]
    counts = np.array([one.loss_mask.sum() for one in two])
    assert solutions.weights(two) == pytest.approx(counts / counts.sum())
    assert solutions.weights(two, alike=True) == [0.5, 0.5]
