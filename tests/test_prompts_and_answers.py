"""The wording of questions, and what counts as an answer."""

import time
from pathlib import Path

import pytest
import yaml

from unireason_lib.answers import extract_choice, final_answer
from unireason_lib.errors import RequestError
from unireason_lib.prompts import chat, question_text

REPLIES = yaml.safe_load(Path(__file__).with_name("answers.yaml").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("letter", REPLIES["chosen"])
def test_what_counts_as_a_choice(letter):
    for reply in REPLIES["chosen"][letter]:
        assert str(extract_choice(reply, REPLIES["options"])).lower() == letter.lower(), reply


@pytest.mark.parametrize(("reply", "options", "letter"), REPLIES["others"])
def test_numbers_scripts_yes_and_no(reply, options, letter):
    assert extract_choice(reply, dict(zip("ABC", options, strict=False))) == letter


SLOW = "answer |answer is B. |A,|(|\\boxed{|A. Anterior\n|not |left lung |exclud|. \n|\t|option |an|so "


@pytest.mark.parametrize("pattern", [". . .", *SLOW.split("|")])
def test_reading_an_answer_takes_linear_time_B12(pattern):
    """8,000 characters of ". . ." took two seconds."""
    started, text = time.perf_counter(), pattern * (80_000 // len(pattern))
    extract_choice(text, REPLIES["options"])
    extract_choice(f"answer{text}x", REPLIES["options"])
    assert time.perf_counter() - started < 2


def test_final_answer_is_what_stands_after_the_thought():
    assert final_answer("<think>x</think> B. y <|im_end|>") == "B. y"
    assert final_answer("no thought at all") == "no thought at all"
    assert final_answer("<think>not finished") == ""
