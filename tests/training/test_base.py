"""The generic exercises, and the loop that teaches them."""

import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from unireason_lib.boxes import BOX_END, BOX_START, Box2D, format_box, parse_boxes
from unireason_lib.dataset.sources.phantom import LABELS
from unireason_lib.grounding import load_model
from unireason_lib.training.base import guidance, skills, tasks
from unireason_lib.training.base import pretrain as pretraining
from unireason_lib.training.base.guidance import HEADS, WEIGHT, Guide, collate_hops, find_hops
from unireason_lib.training.base.pretrain import Batches, Plan, pretrain
from unireason_lib.training.base.seeing import (
    NOTHING,
    WORDS,
    Sights,
    collate_sights,
    find_sights,
    picture_tokens,
)
from unireason_lib.training.base.shapes import FORMS, NOUN, SHADES, TEXTURES, Picture, Shape, draw
from unireason_lib.training.base.skills import measure, summary
from unireason_lib.training.base.tasks import HELD_OUT, STAGES, UNASKED, Exercise, exercise
from unireason_lib.training.encoding import Collator, Encoder
from unireason_lib.training.logbook import read_log
from unireason_lib.training.loss import own_token_loss


def words_of(one):
    return " ".join(part.get("text", "") for message in one.messages for part in message["content"])


@pytest.fixture(scope="module")
def exercises():
    return [exercise(stage, k) for stage in STAGES for k in range(250)]


def test_boxes_are_those_of_the_pixels():
    for seed in range(20):
        alone = draw(random.Random(seed), count=1, textured=0.0)
        (shape,) = alone.shapes
        x1, y1, x2, y2 = (int(n) for n in shape.box.as_tuple())
        inside = alone.pixels[y1:y2, x1:x2].astype(float)
        outside = np.concatenate(
            [alone.pixels[: max(1, y1 - 3)].ravel(), alone.pixels[y2 + 3 :].ravel()]
        )
        middle = np.median(outside)
        assert (
            (inside.max() > middle + 15)
            if shape.shade == "bright"
            else (inside.min() < middle - 15)
        )
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
        assert shape.area <= shape.box.area


def test_the_same_number_gives_the_same_exercise():
    def content(one):
        pictures = [part["image"] for part in one.messages[0]["content"] if part["type"] == "image"]
        return words_of(one), [(picture.size, picture.tobytes()) for picture in pictures]

    for stage in STAGES:
        one = content(exercise(stage, 5))
        assert one == content(exercise(stage, 5))
        assert one != content(exercise(stage, 6)) and one != content(exercise(stage, 5, seed=1))


def test_nothing_of_the_study_is_in_them(exercises):
    organs = {word for name in LABELS.values() for word in name.split()} - {
        "left",
        "right",
        "lesion",
        "body",
    }
    study = organs | {
        "lesion",
        "patient",
        "slice",
        "slices",
        "volume",
        "axial",
        "scan",
        "CT",
        "organ",
    }
    for one in exercises:
        found = study & set(re.findall(r"[A-Za-z]+", words_of(one)))
        assert not found, (one.name, found)
        assert "<think>" not in words_of(one)
        assert not any(hasattr(box, "z1") for box in parse_boxes(words_of(one)))  # no cuboids
        assert all(
            part["type"] == "text" for part in one.messages[1]["content"]
        )  # no regions put back


def test_letters_are_uniform_and_name_the_right_option(exercises):
    chosen = [one for one in exercises if one.letter]
    share = [sum(one.letter == letter for one in chosen) / len(chosen) for letter in "ABCD"]
    assert all(abs(s - 0.25) < 4 * (0.25 * 0.75 / len(chosen)) ** 0.5 for s in share)
    for one in chosen:
        asked, reply = one.messages[0]["content"][-1]["text"], one.messages[1]["content"][0]["text"]
        if one.name == "letters":
            lines = reply.splitlines()
            assert len(lines) == 6 and all(line in asked.splitlines() for line in lines[1::2])
            assert all(
                line[3:].lower() in said.lower()
                for said, line in zip(lines[::2], lines[1::2], strict=True)
            )
        assert reply.splitlines()[-1] in asked.splitlines()
        assert reply.splitlines()[-1].startswith(f"{one.letter}.")


def test_every_exercise_comes_up(exercises):
    makers = {getattr(maker, "func", maker) for stage in STAGES.values() for maker, _ in stage}
    assert len({one.name for one in exercises} - {"letter said"}) == len(
        makers
    )  # one maker makes two of them
    seen = " ".join(words_of(one) for one in exercises)
    assert all(form in seen for form in FORMS) and all(texture in seen for texture in TEXTURES)


