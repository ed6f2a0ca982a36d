from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unireason_lib.display import loss_strip, token_strip, token_strip_html
from unireason_lib.display.tokens import loss_owners, token_chips, token_counts


def reply(ids, own, prompt=()):
    return SimpleNamespace(token_ids=tuple(ids), own_mask=tuple(own), prompt_ids=tuple(prompt))


TOKENS = st.lists(
    st.tuples(st.sampled_from([3, 4, 4, 4, 5, 2, 113, 114, 48, 240, 168, 178]), st.integers(0, 1)),
    max_size=60,
)


@settings(deadline=None)
@given(TOKENS, st.integers(2, 30))
def test_every_token_is_shown_or_counted(tokenizer, tokens, limit):
    ids, own = [i for i, _ in tokens], [o for _, o in tokens]
    trace = reply(ids, own, prompt=ids)
    chips = token_chips(trace, tokenizer, max_prompt=limit, max_reply=limit)
    assert sum(chip.tokens for chip in chips) == 2 * len(ids)
    assert all(chip.text and chip.tokens > 0 for chip in chips)
    full = token_chips(trace, tokenizer, max_prompt=1000, max_reply=1000)
    counts = token_counts(trace)
    for owner, count in counts.items():
        assert sum(chip.tokens for chip in full if chip.owner == owner) == count


def test_tokens_of_pictures_are_counted_in_one_chip(tokenizer):
    two = [3, 4, 4, 4, 5, 3, 4, 4, 4, 5]
    cases = {
        (3, 4, 4, 5): "image × 2",
        tuple(two): "2 images × 3",
        (*two, 3, 4, 5): "3 images, 7 tokens",
    }
    for ids, words in cases.items():
        (chip,) = token_chips(reply(ids, [0] * len(ids)), tokenizer)
        assert (chip.text, chip.owner, chip.tokens) == (words, "injected", len(ids))


def test_a_picture_of_the_prompt_is_not_one_of_the_reply(tokenizer):
    chips = token_chips(reply([3, 4, 5], [0, 0, 0], prompt=[3, 4, 4, 5]), tokenizer)
    assert [(chip.text, chip.owner) for chip in chips] == [
        ("image × 2", "prompt"),
        ("image × 1", "injected"),
    ]


def test_a_control_token_without_a_picture_stays_a_token(tokenizer):
    chips = token_chips(reply([3, 113, 5], [1, 1, 1]), tokenizer)
    assert [chip.text for chip in chips] == ["<|vision_start|>", "a", "<|vision_end|>"]


def test_a_character_of_several_tokens_is_one_chip(tokenizer):
    ids = tokenizer.encode("é漢")
    chips = token_chips(reply(ids, [1] * len(ids)), tokenizer)
    assert [(chip.text, chip.tokens) for chip in chips] == [("é", 2), ("漢", 3)]
    broken = token_chips(reply([ids[0], 113], [1, 1]), tokenizer)
    assert [chip.text for chip in broken] == ["\ufffd", "a"]


def test_a_long_prompt_keeps_its_pictures(tokenizer):
    prompt = [*tokenizer.encode("a" * 100), 3, 4, 4, 5, *tokenizer.encode("b" * 100)]
    chips = token_chips(reply([113], [1], prompt), tokenizer, max_prompt=9)
    assert [chip.text for chip in chips] == [
        *"aaa",
        "… 97 tokens …",
        "image × 2",
        "… 94 tokens …",
        *"bbbbbb",
        "a",
    ]


def test_strip_shows_counts_and_has_a_clean_layout(volume_trace, tokenizer, clean_layout):
    figure = token_strip(volume_trace, tokenizer, title="Who wrote what")
    counts = token_counts(volume_trace)
    words = [text.get_text() for text in figure.texts]
    assert counts["injected"] == 7 * 8 and counts["own"] == sum(volume_trace.own_mask)
    for count in counts.values():
        assert sum(text.endswith(f": {count:,}") for text in words) == 1
    clean_layout(figure)


def test_bar_is_to_scale(volume_trace, tokenizer):
    figure = token_strip(volume_trace, tokenizer)
    bar = next(axes for axes in figure.axes if axes.collections)
    for collection, count in zip(bar.collections, token_counts(volume_trace).values(), strict=True):
        widths = [
            path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in collection.get_paths()
        ]
        assert sum(widths) == pytest.approx(count)


def example(prompt, *reply):
    """An example to learn from: the prompt, then stretches of the reply with whether they are its own."""
    ids, own = list(prompt), [False] * len(prompt)
    for stretch, mine in reply:
        ids, own = ids + stretch, own + [mine] * len(stretch)
    return SimpleNamespace(ids=np.array(ids, np.int32), own=np.array(own))


PICTURE = [3, 4, 4, 4, 5]


def test_an_example_has_four_kinds_of_tokens(tokenizer):
    said, ended, line = tokenizer.encode("ab"), [2], tokenizer.encode("\n")
    one = example(
        [1, *PICTURE, *said], (said, True), (PICTURE, False), (said + ended, True), (line, False)
    )
    kinds = [
        ("prompt", 1),
        ("picture", 5),
        ("prompt", 2),
        ("own", 2),
        ("injected", 5),
        ("own", 3),
        ("prompt", 1),
    ]
    assert loss_owners(one, tokenizer) == [kind for kind, count in kinds for _ in range(count)]
    silent = example([1, *PICTURE])
    assert loss_owners(silent, tokenizer) == ["prompt", *["picture"] * 5]


def test_the_strip_of_an_example_counts_what_carries_loss(tokenizer, clean_layout):
    words = tokenizer.encode("It is left." * 6)
    one = example(
        [1, *PICTURE, *words],
        (words, True),
        (PICTURE * 3, False),
        ([*words, 2], True),
        ([26], False),
    )
    figure = loss_strip(one, tokenizer, title="What carries loss")
    said = [text.get_text() for text in figure.texts]
    assert sum(text.endswith(f"(loss): {2 * len(words) + 1}") for text in said) == 1
    assert sum(text.endswith("pictures (no loss): 5") for text in said) == 1
    assert sum(text.endswith("put in (no loss): 15") for text in said) == 1
    bar = next(axes for axes in figure.axes if axes.collections)
    drawn = sum(
        path.vertices[:, 0].max() - path.vertices[:, 0].min()
        for collection in bar.collections
        for path in collection.get_paths()
    )
    assert drawn == pytest.approx(len(one.ids))
    clean_layout(figure)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_html_strip_escapes_and_says_the_same(volume_trace, tokenizer):
    ids = tokenizer.encode("<script>alert('x')</script>\"&")
    html = token_strip_html(reply(ids, [1] * len(ids), prompt=volume_trace.prompt_ids), tokenizer)
    reader = Reader()
    reader.feed(html)
    assert set(reader.tags) == {"div", "span"}
    assert "<script>alert('x')</script>\"&" in reader.text
    assert "8 images × 6" in reader.text
    assert html._repr_html_() == str(html)
