"""Rewards: what is paid, and what gaming would earn."""

import pytest

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import RequestError
from unireason_lib.training.rewards import (
    GAMES,
    WEIGHTS,
    Asked,
    answer_reward,
    area_penalty,
    audit,
    format_reward,
    iou_reward,
    rewards,
    total,
)

BOX = "<|box_start|>[8,8,30,40]<|box_end|>"
GOOD = f"<think>The liver is at {BOX}. So: liver.</think>B. Liver"
OPTIONS = {"A": "Heart", "B": "Liver", "C": "Spleen", "D": "Aorta"}


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        (GOOD, 1.0, 1.0),
        ("B", 1.0, 1.0),
        ("This shows a mass, so the answer is B.", 1.0, 0.0),  # an article is read as A
        ("<think>a b c d</think>The answer is B.", 1.0, 1.0),
        ("<think>It is B.</think>I cannot tell.", 0.0, 0.0),
        ("<think>It is B.", 0.0, 1.0),
        ("A or B", 0.0, 0.0),
        ("B or A", 0.0, 1.0),
        ("", 0.0, 0.0),
        ("liver", 1.0, 0.0),
    ],
)
def test_answers(text, strict, paper):
    assert answer_reward(text, "B", options=OPTIONS) == strict
    assert answer_reward(text, "B", mode="paper") == paper


@pytest.mark.parametrize(
    ("text", "strict", "paper"),
    [
        (GOOD, 1.0, 1.0),
        ("", 0.0, 0.0),
        ("  \n", 0.0, 0.0),
        ("lorem ipsum", 0.0, 1.0),
        ("<think>I look.</think>B. Liver", 0.5, 1.0),
        (f"I look at {BOX}. B", 0.0, 1.0),
        (f"<think>{BOX}</think>B", 0.0, 1.0),  # no word in it
        (f"<think>I look at {BOX}.</think>", 0.0, 1.0),  # no answer behind it
        (f"<think>I look at {BOX}.</think>B {BOX}", 0.5, 1.0),
        ("<think>I look at <|box_start|>[8,8,30,40].</think>B", 0.5, 0.5),
        ("<think>I look at [8,8,30,40]<|box_end|>.</think>B", 0.5, 0.5),
        ("<think>One.</think><think>Two.</think>B", 0.0, 1.0),
        ("</think>B<think>", 0.0, 1.0),
        ("B<think>late</think>B", 0.0, 1.0),
        ("<think>I look at <|box_start|>[8,8,8,40]<|box_end|>.</think>B", 0.5, 1.0),
        ("<think>I look at <|box_start|>[8,8,9,40]<|box_end|>.</think>B", 0.5, 1.0),  # a line
        ("<think>I look at <|box_start|>[60,8,70,40]<|box_end|>.</think>B", 0.5, 1.0),
        ("<think>I look at <|box_start|>[8,8,0,30,40,2]<|box_end|>.</think>B", 0.5, 1.0),
        (f"<think>I look: {BOX * 10}.</think>B", 1.0, 1.0),
        (f"<think>I look: {BOX * 11}.</think>B", 0.5, 1.0),
    ],
)
def test_form(text, strict, paper):
    assert format_reward(text, dimension="2d", frame=(64, 64, 1)) == strict
    assert format_reward(text, mode="paper") == paper


def test_cuboids_must_lie_in_the_volume():
    def form(corners):
        text = f"<think>I look at <|box_start|>[{corners}]<|box_end|>.</think>B"
        return format_reward(text, dimension="3d", frame=(64, 64, 8))

    assert form("8,8,0,30,40,8") == 1.0
    assert form("8,8,0,30,40,9") == form("8,8,30,40") == form("8,8,3,30,40,3") == 0.5


def test_unknown_modes_are_refused():
    for call in (lambda: answer_reward("B", "B", mode="x"), lambda: format_reward("B", mode="x")):
        with pytest.raises(RequestError, match="strict or paper"):
            call()


def test_the_weights_are_the_papers():
    assert WEIGHTS == {"answer": 0.8, "format": 0.2}
    asked = Asked("B", OPTIONS, "2d", (64, 64, 1))
    assert total(GOOD, asked) == pytest.approx(1.0)
    assert total("B", asked) == pytest.approx(0.8) and total("B", asked, "paper") == pytest.approx(
        1.0
    )
    assert total(GOOD.replace("B. ", "C. ").replace("Liver", "Spleen"), asked) == pytest.approx(0.2)


def test_gaming_pays_in_the_released_arithmetic_and_not_in_ours():
    rows = {row["reply"]: row for row in audit()}
    assert set(rows) == set(GAMES)
    best = rows["honest"]["strict total"]
    assert best == pytest.approx(1.0)
    games = {name: row for name, row in rows.items() if name != "honest"}
    assert all(row["strict total"] < best - 0.05 for row in games.values())
    assert sum(row["paper total"] > 0.99 for row in games.values()) >= 6
    assert rows["lorem ipsum"]["paper format"] == 1 and rows["lorem ipsum"]["strict total"] == 0


def test_the_optional_rewards():
    boxes = (Box2D(8, 8, 30, 40),)
    assert (
        iou_reward(GOOD, boxes) == 1.0
        and iou_reward("B", boxes) == 0.0
        and iou_reward(GOOD, ()) == 0.0
    )
    assert iou_reward(GOOD, (Box3D(8, 8, 0, 30, 40, 2),)) == 0.0  # another dimension is no overlap
    assert area_penalty(GOOD, (64, 64, 1)) == pytest.approx(-22 * 32 / 64**2)
    assert area_penalty("B", (64, 64, 1)) == 0.0
    named = rewards("strict", iou=0.5, area=0.1)
    assert {name: weight for name, (_, weight) in named.items()} == {
        "answer": 0.8,
        "format": 0.2,
        "iou": 0.5,
        "area": 0.1,
    }
    asked = Asked("B", OPTIONS, "2d", (64, 64, 1), boxes)
    assert [reward(GOOD, asked) for reward, _ in named.values()] == pytest.approx(
        [1, 1, 1, -22 * 32 / 64**2]
    )
