"""Rationales from templates: true boxes, the right conclusion, many words but short."""

import re
from collections import defaultdict

import pytest

from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.questions import FAMILIES, ask
from unireason_lib.dataset.rationales import TemplateWriter, conclusion
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice

KINDS = {kind for kinds in FAMILIES.values() for kind in kinds}


def test_templates_are_true_and_come_to_the_answer(view_of):
    writer, kinds, texts = TemplateWriter(), defaultdict(set), set()
    views = [view_of(make(k)) for k in range(100) for make in (phantom_slice, phantom)]
    for question, view in ((q, v) for v in views for q in ask(v)):
        rationale = writer.write(question, view)
        assert problems_of(Record.make(view, question, rationale), view, question) == []
        pointed = sorted(p.structure for p in rationale.points)
        assert pointed == sorted(s.name for s in question.evidence)
        words = "".join(part for part in rationale.parts if isinstance(part, str))
        assert not re.search(r"[{}\0]|  | \.|\b[BCD]\b|[(]A[)]|\bA\.", rationale.text)
        assert not re.search(r"\b(I|picture|my|me|we)\b", words)
        assert re.fullmatch(r"[A-Z[<].*\.", rationale.text), rationale.text
        corners = [point.box.as_tuple() for point in rationale.points]
        edges = {(c[k], c[k + len(c) // 2]) for c in corners for k in range(len(c) // 2)}
        for *operands, what, said in re.findall(r"(\d+) and (\d+): (\w+) (\d+)", words):
            low, high = map(int, operands)
            assert int(said) == {"middle": (low + high) // 2, "difference": high - low}[what]
            assert what == "difference" or (low, high) in edges, rationale.text
        kinds[question.dimension].add(question.kind)
        texts.add(words)
    assert kinds == {"2d": KINDS - {"level"}, "3d": KINDS} and len(texts) > 500
    assert TemplateWriter(seed=1).write(question, view) != rationale


@pytest.mark.parametrize(
    "text, letter",
    [
        ("None of it: the left kidney.", "A"),
        ("left kidney, or rather the kidney", "B"),
        ("So: ABOUT 62 MM!", "D"),
        ("nonetheless about 162 mm", None),
    ],
)
def test_conclusion_is_the_option_named_last(text, letter):
    options = {"A": "Left kidney", "B": "Kidney", "C": "None", "D": "About 62 mm"}
    assert conclusion(text, options) == letter
