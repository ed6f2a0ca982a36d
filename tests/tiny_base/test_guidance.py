"""The auxiliary targets: where to look and what to read off, against the truth of the exercises."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from unireason_lib.boxes import Box2D, format_box
from unireason_lib.grounding import load_model
from unireason_lib.tiny_base.exercises import Exercise, exercise
from unireason_lib.tiny_base.guidance import GROUPS, HEADS, WEIGHT, Guide, find_targets
from unireason_lib.tiny_base.pretraining import Plan, Steps
from unireason_lib.tiny_base.shapes import Scene, Shape
from unireason_lib.training.encoding import Encoder

RING = Shape("ring", "bright", "vertically striped", Box2D(16, 0, 32, 16))  # all of token 1
BAR = Shape("bar", "dark", "plain", Box2D(34, 18, 62, 30))  # in tokens 6 and 7
ALONE = Scene(np.zeros((64, 64), np.uint8), (RING, BAR))  # 4 x 4 tokens of 16 pixels
EMPTY = Scene(np.zeros((32, 32), np.uint8), ())  # 2 x 2 tokens


@pytest.fixture(scope="module")
def targets_of(tiny_model):
    """An exercise -> its tokens as text, and its targets with heads by name."""
    processor = tiny_model[1]
    encode = Encoder(processor)

    def found(one):
        words = processor.tokenizer.batch_decode(encode(one.messages()).ids[:, None])
        images = [scene.image() for scene in one.images]
        grids = processor.image_processor(images)["image_grid_thw"][:, 1:] // 2 if images else []
        targets = find_targets(one, words, [[int(n) for n in grid] for grid in grids])
        looks = {name: [] for name in HEADS}
        for head, source, target in targets.attention.astype(int):
            looks[list(HEADS)[head]].append((int(source), int(target)))
        return words, looks, targets

    return found


@pytest.mark.parametrize("stage", ["words", "letters", "text", "one image", "several images"])
def test_every_letter_is_shown_where_to_look(stage, targets_of):
    shown = 0
    for one in (exercise(stage, k) for k in range(60)):
        words, looks, targets = targets_of(one)
        bare = [word.strip().lower() for word in words]
        marks, due = dict(looks["mark"]), dict(looks["option"])
        assert due.keys() <= dict(looks["answer"]).keys()
        for position, option in looks["option"]:
            target = dict(looks["answer"])[position]
            assert option < target <= position and bare[target] == bare[option]
            assert bare[marks[option]] == bare[position + 1] and bare[position + 1] in "abcd"
            for end in (target, option):  # the end of a phrase looks at all of it
                looked = sorted(k for source, k in looks["phrase"] if source == end)
                assert looked == list(range(looked[0], end + 1))
            assert [2, position, position + 1] in targets.letters.tolist()
        if one.letter and ("letter" in one.name or "\n" in one.reply):
            assert len(due) >= 1
            shown += 1
    assert shown >= 3


def test_a_box_looks_at_its_shape_and_at_the_name(targets_of):
    one = Exercise((EMPTY, ALONE), "Where is the bar?", f"Image 2, {format_box(BAR.box)}")
    words, looks, targets = targets_of(one)
    image = [k for k, word in enumerate(words) if word == "<|image_pad|>"]
    start, end = words.index("<|box_start|>"), words.index("<|box_end|>")
    bar = [image[4 + 6], image[4 + 7]]
    writing = {p for p, _ in looks["look"] if p >= start}
    assert writing == set(range(start, end)) and end not in writing
    assert {k for p, k in looks["look"] if p >= start} == {*bar}
    assert {words[k].strip() for p, k in looks["answer"]} == {"bar"}
    edges = [start, 34 / 64, 18 / 64, 62 / 64, 30 / 64]
    np.testing.assert_allclose(targets.edges[0], edges, rtol=1e-6)
    number = start - words[:start][::-1].index("2") - 1
    assert {k for p, k in looks["look"] if p == number - 1} == {*bar}
    assert [2, number - 1, number] in targets.letters.tolist()


def test_numbers_of_options_are_no_images(targets_of):
    """Fault: an option "image 45" behind images raised an IndexError, or was shown a shape."""
    question = "A. Image 45\nB. Image 3\nC. Image 9\nD. Image 2\nIt is image 45."
    _, looks, _ = targets_of(Exercise((ALONE,), question, "A. Image 45", "A"))
    assert looks["option"] and not looks["look"]
    _, looks, _ = targets_of(Exercise((), question, "A. Image 45", "A"))
    assert looks["option"] and not looks["look"]


def test_image_tokens_know_what_they_cover(targets_of):
    _, _, targets = targets_of(Exercise((EMPTY, ALONE), "What does image 2 show?", "A dark bar."))
    tokens = targets.tokens
    assert tokens.shape == (4 + 16, 11) and [*tokens[:, 10]] == [0] * 4 + [1] * 16
    names = [GROUPS[0][int(k)] for k in tokens[:, 1]]
    assert names == ["nothing"] * 5 + ["ring"] + ["nothing"] * 4 + ["bar"] * 2 + ["nothing"] * 8
    assert [GROUPS[1][int(k)] for k in tokens[[5, 10], 2]] == ["bright", "dark"]
    assert [GROUPS[2][int(k)] for k in tokens[[5, 10], 3]] == ["vertically", "plain"]
    np.testing.assert_allclose(tokens[5, 4:10], [0.25, 0, 0.5, 0.25, 0.375, 0.125])


def test_the_words_that_are_read_off_are_single_tokens(tiny_model):
    for group in GROUPS:
        assert all(len(tiny_model[1].tokenizer(f" {word}").input_ids) == 1 for word in group)


def test_the_loss_by_hand(tiny_checkpoint):
    """A batch with images and options: attention, early letters, edges and image tokens."""
    model, processor = load_model(tiny_checkpoint, device="cpu")
    guide = Guide(model, processor.tokenizer)
    norm, embedding = model.model.language_model.norm, model.get_input_embeddings().weight
    plan = Plan(stages=((1.0, (("one image", 12),)),), steps=1)
    ((_, batch, targets),) = Steps(plan, processor)[0]
    batch.pop("labels")
    with torch.no_grad():
        output = model.model(**batch, output_attentions=True, output_hidden_states=True)
        total, hidden = torch.zeros(()), output.hidden_states
        for index, (layer, head) in enumerate(HEADS.values()):
            shown = [row.long() for row in targets.attention if row[1] == index]
            weights = torch.stack([output.attentions[layer][r, head, a, b] for r, _, a, b in shown])
            total -= (weights + 1e-6).log().mean()
        for layer in (1, 2):
            r, _, at, token = targets.letters[targets.letters[:, 1] == layer].long().T
            logits = norm(hidden[layer + 1][r, at]) @ embedding.T
            total += cross_entropy(logits, batch["input_ids"][r, token])
        r, at = targets.edges[:, :2].long().T
        off = norm(hidden[3][r, at]) @ guide.directions - 4 * (targets.edges[:, 2:] - 0.5)
        total += torch.where(off.abs() < 0.2, off**2 / 0.4, off.abs() - 0.1).mean()
        alone = type(targets)(*(part[:0] for part in targets[:3]), targets.tokens)
        images = guide.loss(output, batch["input_ids"], alone)
        found = guide.loss(output, batch["input_ids"], targets)
    assert found.item() == pytest.approx(WEIGHT * total.item() + images.item(), rel=1e-4)
