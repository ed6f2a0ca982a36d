"""Grounded generation: exact, batched, and undisturbed by whatever the model writes."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import RequestError
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, Settings, load_model
from unireason_lib.grounding.cache import sdpa_on_cpu
from unireason_lib.grounding.generate import _Running
from unireason_lib.grounding.replies import Row

OPTIONS = {"A": "liver", "B": "left lung"}


def image(width=64, height=64, seed=0):
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def volume(slices=6, seed=0):
    return [image(seed=seed + i) for i in range(slices)]


@pytest.fixture(scope="module", params=["tiny_model", "tiny_qwen3"])
def both(request):
    """The generator of a tiny model of each family."""
    return GroundedGenerator(*request.getfixturevalue(request.param))


def boxed(generator, *corners):
    """A box in pixels of 64 x 64 images, as the model writes it."""
    box = box_of(corners)
    return format_box(generator.frame.written(box, 64, 64, depth=8))


def mixed(generator):
    """Requests of different lengths, dimensions and numbers of boxes, and scripts that point."""
    requests = [
        GroundedRequest("Where is the liver?", [image()], OPTIONS, id="one"),
        GroundedRequest("Is it large?", [image(112, 48)], id="none"),
        GroundedRequest("Which structure lies here?", volume(8), OPTIONS, "3d", id="three"),
        GroundedRequest("What?", volume(3, 50), dimension="3d", id="hostile"),
    ]
    cuboids = boxed(generator, 0, 0, 1, 64, 64, 4), boxed(generator, 8, 8, 0, 40, 60, 2)
    hostile = "<|box_start|>[9,9,1,1e999]<|box_end|>", "<|box_start|>(-9,-9,0,99,99,9)<|box_end|>"
    plans = [
        ("<think>", 5, boxed(generator, 5, 5, 60, 60), 12),
        ("<think>", 19),
        (3, cuboids[0], 6, cuboids[1], 2, boxed(generator, 0, 0, 7, 64, 20, 8), 9),
        (2, hostile[0], 4, hostile[1], 7),
    ]
    return requests, [Script(generator.tokenizer, plan) for plan in plans]


def write(generator, request, *parts, **settings):
    """The reply to a request that is made to begin with some parts."""
    script = Script(generator.tokenizer, parts)
    settings = {"max_new_tokens": len(script), **settings}
    return generator.generate([request], scripts=[script], **settings)[0]


def test_batched_cached_and_encoded_again_write_the_same(both):
    requests, scripts = mixed(both)
    how = {"scripts": scripts, "max_new_tokens": 76, "max_rounds": 99}
    together = both.generate(requests, **how)
    slow = GroundedGenerator(both.model, both.processor, reuse_cache=False)
    for traces in (slow.generate(requests, **how), both.generate(requests, batch_size=1, **how)):
        for a, b in zip(together, traces, strict=True):
            assert (a.token_ids, a.own_mask, a.text) == (b.token_ids, b.own_mask, b.text)
            assert a.boxes == b.boxes and np.allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert [len(crops) for trace in together for crops in trace.crops] == [1, 3, 2, 1, 3]


def test_a_large_batch_may_be_encoded_again_report_14(generator):
    """One of nine had ended, too few to be taken out of the batch."""
    texts = ["<|im_end|>"] + [f"<think>{boxed(generator, 5, 5, 60, 60)}"] * 8
    scripts = [
        Script(generator.tokenizer, (text, 3) if "box" in text else (text,)) for text in texts
    ]
    requests = [GroundedRequest("Where?", [image()])] * 9
    slow = GroundedGenerator(generator.model, generator.processor, reuse_cache=False)
    replies = (g.generate(requests, scripts=scripts, max_new_tokens=24) for g in (generator, slow))
    assert [*map(lambda a, b: a.token_ids == b.token_ids, *replies)] == [True] * 9


def test_logits_are_those_of_a_forward_pass_over_pixels(both, monkeypatch):
    """transformers' own, with all images in one sequence; it reads every kind of feature."""
    request, script = (one[2] for one in mixed(both))  # crops of several tokens, three times
    how = {"scripts": [script], "max_new_tokens": 60, "max_rounds": 99}
    (trace,) = both.generate([request], **how)
    ids = torch.tensor([trace.prompt_ids + trace.token_ids])
    images = [*request.images, *(crop for crops in trace.crops for crop in crops)]
    inputs = both.processor.image_processor(images=images, return_tensors="pt")
    kinds = (ids == both.image_token).int()
    with torch.no_grad():
        logits = both.model(input_ids=ids, mm_token_type_ids=kinds, **inputs).logits[0, :-1].float()
    logits[:, both.never_written] = -torch.inf
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[-len(trace.token_ids) :, 0]
    own = np.array(trace.own_mask, bool)
    assert np.abs(np.array(trace.logprobs) - expected.numpy())[own].max() < 1e-4
    # the features of each layer count
    features = both.features
    for layer in range(len(features(*both.encode_crops(images[:1]))[0])):

        def without(pixels, grids, layer=layer):
            return [f.index_fill(0, torch.tensor(layer), 0) for f in features(pixels, grids)]

        monkeypatch.setattr(both, "features", without)
        (other,) = both.generate([request], **how)
        assert np.abs(np.subtract(trace.logprobs, other.logprobs)[own]).max() > 1e-2


