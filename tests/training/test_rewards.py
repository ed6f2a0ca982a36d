"""Rewards: the released arithmetic to the letter, and a strict one that is not exploited."""

import pytest

from unireason_lib.boxes import Box2D
from unireason_lib.errors import RequestError
from unireason_lib.training.rewards import (
    answer_reward,
    format_reward,
    iou_reward,
    reward_functions,
)

BOX = "<|box_start|>[8,8,30,40]<|box_end|>"
GOOD = f"<think>The liver is at {BOX}. So: liver.</think>B. Liver"
TRUE = Box2D(8, 8, 30, 40)
OPTIONS = {"A": "Heart", "B": "Liver", "C": "Spleen", "D": "Aorta"}


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        (GOOD, 1, 1),
        ("This shows a mass, so the answer is B.", 1, 0),  # an article is read as A
        ("<think>It is B.</think>I cannot tell.", 0, 0),
        ("<think>It is B.", 0, 1),
        ("B <think>or not</think>", 0, 1),  # text before a thought counts
        ("<THINK>A</Think>b", 0, 1),  # tags in any case of letters
        ("<think>A</think>C</think>B", 1, 0),  # the shortest thought
        ("A or B", 0, 0),
        ("B or A", 0, 1),
        ("", 0, 0),
        ("liver", 1, 0),
        ("B. Heart", 0, 1),  # a letter with the text of another option
        ("E (b)", 0, 1),  # E is none of the four
        ("a1 B_ B", 0, 1),  # a letter beside a digit or a line does not stand alone
        ("<think>\nA\n</think>\nB", 1, 1),  # over lines
        ("<think>A</think> <think>C</think>B", 1, 1),
        ("éB", 0, 0),  # a letter of any alphabet beside it
    ],
)
def test_answers(text, strict, paper):
    assert answer_reward(text, "B", options=OPTIONS) == strict
    assert answer_reward(text, "B", mode="paper") == paper
    assert answer_reward(text, "B. Liver", options=OPTIONS) == strict
    for truth in ("B. Liver", "liver: (b)", "<think>A</think>B:"):  # read by the same rule
        assert answer_reward(text, truth, "paper") == paper
    assert answer_reward(text, "", "paper") == answer_reward(text, "", "strict") == 0
    with pytest.raises(RequestError, match="strict or paper"):
        answer_reward(text, "B", mode="x")


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        (GOOD, 1.0, 1.0),
        ("", 0.0, 0.0),
        ("  \n", 0.0, 1.0),
        ("lorem ipsum", 0.0, 1.0),
        ("<think>I look.</think>B. Liver", 0.5, 1.0),
        (f"I look at {BOX}. B", 0.0, 1.0),
        (f"<think>{BOX}</think>B", 0.0, 1.0),  # no word in it
        (f"<think>I look at {BOX}.</think>", 0.0, 1.0),  # no answer after it
        (f"<think>I look at {BOX}.</think>B {BOX}", 0.5, 1.0),
        ("<think>I look at <|box_start|>[8,8,30,40].</think>B", 0.5, 0.5),
        ("<think>One.</think><think>Two.</think>B", 0.0, 1.0),
        ("B<think>late</think>B", 0.0, 1.0),
        ("<THINK>One.</Think>B <|BOX_END|>", 0.0, 1.0),  # thoughts in any case of letters
        ("<think>One. <|box_end|>B", 0.0, 0.0),
        ("<think>I look at <|box_start|>[8,8,9,40]<|box_end|>.</think>B", 0.5, 1.0),  # a line
        ("<think>I look at <|box_start|>[60,8,70,40]<|box_end|>.</think>B", 0.5, 1.0),
        ("<think>I look at <|box_start|>[8,8,0,30,40,2]<|box_end|>.</think>B", 0.5, 1.0),
        (f"<think>I look: {BOX * 10}.</think>B", 1.0, 1.0),
        (f"<think>I look: {BOX * 11}.</think>B", 0.5, 1.0),
    ],
)
def test_format(text, strict, paper):
    assert format_reward(text, dimension="2d", frame=(64, 64, 1)) == strict
    assert format_reward(text, mode="paper") == paper


def test_cuboids_must_lie_in_the_volume():
    def form(corners):
        text = f"<think>I look at <|box_start|>[{corners}]<|box_end|>.</think>B"
        return format_reward(text, dimension="3d", frame=(64, 64, 8))

    assert form("8,8,0,30,40,8") == 1.0
    assert form("8,8,0,30,40,9") == form("8,8,30,40") == form("8,8,3,30,40,3") == 0.5


def test_boxes_in_thousandths_are_judged_in_pixels():
    how = {"frame": (64, 64, 1), "scale": 1000}

    def form(corners):
        text = f"<think>I look at <|box_start|>[{corners}]<|box_end|>.</think>B"
        return format_reward(text, dimension="2d", **how), iou_reward(text, [TRUE], **how)

    assert form("125,125,469,625") == (1.0, 1.0)
    assert form("125,125,139,625")[0] == 0.5  # a line, one pixel wide
    assert form("125,125,1100,625")[0] == 0.5
    assert form("8,8,30,40")[1] == 0


def test_rewards_have_the_signature_of_trl():
    """Columns by name, others ignored; the paper's weights, and one for boxes in an ablation."""
    columns = {
        "truth": ["B"] * 4,
        "options": [OPTIONS] * 4,
        "dimension": ["2d"] * 4,
        "frame": [(64, 64, 1)] * 4,
        "boxes": [[[8, 8, 30, 40]], [], [[8, 8, 0, 30, 40, 2]], [[8, 8, 30, 40], [0, 0, 4, 4]]],
        "trainer_state": None,
    }
    rewards = reward_functions("strict", iou_weight=0.5)
    assert {f.__name__: weight for f, weight in rewards.items()} == {
        **{"answer": 0.8, "format": 0.2, "iou": 0.5}
    }
    completions = [[{"role": "assistant", "content": text}] for text in (GOOD, "C", GOOD, GOOD)]
    given = {"prompts": ["?"] * 4, "completion_ids": [[1]] * 4, **columns}
    paid = [reward(completions=completions, **given) for reward in rewards]
    assert paid == [[1, 0, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0.5]]
    assert [f.__name__ for f in reward_functions("paper")] == ["answer", "format"]
    thrice = [[{"content": GOOD.replace("</think>", 2 * BOX + "</think>")}]]
    for rounds, worth in ((3, 1.0), (2, 0.5)):  # a box that fetches nothing earns nothing
        _, form = reward_functions("strict", rounds=rounds)
        assert form(completions=thrice, dimension=["2d"], frame=[(64, 64, 1)]) == [worth]
