"""Grounded generation: exact, batched, and undisturbed by whatever the model writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import RequestError
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script
from unireason_lib.imaging import Volume, serialize

OPTIONS = {"A": "liver", "B": "left lung"}


def picture(width=64, height=64, seed=0):
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def volume(slices=6, seed=0, side=64):
    return [picture(side, side, seed + i) for i in range(slices)]


@pytest.fixture(scope="module")
def generator(tiny_model):
    return GroundedGenerator(*tiny_model)


@pytest.fixture(scope="module")
def slow(tiny_model):
    return GroundedGenerator(*tiny_model, reuse_cache=False)


def script(generator, *parts):
    return Script(generator.tokenizer, parts)


def mixed_batch(generator):
    """Requests of different lengths, dimensions and numbers of boxes, and scripts that make them point."""
    requests = [
        GroundedRequest("Where is the liver?", [picture()], OPTIONS, id="one"),
        GroundedRequest("Is it large?", [picture(112, 48)], id="none"),
        GroundedRequest("Which structure lies in the region?", volume(8), OPTIONS, "3d", id="three"),
        GroundedRequest("What?", volume(3, 50), dimension="3d", id="hostile"),
    ]
    scripts = [
        script(generator, "<think>", 5, "<|box_start|>[5,5,60,60]<|box_end|>", 12),
        script(generator, "<think>", 19),
        script(
            generator,
            3,
            "<|box_start|>[0,0,1,64,64,4]<|box_end|>",
            6,
            "<|box_start|>[8,8,0,40,60,2]<|box_end|>",
            2,
            "<|box_start|>[0,0,7,64,20,8]<|box_end|>",
            9,
        ),
        script(
            generator,
            2,
            "<|box_start|>[9,9,1,1e999]<|box_end|>",
            4,
            "<|box_start|>(-9,-9,0,99,99,9)<|box_end|>",
            7,
        ),
    ]
    return requests, scripts


def check_against_one_forward_pass(generator, trace):
    """Every token that the model chose freely is the best one when the whole sequence is encoded at once."""
    ids, pixels, grids = generator.encode(trace.request)
    assert tuple(ids) == trace.prompt_ids
    crops = [crop for pointing in trace.pointings for crop in pointing.crops]
    if crops:
        inputs = generator.processor.image_processor(images=crops, return_tensors="pt")
        pixels = torch.cat([pixels, inputs["pixel_values"]])
        grids = grids + inputs["image_grid_thw"].tolist()
    full = torch.tensor([[*trace.prompt_ids, *trace.token_ids]])
    with torch.inference_mode():
        logits = generator.model(
            input_ids=full,
            pixel_values=pixels,
            image_grid_thw=torch.tensor(grids),
            mm_token_type_ids=(full == generator.image_token).int(),
        ).logits[0, len(ids) - 1 : -1]
        return logits.index_fill(1, torch.tensor(generator.never_written), -torch.inf)


def test_batched_cached_and_encoded_again_write_the_same(generator, slow):
    requests, scripts = mixed_batch(generator)
    together = generator.generate(requests, scripts=scripts, max_new_tokens=90)
    one_by_one = [
        slow.generate([request], scripts=[plan], max_new_tokens=90)[0]
        for request, plan in zip(requests, scripts, strict=True)
    ]
    again = slow.generate(requests, scripts=scripts, max_new_tokens=90)
    hasty = generator.generate(
        requests, scripts=scripts, max_new_tokens=90, tokens_per_round=12, max_rounds=99
    )
    pairs = generator.generate(requests, scripts=scripts, max_new_tokens=90, batch_size=2)
    for a, *others in zip(together, one_by_one, again, hasty, pairs, strict=True):
        assert all(a.token_ids == other.token_ids and a.own_mask == other.own_mask for other in others)
        assert all(a.boxes == other.boxes and a.text == other.text for other in others)
    assert [len(trace.boxes) for trace in together] == [1, 0, 3, 1]
    assert [len(crops) for trace in together for crops in trace.crops] == [1, 3, 2, 1, 3]


def test_free_tokens_are_the_best_ones_of_a_single_pass(generator):
    requests, scripts = mixed_batch(generator)
    ends = [*generator.ends, generator.box_start, generator.box_end]
    for trace, plan in zip(
        generator.generate(requests, scripts=scripts, max_new_tokens=90), scripts, strict=True
    ):
        logits = check_against_one_forward_pass(generator, trace)
        step = checked = 0
        for index, (token, own) in enumerate(zip(trace.token_ids, trace.own_mask, strict=True)):
            if not own:
                continue
            if step >= len(plan) or plan.token(step) is None:
                scores = logits[index].clone()
                if step < len(plan):
                    scores[ends] = -torch.inf
                assert scores[token] > scores.max() - 1e-4
                checked += 1
            step += 1
        assert checked >= 15


def test_wrong_positions_would_be_noticed(generator, monkeypatch):
    """The comparison above has teeth: one-dimensional positions after an injection change what is written."""
    request = GroundedRequest("Where is the liver?", volume(8), OPTIONS, "3d")
    plan = script(generator, 3, "<|box_start|>[0,0,1,64,64,4]<|box_end|>")
    right = generator.generate([request], scripts=[plan], max_new_tokens=60)[0]
    rope_index = generator.model.model.get_rope_index

    def flat(ids, **kwargs):
        positions, deltas = rope_index(ids, **kwargs)
        if ids.shape[1] < len(right.prompt_ids):  # the injected tokens, not the prompt
            positions[:] = torch.arange(ids.shape[1])
        return positions, deltas

    captured = {}
    forward = generator.model.forward

    def spy(*args, **kwargs):
        out = forward(*args, **kwargs)
        captured.setdefault("logits", []).append(out.logits[:, -1].clone())
        return out

    monkeypatch.setattr(generator.model, "forward", spy)
    generator.generate([request], scripts=[plan], max_new_tokens=len(plan) + 1)
    good = captured.pop("logits")[-1]
    monkeypatch.setattr(generator.model.model, "get_rope_index", flat)
    generator.generate([request], scripts=[plan], max_new_tokens=len(plan) + 1)
    assert (captured["logits"][-1] - good).abs().max() > 1e-3


def test_what_is_injected_is_counted_in_tokens(generator):
    request = GroundedRequest("Where?", volume(8), OPTIONS, "3d")
    plan = script(generator, "<|box_start|>[4,4,2,44,36,5]<|box_end|>", 3)
    trace = generator.generate([request], scripts=[plan], max_new_tokens=len(plan))[0]
    (pointing,) = trace.pointings
    assert pointing.status == "injected" and pointing.box == Box3D(4, 4, 2, 44, 36, 5)
    assert [crop.size for crop in pointing.crops] == [(40, 32)] * 3
    expected = []
    for crop in pointing.crops:
        count = generator.frame.tokens(crop.height, crop.width)
        expected += [generator.vision_start, *[generator.image_token] * count, generator.vision_end]
    injected = [token for token, own in zip(trace.token_ids, trace.own_mask, strict=True) if not own]
    assert injected == expected
    first = trace.own_mask.index(0)
    assert first == pointing.position
    assert trace.own_mask[first : first + len(expected)] == (0,) * len(expected)
    assert trace.token_ids[first - 1] == generator.box_end
    assert sum(trace.own_mask) == len(plan)
    assert trace.text.startswith("<|box_start|>[4,4,2,44,36,5]<|box_end|>")
    assert "image_pad" not in trace.text


def test_crops_come_from_the_picture_as_the_model_sees_it(generator):
    big = Image.new("RGB", (512, 512))
    big.paste((255, 255, 255), (256, 256, 512, 512))
    request = GroundedRequest("Where?", [big])
    assert generator.frame.size(512, 512) == (128, 128)
    plan = script(generator, "<|box_start|>[64,64,128,128]<|box_end|>", 1)
    trace = generator.generate([request], scripts=[plan], max_new_tokens=len(plan))[0]
    crop = np.asarray(trace.crops[0][0])
    assert crop.shape == (64, 64, 3)
    assert crop[4:, 4:].min() > 250


@pytest.mark.parametrize(
    ("dimension", "written", "status"),
    [
        ("2d", "[0,0,64,64]", "injected"),
        ("2d", "[0,0,5,64,64,9]", "injected"),
        ("2d", "[-50,-50,32,32]", "injected"),
        ("2d", "[70,0,90,64]", "outside"),
        ("2d", "[9,9,3,3]", "malformed"),
        ("2d", "[1,2,3]", "malformed"),
        ("2d", "[nan,0,1,1]", "malformed"),
        ("2d", "[1e999,0,1,1]", "malformed"),
        ("2d", "", "malformed"),
        ("3d", "[0,0,64,64]", "no slice"),
        ("3d", "[0,0,0,64,64,1]", "injected"),
        ("3d", "[0,0,5,64,64,99]", "injected"),
        ("3d", "[0,0,6,64,64,9]", "outside"),
        ("3d", "[0,0,-3,64,64,0]", "outside"),
    ],
)
def test_what_becomes_of_a_box(generator, dimension, written, status):
    images = [picture()] if dimension == "2d" else volume(6)
    request = GroundedRequest("Where?", images, OPTIONS, dimension)
    plan = script(generator, f"<|box_start|>{written}<|box_end|>", 4)
    trace = generator.generate([request], scripts=[plan], max_new_tokens=len(plan))[0]
    (pointing,) = trace.pointings
    assert pointing.status == status
    assert bool(pointing.crops) == (status == "injected") == (0 in trace.own_mask)
    assert len(trace.boxes) == len(trace.crops) == (status != "malformed")
    assert trace.malformed == (status == "malformed")
    assert sum(trace.own_mask) == len(plan)


def test_boxes_that_are_never_closed_or_opened_twice(generator):
    request = GroundedRequest("Where?", [picture()])
    plan = script(
        generator, "<|box_start|>[1,2,<|box_start|>[0,0,64,64]<|box_end|><|box_end|> <|box_start|>[1,2"
    )
    trace = generator.generate([request], scripts=[plan], max_new_tokens=len(plan))[0]
    assert [pointing.status for pointing in trace.pointings] == ["malformed", "injected", "malformed"]
    assert trace.boxes == [Box2D(0, 0, 64, 64)]
    assert trace.stop == "length"


def test_a_reply_that_points_fifty_times(generator):
    request = GroundedRequest("Where?", [picture()])
    plan = script(generator, *["<|box_start|>[0,0,64,64]<|box_end|>"] * 50, "</think>A. liver<|im_end|>")
    trace = generator.generate([request], scripts=[plan], max_new_tokens=2000)[0]
    assert [p.status for p in trace.pointings] == ["injected"] * 10 + ["rounds used up"] * 40
    assert trace.answer == "A. liver" and trace.choice == "A" and trace.stop == "end"
    tight = generator.generate([request], scripts=[plan], max_new_tokens=2000, max_injected_tokens=40)[0]
    assert [p.status for p in tight.pointings] == ["injected"] * 2 + ["tokens used up"] * 48
    none = generator.generate([request], scripts=[plan], max_new_tokens=2000, max_rounds=0)[0]
    assert 0 not in none.own_mask and none.choice == "A"


def test_a_spent_round_budget_does_not_cut_the_answer(generator):
    request = GroundedRequest("Where?", [picture()], OPTIONS)
    plan = script(generator, "<think>", 40, "</think>B. left lung<|im_end|>")
    trace = generator.generate([request], scripts=[plan], max_new_tokens=200, tokens_per_round=8)[0]
    assert trace.choice == "B" and trace.rounds > 4


def test_the_token_budget_counts_own_tokens_only_and_holds(generator):
    request = GroundedRequest("Where?", [picture()])
    plan = script(generator, 2, "<|box_start|>[0,0,64,64]<|box_end|>", 50)
    for budget in (1, 2, len(plan) - 50, 30):
        trace = generator.generate([request], scripts=[plan], max_new_tokens=budget)[0]
        assert sum(trace.own_mask) == budget and trace.stop == "length"
    at_the_box = generator.generate([request], scripts=[plan], max_new_tokens=len(plan) - 50)[0]
    assert [p.status for p in at_the_box.pointings] == ["tokens used up"]


def test_sampling_depends_on_the_seed_and_not_on_the_batch(generator):
    requests = [GroundedRequest(f"Where is {i}?", [picture(seed=i)], id=f"r{i}") for i in range(4)]
    settings = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 24}
    first = generator.generate(requests, seed=7, **settings)
    alone = generator.generate(requests[2:3], seed=7, **settings)
    assert alone[0].token_ids == first[2].token_ids
    other = generator.generate(requests, seed=8, **settings)
    assert [t.token_ids for t in first] != [t.token_ids for t in other]
    assert len({t.token_ids for t in first}) == 4


def test_samples_of_one_request_share_the_prompt_and_differ(generator):
    requests = [GroundedRequest(f"Where is {i}?", volume(4, i), id=f"r{i}", dimension="3d") for i in range(2)]
    encoded = []
    features = generator.features
    generator.features = lambda pixels, grids: (encoded.append(len(grids)), features(pixels, grids))[1]
    try:
        traces = generator.generate(requests, samples=3, temperature=1.0, max_new_tokens=16, max_rounds=0)
    finally:
        del generator.features
    assert [trace.request.id for trace in traces] == ["r0"] * 3 + ["r1"] * 3
    assert sum(encoded) == 8  # every slice once
    assert len({trace.token_ids for trace in traces}) == 6
    greedy = generator.generate(requests, samples=2, max_new_tokens=16)
    assert (
        greedy[0].token_ids
        == greedy[1].token_ids
        == generator.generate(requests, max_new_tokens=16)[0].token_ids
    )


def test_control_tokens_are_never_sampled(generator):
    request = GroundedRequest("Where?", [picture()])
    traces = generator.generate([request], samples=8, temperature=50.0, max_new_tokens=60, max_rounds=0)
    written = {token for trace in traces for token in trace.token_ids}
    assert written.isdisjoint(generator.never_written)
    assert len(written) > 100


def test_a_training_model_is_left_in_training_mode(tiny_model, generator):
    tiny_model[0].train()
    try:
        generator.generate([GroundedRequest("Where?", [picture()])], max_new_tokens=2)
        assert tiny_model[0].training
    finally:
        tiny_model[0].eval()


def test_grey_pictures_and_own_conversations(generator):
    grey = GroundedRequest("Where?", [picture().convert("L")])
    assert generator.generate([grey], max_new_tokens=2)[0].stop
    messages = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    ]
    trace = generator.generate([replace(grey, messages=messages)], max_new_tokens=2)[0]
    assert "Short." in generator.tokenizer.decode(trace.prompt_ids)


def test_requests_in_other_forms(generator):
    """Dictionaries, arrays, a serialized volume, and options as a list."""
    draw = np.random.default_rng(0)
    scan = Volume(draw.integers(0, 100, (5, 40, 50)).astype(np.int16), np.eye(4))
    stack = serialize(scan, size=(4, 64, 64))
    plain = GroundedRequest("Where?", stack.images(), {"A": "liver", "B": "left lung"}, "3d", id="x")
    others = [
        {
            "question": "Where?",
            "images": stack,
            "options": ["liver", "left lung"],
            "dimension": "3d",
            "id": "x",
        },
        GroundedRequest("Where?", list(stack.pixels), ("liver", "left lung"), "3d", id="x"),
    ]
    first, *rest = generator.generate([plain, *others], max_new_tokens=6)
    assert all(trace.token_ids == first.token_ids and trace.prompt_ids == first.prompt_ids for trace in rest)
    for wrong in (["scan.png"], [np.zeros((4, 4))], [np.zeros((4, 4, 2), np.uint8)]):
        with pytest.raises(RequestError, match="load_image"):
            GroundedRequest("Where?", wrong)


def test_a_trace_is_json(generator):
    requests, scripts = mixed_batch(generator)
    for trace in generator.generate(requests, scripts=scripts, max_new_tokens=60):
        back = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
        assert back["own_tokens"] + back["injected_tokens"] == len(trace.token_ids)
        assert [tuple(box) for box in back["boxes"]] == [box.as_tuple() for box in trace.boxes]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"tokens_per_round": 0},
        {"samples": 0},
    ],
)
def test_impossible_settings_are_refused(generator, settings):
    with pytest.raises(RequestError, match="What to do"):
        generator.generate([GroundedRequest("Where?", [picture()])], **settings)


def test_unusable_requests_are_refused(generator):
    with pytest.raises(RequestError, match="picture"):
        GroundedRequest("Where?", [])
    with pytest.raises(RequestError, match="2d or 3d"):
        GroundedRequest("Where?", [picture()], dimension="4d")
    with pytest.raises(RequestError, match="image_pad"):
        generator.generate([GroundedRequest("Where <|image_pad|>?", [picture()])])
    with pytest.raises(RequestError, match="option B"):
        generator.generate([GroundedRequest("Where?", [picture()], {"A": "x", "B": "<|im_end|>"})])
    assert generator.generate([]) == []