def test_what_is_injected_is_counted_in_tokens(both):
    generator, box = both, Box3D(4, 4, 2, 44, 36, 5)
    request, written = (
        GroundedRequest("Where?", volume(8), OPTIONS, "3d"),
        boxed(both, *box.as_tuple()),
    )
    trace = write(generator, request, written, 3)
    (pointing,) = trace.pointings
    assert pointing.status == "injected" and pointing.box == box == trace.boxes[0]
    assert pointing.text == written
    assert trace.to_dict().get("scale") == trace.scale == generator.frame.scale
    assert [crop.size for crop in pointing.crops] == [(40, 32)] * 3
    count = generator.frame.tokens(32, 40)
    crop = [generator.vision_start, *[generator.image_token] * count, generator.vision_end]
    place = slice(pointing.position, pointing.position + 3 * len(crop))
    assert list(trace.token_ids[place]) == 3 * crop and sum(trace.own_mask[place]) == 0
    assert len(trace.own_mask) - sum(trace.own_mask) == 3 * len(crop)
    assert trace.token_ids[pointing.position - 1] == generator.box_end
    assert "image_pad" not in trace.text
    # crops are cut from the image as the model sees it
    big = Image.new("RGB", (512, 512))
    big.paste((255, 255, 255), (256, 256, 512, 512))
    assert generator.frame.size(512, 512) == (128, 128)
    box = boxed(generator, 32, 32, 64, 64) if trace.scale else format_box(Box2D(64, 64, 128, 128))
    trace = write(generator, GroundedRequest("Where?", [big]), box, 1)
    crop = np.asarray(trace.crops[0][0])
    assert crop.shape == (64, 64, 3) and crop[4:, 4:].min() > 250


STATUS = {  # of boxes in an image, and in a volume of 6 slices
    "injected": ("[0,0,64,64] [0,0,5,64,64,9] [-50,-50,32,32]", "[0,0,5,64,64,99]"),
    "outside": ("[70,0,90,64]", "[0,0,6,64,64,9] [0,0,-3,64,64,0]"),
    "malformed": ("[9,9,3,3] [nan,0,1,1] ?", ""),
    "no slice": ("", "[0,0,64,64]"),
}


@pytest.mark.parametrize("status", STATUS)
def test_what_becomes_of_a_box(generator, status):
    for dimension, count, texts in zip(("2d", "3d"), (1, 6), STATUS[status], strict=True):
        for written in texts.split():
            request = GroundedRequest("Where?", volume(count), OPTIONS, dimension)
            trace = write(generator, request, f"<|box_start|>{written}<|box_end|>", 4)
            (pointing,) = trace.pointings
            assert pointing.status == status
            assert bool(pointing.crops) == (status == "injected") == (0 in trace.own_mask)
            assert len(trace.boxes) == len(trace.crops) == (status != "malformed")