def test_what_follows_from_boxes_in_words_is_right():
    """Place, relation, ratio and largest, worked out again from the text of the question."""
    checked = Counter()
    for k in range(900):
        one = exercise("text", k)
        asked, reply = one.messages[0]["content"][-1]["text"], one.messages[1]["content"][0]["text"]
        told = {
            name.lower(): Box2D(*map(int, numbers.split(",")))
            for name, numbers in re.findall(r"(The \w+|Shape \d) is at \[([\d,]+)\]", asked)
        }
        answer = reply.splitlines()[-1][3:]
        if one.name == "relation of boxes":
            seen = re.search(r"Where is (.+), seen from (.+)\?|From (.+), where is (.+)\?", asked)
            name, other = (seen[1], seen[2]) if seen[1] else (seen[4], seen[3])
            (x, y), (other_x, other_y) = told[name].center, told[other].center
            assert ("bove" in answer) == (y < other_y) and ("left" in answer) == (x < other_x)
        elif one.name == "ratio of boxes":
            name, other = re.search(r"How large is (.+), compared with (.+)\?", asked).groups()
            ratio = told[name].area / told[other].area
            fits = {
                "Less than half of it": ratio < 0.5,
                "More than half of it, but less than all": 0.5 < ratio < 1,
                "More than it, but less than double": 1 < ratio < 2,
                "More than double": ratio > 2,
            }
            assert fits[answer]
        elif one.name == "largest box":
            pick = max if "largest" in asked else min
            assert answer.lower() == pick(told, key=lambda name: told[name].area)
        elif one.name == "place of box" and "row" in asked:
            n = int(re.search(r"Of (\d) rows", asked)[1])
            ((x, y),) = (box.center for box in told.values())
            assert answer.endswith(f"ow {int(y / 64 * n) + 1}, column {int(x / 64 * n) + 1}")
        elif one.name == "nearest box":
            (told_box,) = told.values()
            options = {
                text: Box2D(*map(int, text[1:-1].split(",")))
                for text in re.findall(r"\. (\[.+\])", asked)
            }
            assert answer == max(options, key=lambda text: options[text].iou(told_box))
        checked[one.name] += 1
    assert (
        all(checked[f"{name} of boxes"] > 20 for name in ("relation", "ratio"))
        and checked["nearest box"] > 20
    )


@pytest.mark.parametrize("name", ["relation", "place", "which box"])
def test_answers_follow_from_the_boxes(name):
    maker = getattr(tasks, name.replace(" ", "_"))
    rng, checked = random.Random(3), 0
    while checked < 60:
        try:
            one = maker(rng)
        except tasks._Again:
            continue
        reply = one.messages[1]["content"][0]["text"]
        boxes, answer = parse_boxes(reply), reply.splitlines()[-1]
        if not boxes:
            continue
        checked += 1
        if name == "relation":
            (x, y), (other_x, other_y) = boxes[0].center, boxes[1].center
            assert ("bove" in answer) == (y < other_y) and ("left" in answer) == (x < other_x)
        elif name == "which box":
            assert "[" + ",".join(str(int(n)) for n in boxes[0].as_tuple()) + "]" in answer
        else:
            picture = one.messages[0]["content"][0]["image"]
            x, y = boxes[0].center[0] / picture.width, boxes[0].center[1] / picture.height
            if "row" in answer.lower():
                n = int(re.search(r"Of (\d) rows", one.messages[0]["content"][-1]["text"])[1])
                assert answer.endswith(f"ow {int(y * n) + 1}, column {int(x * n) + 1}")
            else:
                assert ("pper" in answer) == (y < 0.5) and ("left" in answer) == (x < 0.5)


