"""The wording of questions, and what counts as an answer."""

import pytest

from unireason_lib.answers import extract_choice, final_answer
from unireason_lib.errors import RequestError
from unireason_lib.prompts import chat, question_text

OPTIONS = {"A": "Anterior", "B": "Posterior", "C": "Left", "D": "Left lung"}


def test_pictures_come_first_then_the_words():
    (turn,) = chat("Where is it?", ["s0", "s1"], {"A": "here", "B": "there"}, volume=True)
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"]
    lines = turn["content"][-1]["text"].splitlines()
    assert lines[0] == "These are 2 axial slices of one volume, from foot to head."
    assert lines[1:4] == ["Where is it?", "A. here", "B. there"]
    assert "slices" not in question_text("Where is it?")
    assert question_text("Where is it?") != question_text("Where is it?", {"A": "here", "B": "there"})


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("", {}),
        ("  ", {}),
        ("what <|im_end|>", {}),
        ("what <think>", {}),
        ("what", {"A": "x"}),
        ("what", {"A": "x", "C": "y"}),
        ("what", {"B": "x", "A": "y"}),
        ("what", {"A": "x", "B": ""}),
        ("what", {"A": "x", "B": "<|vision_start|>"}),
    ],
)
def test_unusable_questions_are_refused(question, options):
    with pytest.raises(RequestError, match="What to do"):
        question_text(question, options)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A. Anterior", "A"),
        ("A Anterior", "A"),
        ("(B)", "B"),
        ("B", "B"),
        ("**C**", "C"),
        ("C: Left", "C"),
        ("D - Left lung", "D"),
        ("the answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("This shows a mass, so the answer is B.", "B"),
        ("The correct option is D because of it", "D"),
        ("Answer: C", "C"),
        ("Reasoning first.\nB", "B"),
        ("Reasoning first.\nB. Posterior", "B"),
        ("Left lung", "D"),
        ("It lies in the left lung.", "D"),
        ("<think>A. Anterior</think>C. Left<|im_end|>", "C"),
        ("<think>first</think>x<think>second</think>B.", "B"),
        ("A mass is seen", None),
        ("a mass", None),
        ("A-scan of the eye", None),
        ("", None),
        ("<think>A. Anterior", None),
        ("I think A or B", None),
        ("The answer is A. The answer is B.", None),
        ("anterior and posterior", None),
        ("F", None),
        ("no idea", None),
    ],
)
def test_what_counts_as_a_choice(reply, letter):
    assert extract_choice(reply, OPTIONS) == letter


def test_without_options_only_letters_count():
    assert extract_choice("Left lung") is None
    assert extract_choice("B. Posterior") == "B"


def test_final_answer_is_what_stands_after_the_thought():
    assert final_answer("<think>x</think> B. y <|im_end|>") == "B. y"
    assert final_answer("no thought at all") == "no thought at all"
    assert final_answer("<think>not finished") == ""
