"""The mask of the loss, token by token, and equality with what the processor makes."""

import numpy as np
import pytest
import torch
from PIL import Image

from unireason_lib.errors import DatasetError
from unireason_lib.training.encoding import IGNORED, Collator, Encoder
from unireason_lib.training.examples import Examples, read_too_long, shortened
from unireason_lib.training.forms import FORMS, conversation

CROPPED = "<|vision_end|>"


def by_boxes(study, dimension, boxes):
    """A record with so many boxes."""
    return next(r for r in study.records if r.dimension == dimension and len(r.boxes) == boxes)


@pytest.mark.parametrize("dimension, boxes", [("2d", 1), ("2d", 2), ("3d", 1), ("3d", 2)])
def test_the_loss_is_on_what_the_assistant_wrote_and_on_nothing_else(
    study, tiny_model, dimension, boxes
):
    record = by_boxes(study, dimension, boxes)
    processor = tiny_model[1]
    encoded = Encoder(processor)(conversation(record, study.pictures(record)))
    decode = processor.tokenizer.decode
    own = decode(encoded.ids[encoded.own])
    assert own == record.reply + "<|im_end|>"
    # token by token: everything after the assistant's header is own, but for whole crops and the last line break
    text = processor.tokenizer.convert_ids_to_tokens(encoded.ids)
    start = len(text) - text[::-1].index("<|im_start|>") + 2
    inside, expected = False, []
    for at, token in enumerate(text):
        inside = inside or token == "<|vision_start|>"
        expected.append(at >= start and not inside)
        inside = inside and token != "<|vision_end|>"
    expected[-1] = False
    assert encoded.own.tolist() == expected
    assert sum(token == "<|vision_start|>" for token in text[start:]) == len(
        [p for p in record.messages[1]["content"] if p["type"] == "image"]
    )


@pytest.mark.parametrize("dimension", ["2d", "3d"])
def test_ids_and_patches_are_those_of_the_processor(study, tiny_model, dimension):
    record = by_boxes(study, dimension, 2)
    processor = tiny_model[1]
    messages = conversation(record, study.pictures(record))
    encoded = Encoder(processor)(messages)
    batch = Collator(processor)([encoded])
    reference = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
    )
    assert encoded.ids.tolist() == reference["input_ids"][0].tolist()
    assert encoded.own.tolist() == reference["assistant_masks"].bool().squeeze().tolist()
    assert torch.equal(batch["image_grid_thw"], reference["image_grid_thw"])
    difference = (batch["pixel_values"] - reference["pixel_values"]).abs()
    first = int(batch["image_grid_thw"][: len(record.image_ids)].prod(1).sum())
    assert difference[:first].max() < 1e-5  # the pictures of the question
    # crops are enlarged by Pillow here and by torchvision there: seldom one or two of 255 grey levels apart
    assert difference.max() < 2.1 / 255 / 0.26 and (difference > 1e-5).float().mean() < 0.01


def test_a_batch_is_padded_on_the_right_without_loss_there(study, tiny_model):
    processor = tiny_model[1]
    encode = Encoder(processor)
    two = [
        encode(conversation(r, study.pictures(r)))
        for r in (by_boxes(study, "2d", 1), by_boxes(study, "3d", 1))
    ]
    batch = Collator(processor, multiple=8)(two)
    assert batch["input_ids"].shape[1] % 8 == 0
    for row, one in enumerate(two):
        n = len(one)
        assert batch["attention_mask"][row].sum() == n and batch["attention_mask"][row, :n].all()
        labels = batch["labels"][row].numpy()
        assert (labels[:n][one.own] == one.ids[one.own]).all()
        assert (labels[:n][~one.own] == IGNORED).all() and (labels[n:] == IGNORED).all()
    tokens = sum(int(t * h * w) // 4 for t, h, w in batch["image_grid_thw"].tolist())
    assert int(batch["mm_token_type_ids"].sum()) == tokens


def test_too_long_replies_are_cut_before_a_crop_and_never_in_it(study, tiny_model):
    record = by_boxes(study, "3d", 2)
    processor = tiny_model[1]
    whole = Encoder(processor)(conversation(record, study.pictures(record)))
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    prompt = int(np.flatnonzero(whole.own)[0])
    for most in range(prompt + 1, len(whole)):
        short = shortened(whole, most, end)
        assert len(short) <= most and short.own.any()
        opened, closed = (short.ids == start).sum(), (short.ids == end).sum()
        assert opened == closed == len(short.pictures)
        pictures = sum(p.shape[0] * p.shape[1] // 256 for p in short.pictures)
        assert (
            short.ids == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ).sum() == pictures
        Collator(processor)([short])
    assert shortened(whole, prompt, end) is None


def test_what_does_not_fit_is_listed(study, tiny_model, tmp_path):
    lengths = Examples(study.records, study.pictures, tiny_model[1]).lengths
    most = int(np.median(lengths))
    some = Examples(
        study.records, study.pictures, tiny_model[1], max_length=most, listed=tmp_path / "long"
    )
    too_long = read_too_long(tmp_path / "long")
    assert max(some.lengths) <= most
    assert len(too_long) == sum(n > most for n in lengths)
    left_out = sum(one.kept == 0 for one in too_long)
    assert len(some) == len(lengths) - left_out
    assert [some.record(k).id for k in range(len(some))] == [
        r.id for r in study.records if r.id not in {one.id for one in too_long if not one.kept}
    ]
    how = {"max_length": most, "keep": False, "listed": tmp_path / "lazy"}
    lazy = Examples(study.records, study.pictures, tiny_model[1], **how)
    assert read_too_long(tmp_path / "lazy") == []
    for _ in range(2):  # listed when met, once
        assert all(len(lazy[k]) <= most for k in range(len(lazy)))
    assert sorted(one.id for one in read_too_long(tmp_path / "lazy")) == sorted(
        one.id for one in too_long
    )
    assert len((tmp_path / "lazy").read_text().splitlines()) == len(too_long)


def test_estimated_lengths_order_examples_as_true_ones_do(study, tiny_model):
    true = Examples(study.records, study.pictures, tiny_model[1]).lengths
    estimated = Examples(study.records, study.pictures, tiny_model[1], keep=False).lengths
    assert np.corrcoef(true, estimated)[0, 1] > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_forms_differ_in_the_reply_only(study, tiny_model, form):
    record = by_boxes(study, "2d", 2)
    user, assistant = conversation(record, study.pictures(record), form)
    assert user["content"][-1]["text"] == record.user_text
    words = "".join(part.get("text", "") for part in assistant["content"])
    pictures = [part for part in assistant["content"] if part["type"] == "image"]
    assert words.endswith(record.truth)
    assert bool(pictures) == (form == "full")
    assert ("<|box_start|>" in words) == (form in ("full", "no regions"))
    assert ("<think>" in words) == (form != "answer")


def test_an_unknown_form_is_named(study):
    with pytest.raises(DatasetError, match="poem"):
        conversation(study.records[0], study.pictures(study.records[0]), "poem")


def test_a_template_without_marks_is_refused(tiny_model):
    from copy import copy

    processor = copy(tiny_model[1])
    processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DatasetError, match="generation marks"):
        Encoder(processor)


def test_picture_tokens_in_a_text_are_refused(tiny_model):
    picture = Image.new("RGB", (64, 64))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "<|image_pad|>"}]
    with pytest.raises(DatasetError, match="picture tokens"):
        Encoder(tiny_model[1])([{"role": "user", "content": content}])
