"""The loss mask, token by token; equality with what the processor makes; caches and components."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from unireason_lib.errors import DatasetError
from unireason_lib.grounding import load_model
from unireason_lib.training.encoding import (
    COMPONENTS,
    IGNORED,
    Collator,
    Encoder,
    FeatureCache,
    conversation,
    injects,
    with_features,
)

from .conftest import FAMILIES


def encoded(study, processor, dimension, boxes):
    record = study.with_boxes(dimension, boxes)
    return Encoder(processor)(conversation(record, study.images(record)))


@FAMILIES
@pytest.mark.parametrize("dimension, boxes", [("2d", 1), ("3d", 2)])
def test_loss_is_on_model_generated_tokens_only(families, family, dimension, boxes):
    checkpoint, study = families[family]
    processor = AutoProcessor.from_pretrained(checkpoint)
    record, one = study.with_boxes(dimension, boxes), encoded(study, processor, dimension, boxes)
    assert processor.tokenizer.decode(one.ids[one.loss_mask]) == record.reply + "<|im_end|>"
    first = int(one.loss_mask.argmax())
    rest = processor.tokenizer.convert_ids_to_tokens(one.ids[first:][~one.loss_mask[first:]])
    assert set(rest[:-1]) == {"<|vision_start|>", "<|image_pad|>", "<|vision_end|>"}  # whole crops
    reply = record.load(study.images(record))[1]["content"]
    assert rest.count("<|vision_start|>") == sum(part["type"] == "image" for part in reply)


@pytest.mark.parametrize("dimension", ["2d", "3d"])
def test_ids_mask_and_patches_are_those_of_the_processor(study, tiny_model, dimension):
    record, processor = study.with_boxes(dimension, 2), tiny_model[1]
    messages = conversation(record, study.images(record))
    one = Encoder(processor)(messages)
    batch = Collator(processor)([one])
    how = {"return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    reference = processor.apply_chat_template(messages, tokenize=True, **how)
    assert one.ids.tolist() == reference["input_ids"][0].tolist()
    assert one.loss_mask.tolist() == reference["assistant_masks"].bool().squeeze().tolist()
    assert torch.equal(batch["image_grid_thw"], reference["image_grid_thw"])
    difference = (batch["pixel_values"] - reference["pixel_values"]).abs()
    first = int(batch["image_grid_thw"][: len(record.image_ids)].prod(1).sum())
    assert difference[:first].max() < 1e-5  # the images of the question
    # crops are enlarged by Pillow here, by torchvision there: seldom a grey level or two apart
    assert difference.max() < 2.1 / 255 / 0.26 and (difference > 1e-5).float().mean() < 0.01


def test_a_batch_is_padded_on_the_right_without_loss_there(study, tiny_model):
    processor = tiny_model[1]
    two = [encoded(study, processor, dimension, 1) for dimension in ("2d", "3d")]
    batch = Collator(processor)(two)
    assert batch["input_ids"].shape[1] % 8 == 0
    for row, one in enumerate(two):
        n, labels = len(one), batch["labels"][row].numpy()
        assert batch["attention_mask"][row].sum() == n and batch["attention_mask"][row, :n].all()
        assert (labels[:n] == np.where(one.loss_mask, one.ids, IGNORED)).all()
        assert (labels[n:] == IGNORED).all()
    tokens = sum(int(t * h * w) // 4 for t, h, w in batch["image_grid_thw"].tolist())
    assert int(batch["mm_token_type_ids"].sum()) == tokens


@FAMILIES
def test_images_are_encoded_once_and_features_can_be_learnt_from(families, family):
    """Carried by examples (SFT) or looked up by the model (RL). Features that were made in
    inference mode could not be used by a backward pass."""
    checkpoint, study = families[family]
    model, processor = load_model(checkpoint, device="cpu")
    two = [encoded(study, processor, dimension, 1) for dimension in ("2d", "3d")]
    pixels, calls = Collator(processor)(two), []
    expected = model(**pixels).loss
    model.model.visual.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0]))
    cache = FeatureCache(model)
    with torch.inference_mode():
        cached = with_features([*two, *two], processor, model)
        cache.attach(model)
        model(**pixels)
    carried = Collator(processor)(cached[2:])
    assert "pixel_values" not in carried and "mm_encoder_outputs" in carried
    for batch in (carried, pixels):
        loss = model(**batch).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert model.get_input_embeddings().weight.grad is not None
        model.zero_grad(set_to_none=True)
    different = {image.tobytes(): image for one in two for image in one.images}.values()
    patches = sum(image.size // 3 // 64 for image in different)
    assert [len(one) for one in calls] == [patches] * 2 and len(cache.features) == len(different)


@pytest.mark.parametrize("components", COMPONENTS)
def test_components_differ_in_the_reply_only(study, components):
    record = study.with_boxes("2d", 2)
    user, assistant = conversation(record, study.images(record), components)
    assert user["content"][-1]["text"] == record.user_text
    words = "".join(part.get("text", "") for part in assistant["content"])
    images = [part for part in assistant["content"] if part["type"] == "image"]
    assert words.endswith(record.truth)
    assert bool(images) == injects(components) == (components == "full")
    assert ("<|box_start|>" in words) == (components in ("full", "no regions"))
    assert ("<think>" in words) == (components != "answer")


def test_what_cannot_be_encoded_is_refused(study, tiny_model):
    with pytest.raises(DatasetError, match="poem"):
        conversation(study.records[0], study.images(study.records[0]), "poem")
    image = {"type": "image", "image": Image.new("RGB", (64, 64))}
    content = [image, {"type": "text", "text": "<|image_pad|>"}]
    with pytest.raises(DatasetError, match="image tokens"):
        Encoder(tiny_model[1])([{"role": "user", "content": content}])


def test_records_of_the_other_scale_are_written_anew(families):
    """What is learnt from a record in pixels is what is learnt from one in thousandths."""
    (_, pixels), (checkpoint, thousandths) = families.values()
    encoder = Encoder(AutoProcessor.from_pretrained(checkpoint))
    by_id = {record.id: record for record in pixels.records}
    record = thousandths.with_boxes("3d", 2)
    for components in COMPONENTS:
        one, other = (
            encoder(conversation(one, pixels.images(one), components, encoder.frame))
            for one in (record, by_id[record.id])
        )
        assert (one.ids == other.ids).all() and (one.loss_mask == other.loss_mask).all()


def test_a_longer_conversation_is_cut_where_no_image_is_cut(study, tiny_model):
    """The beginning stays, up to a token with loss, with as many images as it has."""
    record, processor = study.with_boxes("3d", 2), tiny_model[1]
    encoder, messages = Encoder(processor), conversation(record, study.images(record))
    whole, vision_end = encoder(messages), processor.tokenizer.get_vocab()["<|vision_end|>"]
    question = int(np.flatnonzero(whole.loss_mask)[0])
    for limit in range(question + 1, len(whole), 3):
        one = encoder(messages, limit)
        assert question < len(one) <= limit and (one.ids == whole.ids[: len(one)]).all()
        assert len(one.loss_mask) == len(one) and one.loss_mask[-1]
        assert len(one.images) == (one.ids == vision_end).sum()
        assert not whole.loss_mask[len(one) : limit].any()  # no more than needed
    assert len(encoder(messages, len(whole))) == len(whole) and not len(encoder(messages, question))


@FAMILIES
def test_qwens_own_template_gets_marks_and_another_is_refused(families, family):
    """The error named a function that did not exist, and stock checkpoints could not be trained.
    The template of Qwen3-VL would leave out the crops."""
    checkpoint, study = families[family]
    record, processor = study.with_boxes("2d", 1), AutoProcessor.from_pretrained(checkpoint)
    messages = conversation(record, study.images(record))
    expected = Encoder(processor)(messages)
    official = files("trl") / "chat_templates" / f"{family}.jinja"
    processor.chat_template = official.read_text(encoding="utf-8")
    one = Encoder(processor)(messages)
    assert (one.ids == expected.ids).all() and (one.loss_mask == expected.loss_mask).all()
    processor.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(DatasetError, match=r"processor\.chat_template"):
        Encoder(processor)