def test_held_out_exercises_are_never_trained_on(tiny_model):
    plan = Plan(steps=10)
    last = (len(Batches(plan, tiny_model[1])) + 1) * 1000
    assert last < HELD_OUT
    assert Plan(steps=HELD_OUT // 3000).steps * plan.per_step * 1000 <= HELD_OUT


def test_the_plan_goes_through_its_stages():
    plan = Plan(steps=100)
    names = [plan.groups(step)[0][0] for step in range(100)]
    order = ["words", "letters", "text", "pointing", "one picture"]
    assert names == sorted(names, key=order.index) and set(names) == set(order)
    assert {len(groups) for _, groups in plan.stages} == {plan.per_step}


def test_skills_are_shares(tiny_model):
    found = measure(*tiny_model, size=6)
    assert {"letter"} <= set(found)
    for scores in found.values():
        assert (
            all(0 <= value <= 1 for key, value in scores.items() if key != "n") and scores["n"] >= 1
        )


def test_what_has_no_right_answer_is_not_measured(tiny_model, monkeypatch):
    monkeypatch.setattr(skills, "TESTS", ("shapes", "words"))
    asked = []
    answer = skills.replies
    monkeypatch.setattr(
        skills,
        "replies",
        lambda model, processor, some: asked.extend(some) or answer(model, processor, some),
    )
    found = measure(*tiny_model, size=12)
    assert set(found) == {"letter", "letters"} == {one.name for one in asked}
    assert {exercise("shapes", k).name for k in range(40)} == set(UNASKED)


def test_the_three_skills_have_intervals():
    measured = {
        "letter": {"right": 0.75, "n": 100},
        "which picture": {"right": 1.0, "n": 50},
        "point": {"iou": 0.5, "iou_error": 0.02, "n": 80},
    }
    found = summary(measured)
    assert len(found) == 3
    assert all(low <= value <= high for value, low, high in found.values())
    assert found["IoU on plain shapes"][1:] == pytest.approx((0.4608, 0.5392))


@pytest.mark.parametrize("stage", ["words", "letters", "text"])
def test_every_letter_is_shown_where_to_look(stage, tiny_model):
    processor = tiny_model[1]
    batches = Batches(Plan(stages=((1.0, ((stage, 24),)),), steps=1), processor)
    shown = 0
    for k, (name, made, found, sights) in enumerate(batches[0]):
        one = exercise(stage, k, 0)
        assert name == one.name and not len(sights) and not found["look"]
        if one.name not in ("letter", "letters"):
            continue
        words = [processor.tokenizer.decode([token]).strip() for token in made.ids]
        assert len(found["option"]) == len(found["said"]) == (3 if one.name == "letters" else 1)
        assert (
            words[found["option"][-1][0] + 1] == one.letter and made.own[found["option"][-1][0] + 1]
        )
        marks = dict(found["mark"])
        ends = {end for end, _ in found["phrase"]}
        assert ends == {end for _, end in found["said"] + found["option"]} | ends and len(ends) >= 5
        for end in ends:  # a phrase is looked at as a whole, up to its end
            looked = sorted(at for start, at in found["phrase"] if start == end)
            assert looked == list(range(looked[0], end + 1))
        for (due, option), (also_due, said) in zip(found["option"], found["said"], strict=True):
            assert due == also_due and option < said <= due
            assert words[marks[option]] == words[due + 1] and not made.own[option]
            assert words[said].lower() == words[option].lower()
        shown += 1
    assert shown > 6


def test_what_is_not_an_option_shows_nothing(tiny_model):
    encode = Encoder(tiny_model[1])
    for stage in ("pointing", "several pictures"):
        made = encode(exercise(stage, 0).messages)
        words = encode.tokenizer.batch_decode(made.ids[:, None])
        if "A. " not in "".join(words):
            assert not any(find_hops(words, made.own).values())


def test_guidance_falls_while_it_is_trained_on(tiny_checkpoint, tmp_path):
    """Forty steps of plain words: the guided heads look where they are shown, without guidance they do not."""
    plan = Plan(stages=((1.0, (("words", 8),)),), steps=40, warmup=5)
    how = {"save_steps": 1000, "measure_steps": 1000, "measure_size": 1, "workers": 0}
    guided = pretrain(tiny_checkpoint, tmp_path / "guided", plan, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance, "WEIGHT", 0.0)
        free = pretrain(tiny_checkpoint, tmp_path / "free", plan, **how)
    found = []
    for path in (guided, free):
        model, processor = load_model(path, device="cpu")
        group = Batches(plan, processor)[3]
        watching = Guide(model, processor.tokenizer)
        watching.watch(True)
        batch = dict(Collator(processor)([one.encoded for one in group]))
        with torch.no_grad():
            own_token_loss(model, batch)
            hops = collate_hops([one.hops for one in group])
            found.append(watching.loss(hops, batch["input_ids"]).item())
    assert found[0] < 0.7 * found[1]


# --- what is shown of pictures --------------------------------------------------------------------------------------

RING = Shape("ring", "bright", "vertically striped", Box2D(16, 0, 32, 16), 120)  # all of token 1
BAR = Shape("bar", "dark", "plain", Box2D(34, 18, 62, 30), 200)  # in tokens 6 and 7
CROSS = Shape(
    "cross", "dark", "mottled", Box2D(0, 14, 10, 24), 60
)  # two of ten rows in token 0, the rest in token 4
ALONE = Picture(np.full((32, 64), 99, np.uint8), (RING, BAR, CROSS))
OTHER = Picture(
    np.full((48, 48), 99, np.uint8), (Shape("bar", "bright", "plain", Box2D(2, 20, 40, 30), 99),)
)
EMPTY = Picture(np.full((32, 32), 99, np.uint8), ())
FACTOR = 16


def talk(pictures, asked, reply):
    shown = [
        {"type": "image", "image": Image.fromarray(one.pixels).convert("RGB"), "truth": one}
        for one in pictures
    ]
    return [
        {"role": "user", "content": [*shown, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": [{"type": "text", "text": reply}]},
    ]


@pytest.fixture
def shown(tiny_model):
    """What :class:`Batches` shows with a conversation, and its tokens as text."""

    def show(messages):
        batches = Batches(Plan(), tiny_model[1])
        one = batches._shown(Exercise("named", messages))
        return one, batches.encode.tokenizer.batch_decode(one.encoded.ids[:, None])

    return show


def test_a_token_knows_the_shape_that_it_covers():
    found = find_sights([np.arange(10, 18)], [(2, 4)], [ALONE])
    assert found.shape == (8, 11) and found[:, 0].tolist() == list(range(10, 18))
    said = [WORDS[0][int(form)] for form in found[:, 1]]
    assert said == [NOTHING, "ring", NOTHING, NOTHING, "cross", NOTHING, "bar", "bar"]
    ring, cross, bar = found[1], found[4], found[7]
    assert [SHADES[int(one[2])] for one in (ring, cross, bar)] == ["bright", "dark", "dark"]
    assert [WORDS[2][int(one[3])] for one in (ring, cross, bar)] == [
        "vertically",
        "mottled",
        "plain",
    ]
    np.testing.assert_allclose(ring[4:8], [16 / 64, 0, 32 / 64, 16 / 32])
    np.testing.assert_allclose(bar[4:8], [34 / 64, 18 / 32, 62 / 64, 30 / 32])
    np.testing.assert_allclose(
        found[[0, 1, 7], 8:10], [[1 / 8, 1 / 4], [3 / 8, 1 / 4], [7 / 8, 3 / 4]]
    )


def test_a_token_knows_the_number_of_its_picture():
    found = find_sights([np.arange(8), np.arange(9, 18)], [(2, 4), (3, 3)], [ALONE, OTHER])
    assert found[:, 10].tolist() == [0] * 8 + [1] * 9


def test_of_two_shapes_a_token_knows_the_one_that_covers_more():
    small, large = (
        Shape(form, "dark", "plain", box, 9)
        for form, box in (
            ("star", Box2D(10, 12, 16, 20)),
            ("ring", Box2D(6, 0, 26, 16)),
        )
    )  # half of the star lies in the token, and the ring covers 62 % of it
    for shapes in ((small, large), (large, small)):
        found = find_sights(
            [np.arange(1)], [(1, 1)], [Picture(np.zeros((16, 16), np.uint8), shapes)]
        )
        assert WORDS[0][int(found[0, 1])] == "ring"


def test_a_picture_without_shapes_has_nothing_to_know():
    found = find_sights([np.arange(4)], [(2, 2)], [EMPTY])
    assert set(found[:, 1]) == {len(FORMS)} and WORDS[0][len(FORMS)] == NOTHING
    assert find_sights([], [], []).shape == (0, 11)


def test_tokens_of_several_pictures_are_told_apart(tiny_model):
    encoder = Encoder(tiny_model[1])
    image_token = encoder.tokenizer.convert_tokens_to_ids(encoder.image_token)
    encoded = encoder(talk([ALONE, OTHER, EMPTY], "Look.", "Yes."))
    grids = [(2, 4), (3, 3), (2, 2)]
    assert [p.shape[:2] for p in encoded.pictures] == [
        (rows * FACTOR, cols * FACTOR) for rows, cols in grids
    ]
    places = picture_tokens(encoded.ids, image_token, grids)
    assert [len(at) for at in places] == [8, 9, 4]
    for at, after in zip(places, [*places[1:], None], strict=True):
        assert (
            np.array_equal(at, np.arange(at[0], at[0] + len(at)))
            and (encoded.ids[at] == image_token).all()
        )
        assert encoded.ids[at[0] - 1] != image_token != encoded.ids[at[-1] + 1]
        assert after is None or at[-1] < after[0]
    assert picture_tokens(np.array([1, 2, 3]), image_token, []) == []


@pytest.mark.parametrize("size", [(32, 64), (80, 48), (80, 80)])
def test_the_tower_gives_its_tokens_row_by_row(size, tiny_model):
    """Where pixels change, the token changes most that stands for them; larger pictures have several windows."""
    model, processor = tiny_model
    grey, patches = np.full((*size, 3), 110, np.uint8), Collator(processor)._pictures
    rows, columns = size[0] // FACTOR, size[1] // FACTOR
    several = [grey]
    for place in range(rows * columns):
        y, x = (FACTOR * k for k in divmod(place, columns))
        several.append(grey.copy())
        several[-1][y + 2 : y + 9, x + 3 : x + 14] = 250
    with torch.no_grad():
        given = patches(several)
        found = model.model.get_image_features(
            given["pixel_values"], given["image_grid_thw"], return_dict=True
        ).pooler_output
    plain, *changed = (one.reshape(rows * columns, -1) for one in found)
    assert [int((one - plain).norm(dim=-1).argmax()) for one in changed] == list(
        range(rows * columns)
    )


def test_every_word_that_is_read_off_is_one_token(tiny_model):
    tokenizer = tiny_model[1].tokenizer
    for group in WORDS:
        ids = [tokenizer(f" {word}").input_ids for word in group]
        assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(group)
    assert len(WORDS[2]) == len(TEXTURES) and len(tokenizer(f" {NOUN}").input_ids) == 1


def spans_of_boxes(words, own):
    """First position that writes a box of the reply, and the one behind the last."""
    starts = [k for k, word in enumerate(words) if word == BOX_START and own[k]]
    return [
        (start, next(k for k in range(start, len(words)) if words[k] == BOX_END))
        for start in starts
    ]


def looked_at(hops, name, start):
    return sorted(at for position, at in hops[name] if position == start)


def test_while_a_box_is_written_the_tokens_of_its_shape_are_looked_at(shown):
    reply = f"Dark bar {format_box(BAR.box)}. The bright bar: {format_box(OTHER.shapes[0].box)}."
    one, words = shown(talk([ALONE, OTHER], f"What is at {format_box(RING.box)}?", reply))
    first, second = spans_of_boxes(words, one.encoded.own)
    image = [k for k, word in enumerate(words) if word == "<|image_pad|>"]
    assert len(image) == 8 + 9 and words.index(BOX_START) < first[0]
    for (start, end), tokens in ((first, [6, 7]), (second, [8 + 3, 8 + 4, 8 + 5])):
        for position in range(start, end):
            assert looked_at(one.hops, "look", position) == [image[k] for k in tokens]
    written = {*range(*first), *range(*second)}
    assert (
        {start for start, _ in one.hops["look"]}
        == {start for start, _ in one.hops["said"]}
        == written
    )


def test_and_its_name_is_looked_at_as_a_phrase(shown):
    reply = f"Dark bar {format_box(BAR.box)}. The bright vertically striped ring: {format_box(RING.box)}."
    one, words = shown(talk([ALONE], "Point at everything.", reply))
    (bar, _), (ring, _) = spans_of_boxes(words, one.encoded.own)
    for start, name in (
        (bar, ["Dark", "bar"]),
        (ring, ["bright", "vertically", "striped", "ring"]),
    ):
        (said,) = looked_at(one.hops, "said", start)
        phrase = looked_at(one.hops, "phrase", said)
        assert [words[k].strip() for k in phrase] == name and phrase[-1] == said < start


@pytest.mark.parametrize(
    "asked, name", [("Where is the dark shape?", "dark shape"), ("Point at the bar.", "bar")]
)
def test_a_name_in_the_question_is_looked_at_when_the_reply_has_none(asked, name, shown):
    one, words = shown(talk([ALONE], asked, format_box(BAR.box)))
    ((start, _),) = spans_of_boxes(words, one.encoded.own)
    (said,) = looked_at(one.hops, "said", start)
    phrase = looked_at(one.hops, "phrase", said)
    assert " ".join(words[k].strip() for k in phrase) == name and not one.encoded.own[said]


def test_an_option_is_no_name(shown):
    options = "What is it?\nA. Ring\nB. Bar\nC. Cross\nD. Star"
    one, words = shown(talk([ALONE], options, f"It is at {format_box(BAR.box)}. So: bar.\nB. Bar"))
    ((start, _),) = spans_of_boxes(words, one.encoded.own)
    assert looked_at(one.hops, "look", start) and not looked_at(one.hops, "said", start)
    due = next(k for k, word in enumerate(words) if one.encoded.own[k] and word.strip() == "B")
    assert looked_at(one.hops, "said", due - 1) and looked_at(
        one.hops, "option", due - 1
    )  # the letter's are kept
    named, words = shown(
        talk([ALONE], options, f"The bar is at {format_box(BAR.box)}. So: bar.\nB. Bar")
    )
    ((start, _),) = spans_of_boxes(words, named.encoded.own)
    (said,) = looked_at(named.hops, "said", start)
    assert named.encoded.own[said] and words[said].strip() == "bar"


def test_before_its_number_a_picture_is_looked_at_for_what_was_asked(shown):
    reply = f"Picture 2 shows it at {format_box(OTHER.shapes[0].box)}. So: picture 2."
    one, words = shown(talk([EMPTY, OTHER], "Which picture shows the bar?", reply))
    image = [k for k, word in enumerate(words) if word == "<|image_pad|>"]
    ((due, tokens),) = {k: looked_at(one.hops, "number", k) for k, _ in one.hops["number"]}.items()
    assert (
        words[due + 1] == "2"
        and one.encoded.own[due + 1]
        and "2" not in words[words.index("Picture") : due]
    )
    assert tokens == [image[4 + k] for k in (3, 4, 5)]


def test_a_box_is_looked_for_in_the_picture_that_was_said(shown):
    """Two pictures alike: their boxes are told apart by the number before."""
    asked = "Where is the bar?"
    for number in (1, 2):
        reply = f"Picture {number}, {format_box(OTHER.shapes[0].box)}"
        one, words = shown(talk([OTHER, OTHER], asked, reply))
        image = [k for k, word in enumerate(words) if word == "<|image_pad|>"]
        ((start, _),) = spans_of_boxes(words, one.encoded.own)
        assert looked_at(one.hops, "look", start) == [
            image[9 * (number - 1) + k] for k in (3, 4, 5)
        ]


def test_before_a_shape_is_named_it_is_looked_at(shown):
    one, words = shown(
        talk([OTHER, ALONE], "What does picture 2 show?", "A dark bar and a bright ring.")
    )
    image = [k for k, word in enumerate(words) if word == "<|image_pad|>"]
    for name, tokens in (("bar", [9 + 6, 9 + 7]), ("ring", [9 + 1])):
        noun = next(
            k for k, word in enumerate(words) if one.encoded.own[k] and word.strip() == name
        )
        for position in (
            noun - 2,
            noun - 1,
        ):  # the article and the shade, which predict shade and form
            assert looked_at(one.hops, "glance", position) == [image[k] for k in tokens]
    only, _ = shown(talk([ALONE], "What is it?", f"The bar: {format_box(BAR.box)}. So: bar."))
    assert not only.hops["glance"]


def test_edges_and_numbers_are_read_where_they_are_due(tiny_model):
    """By hand: nothing is left of the loss when the edges are what is read, and it grows with how far they are off."""
    reader = Sights(tiny_model[0], tiny_model[1].tokenizer)
    hidden = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(4))
    look = torch.tensor([[0, 3, 1]])  # position 3 writes a box, token 1 is of its shape
    with torch.no_grad():
        state = tiny_model[0].model.language_model.norm(hidden[0, 3])
        read = (state @ reader.directions / 4 + 0.5).tolist()
        for off, loss in ((0.0, 0.0), (0.05, 0.1)):
            edges = [edge + off for edge in read]
            found = reader.read_edges(
                hidden, look, **sights_of(a_token(NOTHING), a_token(edges=edges))
            )
            assert found.item() == pytest.approx(loss, abs=1e-4)
        several = sights_of(a_token(), a_token(picture=1))
        alone = sights_of(a_token(), a_token())
        counted = [reader.loss(hidden, **one, relative=False).item() for one in (several, alone)]
        embedding = tiny_model[0].get_input_embeddings().weight
        digits = [tiny_model[1].tokenizer(digit).input_ids[0] for digit in "123456789"]
        logits = tiny_model[0].model.language_model.norm(hidden[0, :2]) @ embedding[digits].T
        number = functional.cross_entropy(logits, torch.tensor([0, 1])).item()
        assert counted[0] - counted[1] == pytest.approx(number, rel=1e-4)


def test_a_box_that_is_no_shape_shows_nothing(shown):
    one, _ = shown(talk([ALONE], "Point at the bar.", format_box(Box2D(1, 2, 3, 4))))
    assert not any(one.hops.values())


@pytest.mark.parametrize("stage", ["pointing", "one picture", "several pictures"])
def test_every_box_of_a_shape_is_shown(stage, tiny_model):
    """In the exercises as they come: what is looked at lies in the box that is written."""
    batches = Batches(Plan(stages=((1.0, ((stage, 24),)),), steps=1), tiny_model[1])
    checked = 0
    for one in batches[0]:
        words = batches.encode.tokenizer.batch_decode(one.encoded.ids[:, None])
        sights = {int(row[0]): row for row in one.sights}
        assert sorted(sights) == [k for k, word in enumerate(words) if word == "<|image_pad|>"]
        for start, end in spans_of_boxes(words, one.encoded.own):
            (box,) = parse_boxes("".join(words[start : end + 1]))
            for token in looked_at(one.hops, "look", start):
                x1, y1, x2, y2 = sights[token][4:8]
                assert x1 / x2 == pytest.approx(box.x1 / box.x2) and y1 / y2 == pytest.approx(
                    box.y1 / box.y2
                )
                checked += 1
    assert checked >= 12


def a_token(
    form="ring",
    shade="bright",
    texture="plain",
    edges=(0.25, 0.0, 0.5, 0.5),
    middle=(0.375, 0.25),
    picture=0,
):
    what = [WORDS[0].index(form), SHADES.index(shade), WORDS[2].index(texture)]
    return [*what, *edges, *middle, picture]


def sights_of(*tokens):
    return collate_sights([np.array([[k, *token] for k, token in enumerate(tokens)], np.float32)])


@pytest.mark.parametrize("relative", [True, False])
def test_words_and_edges_are_read_off_as_written(relative, tiny_model):
    """The loss of one token by hand; with the edges that are read off, none of it is left but the words."""
    model, processor = tiny_model
    reader = Sights(model, processor.tokenizer)
    hidden = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        state, embedding = (
            model.model.language_model.norm(hidden[0]),
            model.get_input_embeddings().weight,
        )
        words = 0.0
        for group, word in zip(WORDS, ("cross", "dark", "mottled"), strict=True):
            ids = [processor.tokenizer(f" {one}").input_ids[0] for one in group]
            words += functional.cross_entropy(
                state @ embedding[ids].T, torch.tensor([group.index(word)])
            ).item()
        length = (hidden.norm() / embedding.norm(dim=-1).mean()).item()
        words += 0.1 * (length - 1) ** 2 if relative else 0
        read = (state @ reader.directions / 4)[0].numpy()
        middle = (0.7, 0.2)
        edges = read + (np.tile(middle, 2) if relative else 0.5)
        right = sights_of(a_token("cross", "dark", "mottled", edges, middle))
        assert reader.loss(hidden, **right, relative=relative).item() == pytest.approx(
            words, rel=1e-4
        )
        other = sights_of(a_token("cross", "dark", "mottled", edges + 0.05, middle))
        # 0.05 of the picture is 0.2 in what is read off: quadratic up to there
        off = reader.loss(hidden, **other, relative=relative).item()
        assert off - words == pytest.approx(0.1, rel=0.02)
        moved = sights_of(a_token("cross", "dark", "mottled", edges + 0.1, (0.8, 0.3)))
        same = reader.loss(hidden, **moved, relative=relative).item() == pytest.approx(
            words, rel=1e-4
        )
        assert same == relative  # from the middle of the token, or from the corner of the picture


def test_where_nothing_is_only_that_is_read_off(tiny_model):
    reader = Sights(tiny_model[0], tiny_model[1].tokenizer)
    hidden = torch.randn(1, 2, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        one, other = (
            reader.loss(hidden, **sights_of(*[a_token(NOTHING, *how)] * 2), relative=False).item()
            for how in (("dark", "plain"), ("bright", "mottled", (0, 0, 1, 1)))
        )
    assert one == other > 0


def test_states_that_are_trained_on_their_sights_say_them(tiny_model):
    model, processor = tiny_model
    reader = Sights(model, processor.tokenizer)
    right = sights_of(
        a_token(), a_token("bar", "dark", "mottled", (0, 0.1, 0.9, 0.6)), a_token(NOTHING)
    )
    wrong = sights_of(
        a_token("star", "dark"), a_token("ring", "bright", "checkered"), a_token("bar")
    )
    hidden = 0.1 * torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(3))
    hidden.requires_grad_(True)
    before = reader.loss(hidden, **right, relative=True).item()
    optimizer = torch.optim.Adam([hidden], 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        reader.loss(hidden, **right, relative=True).backward()
        optimizer.step()
    model.zero_grad()
    with torch.no_grad():
        assert reader.loss(hidden, **right, relative=True) < 0.25 * before
        assert reader.loss(hidden, **wrong, relative=True) > before
        state = model.model.language_model.norm(hidden[0])
        edges = (state @ reader.directions / 4)[0] + torch.tensor([0.375, 0.25] * 2)
        assert edges.tolist() == pytest.approx([0.25, 0.0, 0.5, 0.5], abs=0.06)


def test_the_guide_adds_up_attention_and_sights(fresh_model):
    """A batch with pictures and without options, by hand."""
    model, processor = fresh_model
    group = Batches(Plan(stages=((1.0, (("pointing", 12),)),), steps=1), processor)[0]
    group = [one for one in group if one.name == "point"][:3]
    batch = dict(Collator(processor)([one.encoded for one in group]))
    hops, sights = (
        collate_hops([one.hops for one in group]),
        collate_sights([one.sights for one in group]),
    )
    guide = Guide(model, processor.tokenizer)
    guide.watch(True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        seen = model(**inputs, output_attentions=True, output_hidden_states=True)
        total = guide.sights.loss(seen.hidden_states[0], **sights, relative=True)
        total += guide.sights.loss(seen.hidden_states[2], **sights, relative=False)
        for name in ("look", "said", "phrase"):
            layer, head = HEADS[name]
            row, start, end = hops[name].T
            assert len(row)
            total -= (seen.attentions[layer][row, head, start, end] + 1e-6).log().mean()
        total += guide.sights.read_edges(seen.hidden_states[3], hops["look"], **sights)
        assert not len(hops["mark"]) and not len(hops["option"]) and not len(hops["number"])
        assert guide.loss(hops, batch["input_ids"], sights).item() == pytest.approx(
            WEIGHT * total.item(), rel=1e-4
        )
    guide.watch(False)


def test_pictures_without_a_question_teach_the_tower_and_not_the_layers(tiny_checkpoint, tmp_path):
    """Forty steps: the tower's tokens say more of held-out pictures, the language model's layers stay as they were."""
    plan = Plan(stages=((1.0, (("shapes", 16),)),), steps=40, warmup=5)
    how = {"save_steps": 1000, "measure_steps": 1000, "measure_size": 1, "workers": 0}
    trained = pretrain(tiny_checkpoint, tmp_path / "run", plan, **how)
    (start, processor), (end, _) = (
        load_model(path, device="cpu") for path in (tiny_checkpoint, trained)
    )
    before, after = start.state_dict(), end.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("language_model.layers" in name for name in moved)
    assert all(
        any(part in name for name in moved) for part in ("visual.patch_embed", "visual.merger")
    )
    held_out = [
        Batches(plan, processor)._shown(exercise("shapes", HELD_OUT + k)) for k in range(24)
    ]
    batch = pretraining._collated(Collator(processor), [held_out])
    with torch.no_grad():
        found = [
            Sights(model, processor.tokenizer)
            .loss(
                torch.cat(
                    model.model.get_image_features(
                        batch["pixel_values"], batch["image_grid_thw"], return_dict=True
                    ).pooler_output
                )[None],
                **batch["sights"],
                relative=True,
            )
            .item()
            for model in (start, end)
        ]
    assert found[1] < 0.8 * found[0]
    assert all(
        line["loss"] > 0 and "right" not in line
        for line in read_log(tmp_path / "run" / "log.jsonl")
    )


def test_a_run_can_be_stopped_early_and_gone_on_with(tiny_checkpoint, tmp_path):
    how = {"save_steps": 1, "measure_steps": 1000, "measure_size": 1, "workers": 0}
    assert pretrain(tiny_checkpoint, tmp_path / "run", SMALL, until=2, **how) == tmp_path / "run"
    assert not (tmp_path / "run" / "model").exists()
    assert pretrain(tiny_checkpoint, tmp_path / "run", SMALL, **how).name == "model"


SMALL = Plan(
    stages=(
        (0.5, (("text", 4), ("pointing", 2), ("shapes", 3))),
        (0.5, (("one picture", 3), ("shapes", 2), ("several pictures", 2))),
    ),
    steps=4,
)


def test_a_killed_run_goes_on_to_the_same_weights(tiny_checkpoint, tmp_path, monkeypatch):
    how = {"save_steps": 2, "measure_steps": 1000, "measure_size": 2, "workers": 0}
    whole = pretrain(tiny_checkpoint, tmp_path / "whole", SMALL, **how)
    load = pretraining.own_token_loss
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the third step
            raise KeyboardInterrupt
        return load(*arguments)

    monkeypatch.setattr(pretraining, "own_token_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny_checkpoint, tmp_path / "killed", SMALL, **how)
    monkeypatch.setattr(pretraining, "own_token_loss", load)
    resumed = pretrain(tiny_checkpoint, tmp_path / "killed", SMALL, **how)
    one, other = (load_model(path, device="cpu")[0].state_dict() for path in (whole, resumed))
    start = load_model(tiny_checkpoint, device="cpu")[0].state_dict()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=0)
    moved = [name for name in start if not torch.equal(start[name], one[name])]
    assert any("visual" in name for name in moved) and any(
        "language_model" in name for name in moved
    )
    assert read_log(tmp_path / "killed" / "log.jsonl", "skills")
