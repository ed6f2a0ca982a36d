"""The functions of notebook 03 as they are written there, and its solutions."""

import pytest
import torch
from PIL import Image

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, load_model

NAME = "03_grounded_interface"


@pytest.fixture(scope="module")
def generator(tiny_model):
    return GroundedGenerator(*tiny_model)


@pytest.fixture(scope="module")
def functions(generator, tiny_checkpoint):
    """The functions of the notebook, over the objects that its cells would have made."""
    eager, _ = load_model(tiny_checkpoint, device="cpu", attn_implementation="eager")
    names = {"torch": torch, "generator": generator, "frame": generator.frame, "eager": eager}
    names |= {"model": generator.model, "tokenizer": generator.tokenizer}
    return functions_of(NAME, **names)


@pytest.fixture(scope="module")
def trace(generator):
    """A reply with two boxes of different sizes about a volume."""
    images = [Image.new("RGB", (96, 64), (40 * k,) * 3) for k in range(4)]
    request = GroundedRequest("Where?", images, {"A": "left", "B": "right"}, "3d")
    boxes = "<|box_start|>[0,0,1,40,20,3]<|box_end|>", "<|box_start|>[9,0,0,96,64,1]<|box_end|>"
    script = Script(generator.tokenizer, ("<think>", boxes[0], 2, boxes[1], 5))
    return generator.generate([request], scripts=[script], max_new_tokens=len(script))[0]


def test_positions_are_those_of_transformers_and_go_on_from_any_place(functions, generator, trace):
    ids = [*trace.prompt_ids, *trace.token_ids]
    crops = [generator.encode_crops(one)[1] for one in trace.crops]
    grids = [*generator.encode(trace.request)[2], *(grid for one in crops for grid in one)]
    positions, at = functions.mrope(ids, grids)
    types = (torch.tensor([ids]) == generator.image_token).int()
    theirs, _ = generator.model.model.get_rope_index(
        torch.tensor([ids]), types, torch.tensor(grids)
    )
    assert torch.equal(positions, theirs[:, 0]) and at == positions.max() + 1
    shifted, _ = functions.mrope(ids, grids, 7)
    assert torch.equal(shifted, positions + 7)


def test_crops_are_injected_as_the_library_does(functions, trace):
    for crops, pointing in zip(trace.crops, trace.pointings, strict=True):
        tokens, positions, after, _, grids = functions.inject(crops, 5)
        place = slice(pointing.position, pointing.position + len(tokens))
        assert list(trace.token_ids[place]) == tokens and not any(trace.own_mask[place])
        assert positions.shape == (3, len(tokens)) and len(grids) == len(crops)
        assert after == positions.max() + 1


def test_attention_is_a_mean_over_a_distribution(functions, trace):
    rows = functions.attention_per_token(trace)
    assert len(rows) == len(functions.eager.model.language_model.layers)
    count = sum(token == functions.generator.image_token for token in trace.prompt_ids)
    assert all(0 < prompt * count < 100 and 0 < crop < 100 for prompt, crop in rows)


def test_the_solutions_run(generator):
    solutions = solutions_of(NAME)
    assert solutions.cost_of_cuboid(100, 60, slices=5) == (50, 30)
    accuracy, count = solutions.texture_probe(generator, patients=24)
    assert set(accuracy) == {"whole image", "crop"} and 0 < count < 12
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert min(solutions.seconds_saved(generator, slices=2, boxes=2)) > 0
