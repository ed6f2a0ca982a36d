"""Examples that are too long, token by token: a beginning of the whole one, with whole regions, and its mask."""

from __future__ import annotations

import numpy as np
import pytest

from unireason_lib.training.encoding import IGNORED, Collator, Encoder
from unireason_lib.training.examples import Examples
from unireason_lib.training.forms import conversation


def by_boxes(study, dimension, boxes):
    """A record with so many boxes."""
    return next(r for r in study.records if r.dimension == dimension and len(r.boxes) == boxes)


@pytest.mark.parametrize("dimension, boxes", [("2d", 1), ("2d", 2), ("3d", 1), ("3d", 2)])
def test_a_cut_example_is_a_beginning_of_the_whole_one(study, tiny_model, dimension, boxes):
    record, processor = by_boxes(study, dimension, boxes), tiny_model[1]
    whole = Encoder(processor)(conversation(record, study.pictures(record)))
    ids = processor.tokenizer.convert_tokens_to_ids
    start, pad = ids("<|vision_start|>"), ids("<|image_pad|>")
    own = np.flatnonzero(whole.own)
    regions = np.flatnonzero(np.diff(own) > 1)  # own words, a region, own words
    assert len(regions) == boxes
    collate, kept = Collator(processor), set()
    for most in range(int(own[0]) + 1, len(whole)):
        (short,) = Examples([record], study.pictures, processor, max_length=most)
        n = len(short)
        assert (short.ids == whole.ids[:n]).all() and (short.own == whole.own[:n]).all()
        assert short.own[-1]  # behind it nothing would be learnt
        assert n == most or not whole.own[n:most].any()  # and no word that fits is lost
        assert all((a == b).all() for a, b in zip(short.pictures, whole.pictures, strict=False))
        assert (short.ids == start).sum() == len(short.pictures)
        batch = collate([short])
        assert int(batch["image_grid_thw"].prod(1).sum()) // 4 == (short.ids == pad).sum()
        expected = [
            t if mine else IGNORED for t, mine in zip(whole.ids[:n], whole.own[:n], strict=True)
        ]
        labels = batch["labels"][0].numpy()
        assert labels[:n].tolist() == expected and (labels[n:] == IGNORED).all()
        kept.add(sum(own[k] < n - 1 for k in regions))
    assert kept == set(range(boxes + 1))