def test_a_box_that_the_reply_ends_in_has_the_text_of_the_reply(generator):
    """Fault: the end of the turn was part of the box, and a notebook could not show the reply."""
    request = GroundedRequest("Where?", [image()])
    trace = write(generator, request, "<think>At <|box_start|>[3,4<|im_end|>")
    (pointing,) = trace.pointings
    assert pointing.status == "malformed" and trace.text.endswith(pointing.text) and pointing.text
    assert trace.stop == "end" and "(malformed)" in trace._repr_html_()
    trace = write(
        generator, request, "<think><|box_start|>[3,4 <|box_start|>[0,0,64,64]<|box_end|>"
    )
    position = trace.pointings[0].position  # behind the first box, where the second one opens
    assert generator.tokenizer.decode([trace.token_ids[position]]) == "<|box_start|>"


def test_budgets_hold_and_cut_no_answer(generator):
    request = GroundedRequest("Where?", [image()])
    box, end = "<|box_start|>[0,0,64,64]<|box_end|>", "</think>A. liver<|im_end|>"

    def statuses(**settings):
        trace = write(generator, request, "<think>", *[box] * 4, end, **settings)
        assert trace.choice == "A" and trace.stop == "end" and trace.in_format
        return [pointing.status for pointing in trace.pointings]

    assert statuses(max_rounds=2) == ["injected"] * 2 + ["rounds used up"] * 2
    assert statuses(max_injected_tokens=40) == ["injected"] * 2 + ["tokens used up"] * 2
    length = len(Script(generator.tokenizer, (2, box)))
    for budget in (1, length, length + 9):
        trace = write(generator, request, 2, box, 50, max_new_tokens=budget)
        assert sum(trace.own_mask) == budget and trace.stop == "length"
        assert (0 in trace.own_mask) == (budget > length)  # nothing is fetched at the very end


def test_sampling_depends_on_the_seed_and_not_on_the_batch(generator):
    requests = [GroundedRequest(f"Where is {i}?", [image(seed=i)], id=f"r{i}") for i in range(4)]
    how = {"top_p": 0.95, "temperature": 1.0, "max_new_tokens": 12}
    first = [trace.token_ids for trace in generator.generate(requests, seed=7, **how)]
    alone = [generator.generate([r], seed=7, **how)[0].token_ids for r in requests]
    other = [trace.token_ids for trace in generator.generate(requests, seed=8, **how)]
    assert first == alone and first != other and len(set(first)) == 4


@pytest.mark.parametrize("top_p", [1.0, 0.85])
def test_sampling_stays_on_the_device_and_follows_the_probabilities(generator, monkeypatch, top_p):
    """No vocabulary-wide table is copied to the CPU for a token; the nucleus is cut as it should."""
    settings = Settings(temperature=2.0, top_p=top_p)
    request = GroundedRequest("Where?", [image()])
    row = Row(generator, request, settings, None, 0)
    running, probabilities = _Running(generator, [row]), torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    scores = 2 * probabilities.log()[None]
    evenly = iter((np.arange(2000) + 0.5) / 2000)
    row.draw = SimpleNamespace(random=lambda: next(evenly))
    real, wide = torch.Tensor.to, len(probabilities)

    def to(tensor, *words, **more):
        assert tensor.shape[-1] < wide, "a vocabulary-wide table changes its device"
        return real(tensor, *words, **more)

    for name in ("cpu", "numpy", "tolist", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, None)
    monkeypatch.setattr(torch.Tensor, "to", to)
    tokens = [int(running._sample([row], scores)) for _ in range(2000)]
    counts = np.bincount(tokens, minlength=5) / 2000
    expected = [0.1, 0.4, 0, 0.3, 0.2] if top_p == 1 else [0, 4 / 9, 0, 3 / 9, 2 / 9]
    assert np.allclose(counts, expected, atol=1e-3)


