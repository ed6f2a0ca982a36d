"""Solutions of notebook 04. Run it, ``python notebooks/solutions/04_sft.py``, or import its
functions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unireason_lib.dataset.schema import Record
from unireason_lib.training.data import Examples, Images
from unireason_lib.training.encoding import Collator, Encoded, Encoder, conversation
from unireason_lib.training.sft import freeze


def train_with_both_masks(
    load: Callable[[], Any], processor: Any, record: Record, images: Images, steps: int = 40
) -> dict[str, tuple[float, float]]:
    """Exercise 1: for each mask, after some steps on one record, the loss that training reports and
    the loss of the generated tokens alone. ``load`` gives a fresh model.

    All injected tokens have the same label, ``<|image_pad|>``, which is soon learnt. If they are
    many, the reported loss falls below that of the generated tokens and so looks better than it is.
    What the model learns from them is to write image tokens, which generation forbids.
    """
    right = Encoder(processor)(conversation(record, images(record)))
    wrong = replace(right, loss_mask=np.arange(len(right)) >= right.loss_mask.argmax())
    collate, result = Collator(processor), {}
    for name, one in {"right mask": right, "injected tokens too": wrong}.items():
        model = load()
        freeze(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        batch = collate([one])
        for _ in range(steps):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            result[name] = loss.item(), model(**collate([right])).loss.item()
    return result


def accuracy_of_letters(
    model: Any, processor: Any, records: Sequence[Record], images: Images
) -> float:
    """Exercise 2: how often the next token is the right letter when the written reasoning is given.

    Its boxes are true and it ends with the conclusion, so this measures little more than copying.
    The free-running accuracy is lower because of errors before the letter: in the box, or in what is
    read from it.
    """
    end, right = processor.tokenizer.convert_tokens_to_ids("</think>"), []
    for one in Examples(records, images, processor):
        batch = Collator(processor)([one])
        batch.pop("labels")
        with torch.inference_mode():
            likeliest = model(**batch).logits[0].argmax(-1)
        (at,) = np.flatnonzero((one.ids == end) & one.loss_mask)
        right.append(int(likeliest[at]) == one.ids[at + 1])
    return float(np.mean(right))


def weights(conversations: Sequence[Encoded], alike: bool = False) -> list[float]:
    """Exercise 3: the weight of each reply in the loss of a batch. It is proportional to the number
    of its tokens with loss; if replies weighed ``alike``, each token of a long one would weigh
    less, so the letter, one token per reply, would weigh less in long replies than in short ones."""
    counts = np.array([int(one.loss_mask.sum()) for one in conversations])
    return (np.ones(len(counts)) / len(counts) if alike else counts / counts.sum()).tolist()


if __name__ == "__main__":
    import tempfile
    from functools import partial

    from unireason_lib.config import load_profile
    from unireason_lib.dataset.build import phantom_set
    from unireason_lib.evaluation import as_table, ask_items
    from unireason_lib.evaluation.benchmarks import record_item
    from unireason_lib.grounding import GroundedGenerator, load_profile_model
    from unireason_lib.notebooks import project_root
    from unireason_lib.training.data import images_from, training_records

    profile, root = load_profile("smoke"), project_root()
    load = partial(load_profile_model, profile.model, root)
    model, processor = load()
    generator = GroundedGenerator(model, processor)
    with tempfile.TemporaryDirectory() as folder:  # patients whom no training has seen
        phantom_set(folder, 24, 12, generator.frame, profile.dataset, first=390_000)
        records, images = training_records(folder), images_from(folder)
        items = [record_item(record, images) for record in records]
        table = as_table(ask_items(generator, items, batch_size=32))
        examples = list(Examples(records, images, processor))
        injected = [len(o) - o.loss_mask.argmax() - o.loss_mask.sum() for o in examples]
        most = records[int(np.argmax(injected))]
        base = partial(load, profile.model.base)
        both = train_with_both_masks(lambda: base()[0], processor, most, images)
        print(f"1. a record with {max(injected)} injected tokens")
        for name, (reported, generated) in both.items():
            print(f"   {name}: reported loss {reported:.2f}, of generated tokens {generated:.2f}")
        letters = accuracy_of_letters(model, processor, records, images)
        free = table["correct"].mean()
        print(f"2. letters right: {letters:.0%} with the reasoning given, {free:.0%} free-running")
        parts = sorted(weights(examples[:16]))
        print(f"3. the longest of {len(parts)} replies weighs {parts[-1] / parts[0]:.1f} times")
