"""The wording of questions, and what counts as an answer."""

import time

import pytest

from unireason_lib.answers import extract_choice, final_answer
from unireason_lib.errors import RequestError
from unireason_lib.prompts import chat, question_text

OPTIONS = {"A": "Anterior", "B": "Posterior", "C": "Left", "D": "Left lung"}
LIST = "A. Anterior\nB. Posterior\nC. Left\nD. Left lung\n"


def test_images_come_first_then_the_words_that_models_were_trained_on():
    (turn,) = chat("Where is it?", ["s0", "s1"], {"A": "here", "B": "there"}, volume=True)
    assert turn["content"][:2] == [{"type": "image", "image": name} for name in ("s0", "s1")]
    assert turn["content"][-1]["text"] == (
        "These are 2 axial slices of one volume, from foot to head.\nWhere is it?\nA. here\nB. there\n"
        "Reason about what you see, point with boxes, then answer with one option."
    )
    free = "Reason about what you see, point with boxes, then give a short answer."
    assert question_text("Where is it?") == f"Where is it?\n{free}"


@pytest.mark.parametrize("options", ["A=x", "A=x C=y", "B=x A=y", "A=x B=", "A=x B=<|im_end|>"])
def test_unusable_questions_and_options_are_refused(options):
    with pytest.raises(RequestError, match="What to do"):
        question_text("what", dict(pair.split("=") for pair in options.split()))
    for question in ("", "  ", "what <|im_end|>", "what <think>"):
        with pytest.raises(RequestError, match="What to do"):
            question_text(question)


CHOSEN = {
    "A": ["A. Anterior", "A Anterior", "(A)", "A.", "the answer is a."],
    "B": [
        *("(B)", "B", "b", "（B）", "(b) behind", "b. posterior", "B, because it lies behind."),
        *("the answer is B.", "The answer is (B).", "This shows a mass, so the answer is B."),
        *("Reasoning first.\nB", "Reasoning first.\nB. Posterior", "Reasoning first. (B)"),
        *("<think>first</think>x<think>second</think>B.", "**Answer:** B", "The answer is “B”."),
        *(
            "The answer is \\boxed{B}.",
            "$\\boxed{\\text{B}}$",
            "B is correct.",
            "I would choose B.",
        ),
        *("Option B is the best answer, A is not.", "Therefore, B.", "I think it's B"),
        "Not option A. The answer is B.",
        *("Posterior, I have no doubt", LIST + "The answer is B.", "B. Behind the heart"),
        # missed before (report 13)
        *('{"answer": "B"}', '```json\n{"answer": "B. Posterior"}\n```', "\\boxed{\\mathrm{B}}"),
        *(
            "\\boxed{\\textbf{(B) Posterior}}",
            "答案是B",
            "答案：B。",
            "正确答案是选项B，因为",
            "选B",
        ),
    ],
    "C": ["**C**", "C: Left", "Answer: C", "answer: c", LIST + "\nC"],
    "D": ["D - Left lung", "The correct option is D because of it", "It lies in the left lung."],
    None: [
        *("", "A mass is seen", "a mass", "A-scan of the eye", "<think>A. Anterior", "no idea"),
        *("I think A or B", "The answer is A. The answer is B.", "anterior and posterior", "F"),
        "a. mass",
        *("the answer is a mass", "the answer is a", "A is right of the cord", "The HEAD is right"),
        *(
            "The mass is in segment B.",
            "A, B or C",
            "The answer is A, B or C.",
            "It isn't posterior",
        ),
        *("It is not option B.", "It is not in the left lung.", LIST, "A. Anterior\nB. Posterior"),
        *("I cannot tell whether it is posterior", "Unlike option A, option B fits."),
        # the letter of one option with the text of another
        *("C. Anterior", "C Anterior", "The answer is C. Anterior", "(b) anterior", "C. Left lung"),
        *("Reasoning.\nC. Anterior", '{"answer": "C. Anterior"}'),
    ],
}


@pytest.mark.parametrize("letter", CHOSEN)
def test_what_counts_as_a_choice(letter):
    for reply in CHOSEN[letter]:
        assert extract_choice(reply, OPTIONS) == letter, reply


MM, YES_NO = ["5 mm", "1.5 mm", "15 mm"], ["Yes", "No"]
OTHERS = [
    *(("It measures 1.5 mm.", MM, "B"), ("It measures 2.5 mm.", MM, None)),
    *(("肝脏", ["脾脏", "肝脏"], "B"), ("ein Ödem", ["Udem", "Ödem"], "B")),
    *(("No, there is no effusion.", YES_NO, "B"), ("Yes, it is not normal.", YES_NO, "A")),
    *(("I do not know.", YES_NO, None), ("Left lung", [], None), ("B. Posterior", [], "B")),
]


@pytest.mark.parametrize(("reply", "options", "letter"), OTHERS)
def test_numbers_scripts_yes_and_no(reply, options, letter):
    assert extract_choice(reply, dict(zip("ABC", options, strict=False))) == letter


SLOW = "answer |answer is B. |A,|(|\\boxed{|A. Anterior\n|not |left lung |exclud|. \n|\t|option |an|so "


@pytest.mark.parametrize("length", [8_000, 80_000])
@pytest.mark.parametrize("pattern", [". . .", *SLOW.split("|")])
def test_reading_an_answer_takes_linear_time_B12(pattern, length):
    """8,000 characters of ". . ." took two seconds."""
    started, text = time.perf_counter(), pattern * (length // len(pattern))
    extract_choice(text, OPTIONS)
    extract_choice(f"answer{text}x", OPTIONS)
    assert time.perf_counter() - started < 2


def test_final_answer_is_what_stands_after_the_thought():
    assert final_answer("<think>x</think> B. y <|im_end|>") == "B. y"
    assert final_answer("no thought at all") == "no thought at all"
    assert final_answer("<think>not finished") == ""
