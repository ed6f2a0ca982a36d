"""The generic exercises, and the loop that teaches them."""

import random
import re

import numpy as np
import pytest
import torch

from unireason_lib.boxes import parse_boxes
from unireason_lib.dataset.sources.phantom import LABELS
from unireason_lib.grounding import load_model
from unireason_lib.training.base import guidance, tasks
from unireason_lib.training.base import pretrain as pretraining
from unireason_lib.training.base.guidance import collate_hops, find_hops
from unireason_lib.training.base.pretrain import GUIDED, Batches, Plan, pretrain
from unireason_lib.training.base.shapes import FORMS, TEXTURES, draw
from unireason_lib.training.base.skills import measure, summary
from unireason_lib.training.base.tasks import HELD_OUT, STAGES, exercise
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
        outside = np.concatenate([alone.pixels[: max(1, y1 - 3)].ravel(), alone.pixels[y2 + 3 :].ravel()])
        middle = np.median(outside)
        assert (inside.max() > middle + 15) if shape.shade == "bright" else (inside.min() < middle - 15)
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
        assert shape.area <= shape.box.area


def test_the_same_number_gives_the_same_exercise():
    for stage in STAGES:
        one, again, other = exercise(stage, 5), exercise(stage, 5), exercise(stage, 6)
        assert words_of(one) == words_of(again) != words_of(other)
        for a, b in zip(one.messages[0]["content"][:-1], again.messages[0]["content"][:-1], strict=True):
            assert np.array_equal(np.asarray(a["image"]), np.asarray(b["image"]))
        assert words_of(exercise(stage, 5, seed=1)) != words_of(one)


def test_nothing_of_the_study_is_in_them(exercises):
    organs = {word for name in LABELS.values() for word in name.split()} - {"left", "right", "lesion", "body"}
    study = organs | {"lesion", "patient", "slice", "slices", "volume", "axial", "scan", "CT", "organ"}
    for one in exercises:
        found = study & set(re.findall(r"[A-Za-z]+", words_of(one)))
        assert not found, (one.name, found)
        assert "<think>" not in words_of(one)
        assert not any(hasattr(box, "z1") for box in parse_boxes(words_of(one)))  # no cuboids
        assert all(part["type"] == "text" for part in one.messages[1]["content"])  # no regions put back


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
                line[3:].lower() in said.lower() for said, line in zip(lines[::2], lines[1::2], strict=True)
            )
        assert reply.splitlines()[-1] in asked.splitlines()
        assert reply.splitlines()[-1].startswith(f"{one.letter}.")


def test_every_exercise_comes_up(exercises):
    makers = {getattr(maker, "func", maker) for stage in STAGES.values() for maker, _ in stage}
    assert len({one.name for one in exercises}) == len(makers)
    seen = " ".join(words_of(one) for one in exercises)
    assert all(form in seen for form in FORMS) and all(texture in seen for texture in TEXTURES)


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
    order = ["words", "letters", "pointing", "one picture"]
    assert names == sorted(names, key=order.index) and set(names) == set(order)
    assert {len(groups) for _, groups in plan.stages} == {plan.per_step}


def test_skills_are_shares(tiny_model):
    found = measure(*tiny_model, size=6)
    assert {"letter"} <= set(found)
    for scores in found.values():
        assert all(0 <= value <= 1 for key, value in scores.items() if key != "n") and scores["n"] >= 1


def test_the_three_skills_have_intervals():
    skills = {
        "letter": {"right": 0.75, "n": 100},
        "which picture": {"right": 1.0, "n": 50},
        "point": {"iou": 0.5, "iou_error": 0.02, "n": 80},
    }
    found = summary(skills)
    assert len(found) == 3
    assert all(low <= value <= high for value, low, high in found.values())
    assert found["IoU on plain shapes"][1:] == pytest.approx((0.4608, 0.5392))


@pytest.mark.parametrize("stage", GUIDED)
def test_every_letter_is_shown_where_to_look(stage, tiny_model):
    processor = tiny_model[1]
    batches = Batches(Plan(stages=((1.0, ((stage, 24),)),), steps=1), processor)
    encoded, hops = batches[0]
    shown = 0
    for k, (made, found) in enumerate(zip(encoded, hops, strict=True)):
        one = exercise(stage, k, 0)
        if one.name not in ("letter", "letters"):
            continue
        words = [processor.tokenizer.decode([token]).strip() for token in made.ids]
        assert len(found["option"]) == len(found["said"]) == (3 if one.name == "letters" else 1)
        assert words[found["option"][-1][0] + 1] == one.letter and made.own[found["option"][-1][0] + 1]
        marks = dict(found["mark"])
        for (due, option), (also_due, said) in zip(found["option"], found["said"], strict=True):
            assert due == also_due and option < said <= due
            assert words[marks[option]] == words[due + 1] and not made.own[option]
            assert words[said].lower() == words[option].lower()
        shown += 1
    assert shown > 10


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
        encoded, hops = Batches(plan, processor)[3]
        watching = guidance.Guide(model)
        watching.watch(True)
        batch = dict(Collator(processor)(encoded))
        with torch.no_grad():
            own_token_loss(model, batch)
            found.append(watching.loss(collate_hops(hops), batch["input_ids"]).item())
    assert found[0] < 0.7 * found[1]


def test_a_run_can_be_stopped_early_and_gone_on_with(tiny_checkpoint, tmp_path):
    how = {"save_steps": 1, "measure_steps": 1000, "measure_size": 1, "workers": 0}
    assert pretrain(tiny_checkpoint, tmp_path / "run", SMALL, until=2, **how) == tmp_path / "run"
    assert not (tmp_path / "run" / "model").exists()
    assert pretrain(tiny_checkpoint, tmp_path / "run", SMALL, **how).name == "model"


SMALL = Plan(
    stages=((0.5, (("text", 4), ("pointing", 2))), (0.5, (("one picture", 3), ("several pictures", 2)))),
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
    assert any("visual" in name for name in moved) and any("language_model" in name for name in moved)
    assert read_log(tmp_path / "killed" / "log.jsonl", "skills")
