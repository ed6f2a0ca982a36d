"""A frozen tower sees no picture twice, and what comes out is what it would have made."""

import pytest
import torch

from unireason_lib.training.encoding import Collator
from unireason_lib.training.examples import Examples
from unireason_lib.training.remember import SeenImages
from unireason_lib.training.sft import freeze


@pytest.fixture
def batches(study, fresh_model):
    examples = Examples(study.records[::5], study.pictures, fresh_model[1])
    collate = Collator(fresh_model[1])
    return collate(examples[:4]), collate([*examples[2:5], examples[0]])


def test_the_model_says_the_same(fresh_model, batches):
    model = fresh_model[0]
    freeze(model)
    with torch.no_grad():
        plain = [model(**batch).logits for batch in batches]
    seen = SeenImages()
    seen.attach(model)
    with torch.no_grad():
        again = [model(**batch).logits for batch in batches]
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    asked = sum(len(batch["image_grid_thw"]) for batch in batches)
    assert seen.asked == asked and seen.encoded == len(seen.known) < asked
    before = seen.encoded
    loss = model(**batches[0]).loss
    loss.backward()
    assert seen.encoded == before and model.get_input_embeddings().weight.grad is not None


def test_the_oldest_is_forgotten(fresh_model, batches):
    model = fresh_model[0]
    freeze(model)
    seen = SeenImages(most=3)
    seen.attach(model)
    with torch.no_grad():
        found = model.model.get_image_features(
            batches[0]["pixel_values"], batches[0]["image_grid_thw"]
        )
    assert len(seen.known) == 3 and len(found.pooler_output) == len(batches[0]["image_grid_thw"])


def test_a_tower_that_learns_is_refused(fresh_model):
    freeze(fresh_model[0], vision=False)
    with pytest.raises(ValueError, match="frozen"):
        SeenImages().attach(fresh_model[0])
