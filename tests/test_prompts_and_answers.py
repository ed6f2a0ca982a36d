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
        # letters as other models write them
        ("(A)", "A"),
        ("A.", "A"),
        ("b", "B"),
        ("(b) behind", "B"),
        ("b. posterior", "B"),
        ("answer: c", "C"),
        ("the answer is a.", "A"),
        ("the answer is a mass", None),
        ("the answer is a", None),
        ("a. mass", None),
        ("**Answer:** B", "B"),
        ("The answer is \\boxed{B}.", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("The answer is “B”.", "B"),
        ("（B）", "B"),
        ("B, because it lies behind.", "B"),
        ("B is correct.", "B"),
        ("Option B is the best answer, A is not.", "B"),
        ("I would choose B.", "B"),
        ("Therefore, B.", "B"),
        ("I think it's B", "B"),
        ("Reasoning first. (B)", "B"),
        # what is only talked about
        ("A is right of the cord", None),
        ("The HEAD is right", None),
        ("The mass is in segment B.", None),
        ("A, B or C", None),
        ("The answer is A, B or C.", None),
        ("Not option A. The answer is B.", "B"),
        ("It is not option B.", None),
        ("Unlike option A, option B fits.", None),
        ("It is not in the left lung.", None),
        ("I cannot tell whether it is posterior", None),
        ("It isn't posterior", None),
        ("Posterior, I have no doubt", "B"),
        # the options repeated, then an answer, or none
        ("A. Anterior\nB. Posterior\nC. Left\nD. Left lung\nThe answer is B.", "B"),
        ("A. Anterior\nB. Posterior\nC. Left\nD. Left lung\n\nC", "C"),
        ("A. Anterior\nB. Posterior\nC. Left\nD. Left lung", None),
        ("A. Anterior\nB. Posterior", None),
    ],
)
def test_what_counts_as_a_choice(reply, letter):
    assert extract_choice(reply, OPTIONS) == letter


def test_numbers_are_read_whole_and_in_any_script():
    sizes = {"A": "5 mm", "B": "1.5 mm", "C": "15 mm", "D": "51 mm"}
    assert extract_choice("It measures 1.5 mm.", sizes) == "B"
    assert extract_choice("It measures 2.5 mm.", sizes) is None
    assert extract_choice("肝脏", {"A": "脾脏", "B": "肝脏"}) == "B"
    assert extract_choice("ein Ödem", {"A": "Udem", "B": "Ödem"}) == "B"


def test_yes_and_no_are_answers():
    options = {"A": "Yes", "B": "No"}
    assert extract_choice("No, there is no effusion.", options) == "B"
    assert extract_choice("Yes, it is not normal.", options) == "A"
    assert extract_choice("I do not know.", options) is None


def test_without_options_only_letters_count():
    assert extract_choice("Left lung") is None
    assert extract_choice("B. Posterior") == "B"


def test_final_answer_is_what_stands_after_the_thought():
    assert final_answer("<think>x</think> B. y <|im_end|>") == "B. y"
    assert final_answer("no thought at all") == "no thought at all"
    assert final_answer("<think>not finished") == ""
