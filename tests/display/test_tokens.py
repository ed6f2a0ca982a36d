from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from unireason_lib.display import loss_owners, loss_strip, token_strip


def chips(figure):
    """The words of the chips, in order."""
    return [text.get_text() for text in figure.axes[-1].texts]


def test_a_strip_shows_every_token_and_who_wrote_it(volume_trace, tokenizer, clean):
    figure = clean(token_strip(volume_trace, tokenizer, title="A reply"))
    injected = volume_trace.own_mask.count(0)
    own = len(volume_trace.own_mask) - injected
    prompt = len(volume_trace.prompt_ids)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [label.rpartition(" ")[2] for label in labels] == [
        str(n) for n in (prompt, own, injected)
    ]
    assert str(own) in figure.alt
    bars = [bar.get_paths() for bar in figure.axes[0].collections]
    edges = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for (path,) in bars]
    assert edges[0] == (0, prompt) and edges[-1][1] == prompt + own + injected
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    words = chips(figure)
    assert words[:2] == ["<|im_start|>", "8 images × 6"] and "3 images × 6" in words
    assert "".join(words[-7:]) == "A. left"


def test_an_example_shows_what_carries_loss(tokenizer, clean):
    """The two images of the question, and the one in the reply, are told apart."""
    image = [2, 3, 3, 4]
    ids = [*image, *image, *tokenizer.encode("Where?"), *tokenizer.encode("Here "), *image, 1]
    mask = [False] * 14 + [True] * 5 + [False] * 4 + [True]
    example = SimpleNamespace(ids=np.array(ids), loss_mask=np.array(mask))
    owners = loss_owners(example, tokenizer)
    assert owners == ["picture"] * 8 + ["prompt"] * 6 + ["own"] * 5 + ["injected"] * 4 + ["own"]
    words = chips(clean(loss_strip(example, tokenizer)))
    assert words[0] == "2 images × 2" and words[-2:] == ["image × 2", "<|im_end|>"]
    nothing = SimpleNamespace(ids=np.array(ids), loss_mask=np.zeros(len(ids), bool))
    assert set(loss_owners(nothing, tokenizer)) == {"picture", "prompt"}