def test_samples_of_one_request_share_the_prompt_and_differ(generator, monkeypatch):
    requests = [GroundedRequest("Where?", volume(4), id=i, dimension="3d") for i in ("r0", "r1")]
    features = Mock(wraps=generator.features)
    monkeypatch.setattr(generator, "features", features)
    how = {"max_new_tokens": 16, "max_rounds": 0}
    traces = generator.generate(requests, samples=3, temperature=1.0, **how)
    assert [trace.request.id for trace in traces] == ["r0"] * 3 + ["r1"] * 3
    assert sum(len(call.args[1]) for call in features.call_args_list) == 8  # every slice once
    assert len({trace.token_ids for trace in traces}) == 6
    greedy = generator.generate(requests, samples=2, **how)
    alone = generator.generate(requests[1:], **how)[0]
    assert greedy[2].token_ids == greedy[3].token_ids == alone.token_ids
    # control tokens are never sampled
    hot = generator.generate(requests[:1], samples=8, temperature=50.0, max_new_tokens=40)
    pairs = [pair for trace in hot for pair in zip(trace.token_ids, trace.own_mask, strict=True)]
    written = {token for token, own in pairs if own}
    assert written.isdisjoint(generator.never_written) and len(written) > 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0, "temperature": -1, "top_p": 1.5}, "positive token budgets"),
        ({"samples": 0}, "samples >= 1"),
        ({"images": []}, "at least one image"),
        ({"images": ["scan.png"]}, "load_image"),
        ({"images": [np.zeros((64, 64), np.uint16)]}, "0 of 1 images"),
        ({"dimension": "4d"}, "2d or 3d"),
        ({"question": "Where <|image_pad|>?"}, "image_pad"),
    ],
)
def test_impossible_requests_and_settings_are_refused(generator, wrong, message):
    request = {"question": "Where?", "images": [image()], "dimension": "2d"}
    settings = {name: value for name, value in wrong.items() if name not in request}
    request |= {name: wrong[name] for name in wrong.keys() & request}
    with pytest.raises(RequestError, match=message):
        generator.generate([GroundedRequest(**request)], **settings)


def test_images_of_a_request_may_be_arrays():
    request = GroundedRequest("Which?", [np.zeros((64, 64), np.uint8)])
    assert [i.mode for i in request.images] == ["RGB"]
    with pytest.raises(RequestError, match="at most 8 options, found 9"):
        GroundedRequest("Which?", [image()], ["x"] * 9)


@pytest.mark.parametrize("dtype, autocast", [("float32", False), ("bfloat16", True)])
def test_a_cpu_attends_in_float32_and_writes_as_with_transformers_own(
    generator, tiny_checkpoint, dtype, autocast
):
    (requests, scripts), traces = mixed(generator), {}
    how = {"scripts": scripts, "max_new_tokens": 60, "max_rounds": 99}
    for attention in (None, "sdpa"):
        model, processor = load_model(tiny_checkpoint, dtype=dtype, attn_implementation=attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            traces[attention] = GroundedGenerator(model, processor).generate(requests, **how)
    for a, b in zip(*traces.values(), strict=True):
        # of random weights, rounding soon turns a close choice
        same = 9 if autocast else len(a.token_ids)
        assert a.token_ids[:same] == b.token_ids[:same]
        assert np.allclose(a.logprobs[:same], b.logprobs[:same], atol=0.1 if autocast else 1e-4)


def test_attention_is_in_float32_on_a_cpu():
    random = torch.Generator().manual_seed(0)
    states = torch.randn(3, 1, 2, 5, 8, generator=random).bfloat16().requires_grad_().unbind()
    module = torch.nn.Module()
    module.is_causal = True
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = sdpa_on_cpu(module, *states, None)
    exact = scaled_dot_product_attention(*(x.float() for x in states), is_causal=True)
    assert torch.equal(output, exact.transpose(1, 2).bfloat16())
    moved, _ = sdpa_on_cpu(module, *(x.to("meta") for x in states), None)  # by a trainer
    assert moved.dtype == torch.bfloat16 and moved.device.type == "meta"
