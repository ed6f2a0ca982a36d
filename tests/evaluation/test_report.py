"""The table, the comparison, and slices against volumes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from unireason_lib.boxes import Box2D, Box3D, format_box
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation import Benchmark, Report, evaluate, read_consistency, slice_benchmark
from unireason_lib.evaluation.consistency import consistency, slices_file
from unireason_lib.evaluation.report import blank_file
from unireason_lib.grounding import GroundedGenerator, Script, Settings
from unireason_lib.inference import ResultsFile, read_results


def write(path, lines, **run):
    with ResultsFile(path, {"benchmark": {"benchmark": "made"}, "control": "none"} | run) as file:
        for one in lines:
            file.append(one)
    return path


@pytest.fixture
def results(tmp_path, line):
    """Forty replies about twenty patients, three in four right, boxes better where they are right."""
    lines = [
        line(
            f"q{k}",
            f"p{k // 2}",
            right=k % 4 > 0,
            dimension="3d" if k % 2 else "2d",
            family="lesion analysis" if k < 20 else "size comparison",
            iou_first=0.6 if k % 4 else 0.2,
            iou_best=0.6 if k % 4 else 0.2,
            iou_all=0.6 if k % 4 else 0.2,
        )
        for k in range(40)
    ]
    return write(tmp_path / "r.jsonl", lines)


def test_rows_hold_every_measure_with_its_interval(results):
    rows = Report.from_file(results, samples=200).rows()
    first = rows[0]
    assert first["n"] == 40 and first["patients"] == 20 and first["accuracy"] == 0.75
    assert first["accuracy_low"] < 0.75 < first["accuracy_high"] and first["hit"] == 0.75
    assert first["iou_best"] == pytest.approx(0.5) and first["blind"] is None
    assert len(rows) == 1 + 2 + 2 + 4 and len({frozenset(row) for row in rows}) == 1
    json.dumps(rows, allow_nan=False)


def test_the_text_says_how_many_how_sure_and_against_what(results):
    report = Report.from_file(results, samples=200)
    text = report.text()
    assert "75.0 [" in text and "no blind baseline yet" in text and "choosing by lot 50.0 %" in text
    assert "accuracy by IoU of the best box: 0.1-0.3: 0.0" in text and "0.5-0.7: 100.0" in text
    lines = text.splitlines()
    assert lines[2].split()[:3] == ["dimension", "family", "n"]
    markdown = report.markdown()
    assert markdown.count("\n| ") == len(report.cells) + 2
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["rows"][0]["n"] == 40


def test_the_blind_baseline_is_found_beside(results, line):
    blank = [line(f"q{k}", f"p{k // 2}", right=k % 4 == 0) for k in range(40)]
    write(blank_file(results), blank, control="blank")
    report = Report.from_file(results, samples=200)
    assert (
        report.cells[0].values["blind"].value == 0.25 and "blind" in report.text().splitlines()[2]
    )
    assert "no blind baseline" not in report.text()


def test_a_blind_baseline_of_something_else_is_not_taken(results, tmp_path, line):
    other = write(
        tmp_path / "o.jsonl", [line("q0")], control="blank", benchmark={"benchmark": "another"}
    )
    with pytest.raises(RequestError, match="another benchmark"):
        Report.from_file(results, blind=other)
    with pytest.raises(RequestError, match="control 'none'"):
        Report.from_file(results, blind=results)


def test_failures_are_counted_apart(tmp_path, line):
    lost = {**line("e"), "error": {"type": "ScanError", "message": "x"}}
    report = Report.from_file(write(tmp_path / "r.jsonl", [line("a", "p"), lost]), samples=50)
    assert len(report.failed) == 1 and report.cells[0].n == 1 and "1 failed" in report.text()
    nothing = Report.from_file(write(tmp_path / "n.jsonl", [lost]))
    assert (
        nothing.cells == []
        and nothing.text() == nothing.markdown() == "n.jsonl: no replies, 1 failed"
    )


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "a", "choice": "B"}\n', encoding="utf-8")
    with pytest.raises(RequestError, match="a line of an evaluation"):
        Report.from_file(tmp_path / "x.jsonl")
    with pytest.raises(RequestError, match="no such file"):
        Report.from_file(tmp_path / "none.jsonl")


def test_two_runs_are_compared_question_by_question(results, tmp_path, line):
    better = [line(f"q{k}", f"p{k // 2}", right=k % 4 > 0 or k < 30) for k in range(44)]
    one = Report.from_file(results, samples=500)
    other = Report.from_file(write(tmp_path / "b.jsonl", better), samples=500)
    found = one.compare(other)
    assert found.questions == 40 and found.a == 0.75 and found.b == pytest.approx(38 / 40)
    assert found.difference.low > 0 and found.mcnemar == pytest.approx(2 / 2**8)
    text = one.comparison(other)
    assert (
        "b.jsonl against r.jsonl" in text and "+20.0 points" in text and "McNemar p 0.0078" in text
    )
    assert "IoU" not in text  # the other run has no truth boxes


@pytest.fixture
def seeds(tmp_path, line):
    """Results of two ways of training, three seeds each, on sixty questions: 40 to 50 % and 70 to 80 % right."""

    def runs(name, right):
        return [
            Report.from_file(
                write(
                    tmp_path / f"{name}{seed}.jsonl",
                    [
                        line(f"q{k}", f"p{k // 2}", right=(7 * k + seed) % 20 < share)
                        for k in range(60)
                    ],
                ),
                samples=400,
            )
            for seed, share in enumerate(right)
        ]

    return runs("plain", (8, 9, 10)), runs("boxes", (14, 15, 16))


def test_ways_of_training_are_compared_over_seeds_and_questions(seeds):
    (first, *others), boxes = seeds
    found = first.compare(boxes, also=others)
    assert found.seeds == (3, 3) and found.over == "seeds and questions" and found.mcnemar is None
    assert (found.a, found.b) == (
        pytest.approx(0.45),
        pytest.approx(0.75),
    ) and found.difference.low > 0
    single = first.compare(boxes[0])
    assert single.over == "questions" and single.mcnemar is not None
    text = first.comparison(boxes, also=others)
    assert "boxes0.jsonl + boxes1.jsonl + boxes2.jsonl against plain0.jsonl + plain1" in text
    assert "+30.0 points" in text and "3 runs against 3" in text and "checkpoints" not in text
    paired = first.compare(boxes, also=others, paired_seeds=True)
    assert paired.difference.half_width <= found.difference.half_width
    with pytest.raises(RequestError, match="as many of each"):
        first.compare(boxes[:2], also=others, paired_seeds=True)


def test_runs_of_other_questions_are_not_compared(seeds, tmp_path, line):
    (first, *_), _ = seeds
    turned = [line(f"q{k}", f"p{k // 2}", truth="B") for k in range(60)]
    with pytest.raises(RequestError, match=r"q0 with the right answers 'B' and 'A'"):
        first.compare(Report.from_file(write(tmp_path / "o.jsonl", turned)))


def test_open_answers_have_their_column(tmp_path, line):
    said = {"options": {}, "truth": "left lung", "correct": False}
    lines = [line(f"o{k}", f"p{k}", **said, prediction="left", answer="left") for k in range(3)]
    report = Report.from_file(write(tmp_path / "open.jsonl", lines), samples=50)
    titles, (row, *_) = report.table()
    assert row[titles.index("F1 of words")].startswith("0.67") and "abstained" not in titles
    closed = Report.from_file(write(tmp_path / "closed.jsonl", [line("c")]), samples=50)
    assert "F1 of words" not in closed.table()[0]


# -- slices and volumes ---------------------------------------------------------------------------------------------


@pytest.fixture
def pointing(monkeypatch, generator):
    """A model that points at one place in volumes and, in pictures, at its upper half."""
    plain = GroundedGenerator.generate
    cuboid, rectangle = Box3D(0, 0, 1, 32, 32, 3), Box2D(0, 0, 32, 16)

    def generate(self, requests, **settings):
        requests = list(requests)
        scripts = [
            Script(
                self.tokenizer,
                (
                    "<think>",
                    format_box(cuboid if r.dimension == "3d" else rectangle),
                    "</think>A. Left",
                    "<|im_end|>",
                ),
            )
            for r in requests
        ]
        return plain(self, requests, scripts=scripts, **settings)

    monkeypatch.setattr(GroundedGenerator, "generate", generate)
    return generator


def test_slices_are_asked_alone_and_held_against_the_volume(tmp_path, phantoms, pointing):
    out = tmp_path / "r.jsonl"
    settings = Settings(max_new_tokens=60)
    evaluate(phantoms, out, pointing, settings=settings, quiet=True)
    raised = slice_benchmark(phantoms, read_results(out))
    single = [i for i in phantoms if i.dimension == "3d" and len(i.truth_boxes) == 1]
    assert single and len(raised) == 2 * len(single)
    first = raised.items[0]
    assert first.dimension == "2d" and first.about["slice"] == 1 and "image" in first.question
    parent = next(i for i in single if i.id == first.about["parent"])
    assert parent.about["names"][0] in first.question
    assert first.load()[0].tobytes() == parent.load()[1].tobytes()
    evaluate(raised, slices_file(out), pointing, settings=settings, quiet=True)
    found = read_consistency(out)
    assert found.overlap.value == pytest.approx(0.5) and found.boxed == 1
    assert len(found.cuboids) == len(single) and "IoU 0.50" in found.text()


def test_slices_without_boxes_count_as_disagreement(line):
    def about(z):
        return {"parent": "v", "slice": z, "cuboid": [0, 0, 1, 10, 10, 3]}

    lines = [
        line("v#1", about=about(1), boxes=[[0, 0, 10, 10]]),
        line("v#2", about=about(2), boxes=[]),
    ]
    assert consistency(lines).cuboids == (("v", 0.5),) and consistency(lines).boxed == 0.5
    lost = {**line("v#2", about=about(2)), "error": {"type": "ScanError", "message": "x"}}
    assert consistency([lines[0], lost]).overlap is None


def test_a_model_that_does_not_point_raises_no_slices(phantoms, line):
    lines = [line(i.id, boxes=[[0, 0, 5, 5]], frame=[64, 64, 4]) for i in phantoms]
    with pytest.raises(DatasetError, match="begin with a cuboid"):
        slice_benchmark(phantoms, lines)
    beyond = [replace(i) for i in phantoms if len(i.truth_boxes) == 1]
    lines = [line(i.id, boxes=[[0, 0, 9, 5, 5, 12]], frame=[64, 64, 4]) for i in beyond]
    with pytest.raises(DatasetError, match="begin with a cuboid"):
        slice_benchmark(Benchmark("b", tuple(beyond)), lines)
