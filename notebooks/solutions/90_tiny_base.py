"""Solutions of notebook 90. Run it, ``python notebooks/solutions/90_tiny_base.py``, or import its
functions."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from unireason_lib.tiny_base import HELD_OUT, exercise, replies

OPTIONS = ("left and upper", "right and upper", "left and lower", "right and lower")


def similarity_of_ends(model: Any, processor: Any, options: Sequence[str] = OPTIONS) -> float:
    """Exercise 1: mean cosine similarity, after layer 0, of the last tokens of options that end in
    the same word. These tokens start from equal embeddings. Only what they gathered from the other
    tokens of their option tells them apart, and *option* needs just that: without *phrase* it would
    find both and spread its attention over them."""
    text = "\n".join(f"{mark}. {option}" for mark, option in zip("ABCD", options, strict=True))
    tokens = processor.tokenizer(text, return_offsets_mapping=True)
    ends = [text.index(option) + len(option) for option in options]
    last = [
        next(k for k, (_, end) in enumerate(tokens["offset_mapping"]) if end >= place)
        for place in ends
    ]
    with torch.no_grad():
        ids = torch.tensor([tokens["input_ids"]], device=model.device)
        hidden = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, last]
    cosines = torch.nn.functional.cosine_similarity(hidden[:, None], hidden[None], dim=-1)
    words = [option.split()[-1] for option in options]
    pairs = [(i, j) for j in range(4) for i in range(j) if words[i] == words[j]]
    return sum(cosines[pair].item() for pair in pairs) / len(pairs)


def reach_of_letter(
    model: Any, processor: Any, words: int, count: int = 60, seed: int = 1
) -> tuple[int, int]:
    """Exercise 2: the number of right letters, and of exercises, when so many filler words stand
    between the options and the conclusion. Distances beyond the 120 words of training were never
    practised: there one sees how far rotary positions generalize by themselves."""
    rng, asked = random.Random(seed), []
    candidates = (exercise("letters", HELD_OUT + k, seed) for k in range(20 * count))
    for one in (one for one in candidates if one.letter):
        *options, conclusion = one.question.splitlines()
        conclusion = conclusion.split(". ")[-1]  # without the filler that was drawn
        filler = " ".join(rng.choice(("one", "may", "see", "how", "it", "looks")) for _ in range(words))
        question = "\n".join([*options, f"{filler}. {conclusion}" if words else conclusion])
        asked.append(replace(one, question=question))
        if len(asked) == count:
            break
    texts = replies(model, processor, asked)
    right = sum(text[:1] == one.letter for one, text in zip(asked, texts, strict=True))
    return right, len(asked)


def iterated(value: float, steps: int = 5, a: float = 3.4445, b: float = -4.775, c: float = 2.0315):
    """Exercise 3: a singular value after some steps of Muon's iteration, s <- as + bs^3 + cs^5.
    Values of about 0.0013 to 1 end between 0.6 and 1.2; smaller ones are still rising, since each step
    multiplies them by about a, and from about 1.3 on they diverge. So the matrix is divided by its
    Frobenius norm first, which is at least its largest singular value."""
    for _ in range(steps):
        value = a * value + b * value**3 + c * value**5
    return value


if __name__ == "__main__":
    from unireason_lib.grounding import load_model
    from unireason_lib.notebooks import project_root

    model, processor = load_model(project_root() / "data" / "tiny-base", device="cpu")
    torch.manual_seed(0)
    for name, one in (("tiny base", model), ("random weights", type(model)(model.config))):
        print(f"1. {name}: cosine of equal last words {similarity_of_ends(one, processor):.2f}")
    for distance in (0, 100, 200, 400):
        right, asked = reach_of_letter(model, processor, distance)
        print(f"2. {distance} words between: {right} of {asked} letters right")
    for start in (1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0, 1.1, 1.29):
        print(f"3. {start:g} becomes {iterated(start):.3g}")
