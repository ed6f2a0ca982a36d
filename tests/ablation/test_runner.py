"""Plans and their running: shared stages, failures, resuming, other code, the ledger, Ray."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from unireason_lib.ablation import runner
from unireason_lib.ablation.grid import load_grid
from unireason_lib.ablation.ledger import Ledger, estimate, wall_minutes
from unireason_lib.ablation.plan import check_made_by, code_hash, last_jobs, made_by, plan
from unireason_lib.ablation.report import table_of_conditions
from unireason_lib.ablation.results import Results, collect, read_kept, still_needed, write_results
from unireason_lib.ablation.runner import execute_job, finished, folder_of, run_jobs
from unireason_lib.cli import app
from unireason_lib.errors import GridError
from unireason_lib.evaluation.tidy import conditions, read_tidy
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial.document import read_notebook, write_notebook

from .test_grid import GOOD

ROOT = Path(__file__).parents[2]

STUBS = {
    "04_sft": (
        'PROFILE = "laptop"\nOVERRIDES = ""\nSEED = 0\nFORM = "full"\nCOUNT_2D = None\nRUN = ""',
        "from pathlib import Path\nmade = Path('../runs/sft') / RUN / 'model'\nassert FORM != 'broken'\n"
        "made.mkdir(parents=True, exist_ok=True)\n(made / 'seed').write_text(str(SEED))",
    ),
    "05_outcome_rl": (
        'PROFILE = "laptop"\nOVERRIDES = ""\nSEED = 0\nMODEL = ""\nRUN = ""',
        "from pathlib import Path\nassert (Path('..') / MODEL / 'seed').read_text() == str(SEED)\n"
        "made = Path('../runs/rl') / RUN / 'model'\nmade.mkdir(parents=True, exist_ok=True)\n"
        "(made / 'seed').write_text(str(SEED))",
    ),
    "06_evaluation": (
        'PROFILE = "laptop"\nOVERRIDES = ""\nSEED = 0\nMODEL = ""\nRESULTS = ""',
        "import json\nfrom pathlib import Path\nseed = int((Path('..') / MODEL / 'seed').read_text())\n"
        "place = Path('..') / RESULTS\nplace.mkdir(parents=True, exist_ok=True)\n"
        "for name, good in (('replies', 1), ('replies.blank', 4), ('replies.random-crop', 2)):\n"
        "    lines = [{'id': f'q{k}', 'patient': f'p{k}', 'dimension': '2d', 'family': 'f', 'kind': 'k',\n"
        "              'correct': (k + seed) % 4 >= good, 'in_format': True, 'iou_first': 0.5} for k in range(8)]\n"
        "    (place / f'{name}.jsonl').write_text(''.join(json.dumps(line) + chr(10) for line in lines))",
    ),
}


@pytest.fixture
def project(tmp_path):
    """A project whose notebooks only leave what the real ones would."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "unireason_lib" / "profiles").mkdir(parents=True)
    for name, (parameters, work) in STUBS.items():
        cells = [
            nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(work),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return load_grid(path)


@pytest.fixture
def fake(monkeypatch):
    """Runs that only leave what they make; gives the names of those that ran."""
    ran = []

    def execute(root, out, job):
        ran.append(job)
        made = Path(root) / job.makes
        made.parent.mkdir(parents=True, exist_ok=True)
        if job.stage == "test":
            line = {
                "id": "q",
                "patient": "p",
                "correct": True,
                "dimension": "2d",
                "in_format": True,
                "iou_first": 0.5,
            }
            made.write_text(json.dumps({**line, "family": "f", "kind": "k"}) + "\n")
        else:
            made.mkdir()
        return "passed", 60.0, ""

    monkeypatch.setattr(runner, "execute_job", execute)
    return ran


@pytest.fixture
def ablate(project, grid, tmp_path, monkeypatch):
    """The command on the grid in the project; keeps in ``tmp_path / "kept"``."""
    (project / "data" / "tiny-base").mkdir(parents=True)
    monkeypatch.setattr("unireason_lib.tutorial.project.project_root", lambda: project)
    given = ["ablate", str(tmp_path / "mine.yaml"), "--keep", str(tmp_path / "kept")]
    return lambda *options: CliRunner().invoke(app, [*given, *options])


def test_stages_are_shared_and_ordered(grid):
    jobs = plan(grid)
    by_key = {job.key: job for job in jobs}
    assert (
        len(jobs) == 2 * (3 + 1 + 4) == len(by_key)
    )  # three fine-tunings, one RL, four tests a seed
    shared = [job for job in jobs if job.stage == "sft" and "joint" in job.conditions]
    assert [job.conditions for job in shared] == [("joint", "RL")] * 2
    seen = set()
    for job in jobs:
        assert job.needs is None or job.needs in seen
        seen.add(job.key)
        if job.needs:
            assert job.parameters["MODEL"] == by_key[job.needs].makes
    assert {job.seed for job in jobs[: len(jobs) // 2]} == {0}  # whole seeds come first
    assert {job.parameters["SEED"] for job in jobs if job.stage == "test"} == {
        0
    }  # the same questions
    (rl,) = [job for job in jobs if job.stage == "rl" and job.seed == 0]
    assert rl.parameters["OVERRIDES"] == "sft.steps=3,rl.steps=2,rl.iou=0.5"
    assert set(last_jobs(jobs)) == {(name, seed) for name in grid.conditions for seed in (0, 1)}
    assert len(plan(grid, seeds=[0], only=["RL"])) == 3
    with pytest.raises(GridError, match=r"'Rl'.*RL"):
        plan(grid, only=["Rl"])


def test_what_decides_an_outcome_decides_the_name(grid, tmp_path):
    keys = {job.key for job in plan(grid)}
    assert keys == {job.key for job in plan(grid)}
    other = tmp_path / "mine.yaml"
    other.write_text(GOOD.replace("sft.steps: 3", "sft.steps: 4"))
    assert not keys & {job.key for job in plan(load_grid(other))}
    elsewhere = plan(grid.at("laptop"))
    assert not keys & {job.key for job in elsewhere}
    # common settings are sizes for the grid's own profile; those of a condition are what it is about
    assert {job.parameters["OVERRIDES"] for job in elsewhere} == {
        "",
        "generation.max_rounds=0",
        "rl.iou=0.5",
    }


def test_steps_of_a_condition_keep_their_share_at_another_size(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "profile: laptop\nseeds: 1\noverrides: {sft.steps: 1000}\n"
        "conditions: {all: {sft: {}}, short: {sft: {OVERRIDES: sft.steps=250}}}\n"
    )
    grid = load_grid(path)

    def steps(study):
        return {
            job.conditions[0]: load_profile(study.profile, job.parameters["OVERRIDES"]).sft.steps
            for job in plan(study)
            if job.stage == "sft"
        }

    assert steps(grid) == {"all": 1000, "short": 250}
    assert steps(grid.at("smoke")) == {"all": 4, "short": 1}
    assert steps(grid.at("gpu", "sft.steps=3000")) == {"all": 3000, "short": 750}
    assert steps(grid.at("laptop", "sft.steps=2000")) == {"all": 2000, "short": 250}, (
        "a condition counts more"
    )
    with pytest.raises(GridError, match=r"250 of 1000.*--set sft\.steps=NUMBER"):
        grid.at("gpu")


def test_a_single_run_by_hand_is_a_command(grid):
    job = next(job for job in plan(grid) if job.stage == "rl")
    command = job.command()
    assert command.startswith("python -m unireason_lib tutorial 05 --profile smoke ")
    assert (
        f"-p RUN={job.parameters['RUN']}" in command
        and f"-p MODEL={job.parameters['MODEL']}" in command
    )


def test_a_plan_runs_and_is_not_run_again(grid, project, fake):
    jobs = plan(grid)
    ends = []
    study = run_jobs(
        jobs, grid, project, on_end=lambda job, outcome, done, total: ends.append((done, total))
    )
    assert len(study.passed) == len(jobs) == len(fake) and not study.failed and not study.skipped
    assert ends == [(k + 1, len(jobs)) for k in range(len(jobs))]
    assert run_jobs(jobs, grid, project).passed == study.passed and len(fake) == len(jobs)
    (project / jobs[0].makes).rmdir()  # a result that is lost is made again
    run_jobs(jobs, grid, project)
    assert len(fake) == len(jobs) + 1 and fake[-1] == jobs[0]
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    assert ledger.minutes({"sft": 9}) == {"sft": 1.0, "rl": 1.0, "test": 1.0}
    assert estimate(jobs, ledger.minutes()) == len(jobs) and estimate(jobs, {"sft": 1}) is None


def test_runs_side_by_side_take_their_time_once():
    def line(end, seconds):
        return {"finished": f"2026-01-01T00:{end:02d}:00+0000", "seconds": seconds}

    assert wall_minutes([]) == 0
    together = [line(10, 600), line(8, 120), line(12, 300), line(30, 60)]  # 0-10, 6-8, 7-12, 29-30
    assert wall_minutes(together) == pytest.approx(13)


def test_a_failure_stops_only_what_needs_it(grid, project, fake, monkeypatch):
    plain = runner.execute_job

    def execute(root, out, job):
        if job.stage == "sft" and "joint" in job.conditions and job.seed == 0:
            fake.append(job)
            return "failed", 1.0, "cell 3: ValueError: no"
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    jobs = plan(grid)
    for workers in (1, 3):
        fake.clear()
        study = run_jobs(jobs, grid, project, retries=2, workers=workers)
        assert [job.stage for job in study.failed] == ["sft"]
        assert sorted(job.stage for job in study.skipped) == ["rl", "test", "test"]
        assert len(study.passed) == len(jobs) - 4
        assert sum(job == study.failed[0] for job in fake) == 3
    lines = Ledger(folder_of(grid, project) / "ledger.jsonl").lines
    assert {line["error"] for line in lines if line["status"] == "failed"} == {
        "cell 3: ValueError: no"
    }
    monkeypatch.setattr(runner, "execute_job", plain)  # mended
    assert not run_jobs(jobs, grid, project).failed


def test_runs_of_other_code_are_not_mixed_in(grid, project, fake):
    jobs = plan(grid, seeds=[0], only=["joint"])
    run_jobs(jobs, grid, project)
    before = code_hash(project)
    (project / "unireason_lib" / "new.py").write_text("x = 1\n")
    assert code_hash(project) != before
    now = code_hash(project)
    (project / "unireason_lib" / "display").mkdir()
    (project / "unireason_lib" / "display" / "new.py").write_text("x = 1\n")  # decides no outcome
    (project / "notebooks" / "07_ablations.py").write_text("x = 1\n")
    ran = project / "notebooks" / "05_outcome_rl.ipynb"
    notebook = read_notebook(ran)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="done")]
    notebook.cells.append(nbformat.v4.new_markdown_cell("words"))
    write_notebook(ran, notebook)
    assert code_hash(project) == now
    notebook.cells[1].source = "x = 1\n" + (was := notebook.cells[1].source)
    write_notebook(ran, notebook)
    assert code_hash(project) != now
    notebook.cells[1].source = was
    write_notebook(ran, notebook)
    with pytest.raises(GridError, match=rf"2 of another code \({before}\).*--mixed"):
        run_jobs(jobs, grid, project)
    assert len(run_jobs(jobs, grid, project, mixed=True).passed) == len(jobs) == len(fake)


def test_code_that_changes_while_a_study_runs_is_noticed(grid, project, fake, monkeypatch):
    """Notebooks read the code anew, so a run begun after the change would not be what the ledger says."""
    plain, jobs = runner.execute_job, plan(grid, seeds=[0])

    def execute(root, out, job):
        if len(fake) == 2:
            (project / "unireason_lib" / "new.py").write_text("x = 1\n")
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    with pytest.raises(
        GridError, match=rf"code of the study.*as it was.*seen at {jobs[2].name}.*--mixed"
    ):
        run_jobs(jobs, grid, project)
    assert len(Ledger(folder_of(grid, project) / "ledger.jsonl").lines) == 2
    (project / "unireason_lib" / "new.py").unlink()  # as the error says
    (project / jobs[2].makes).rmdir()
    assert len(run_jobs(jobs, grid, project).passed) == len(jobs)


def test_a_study_is_run_by_one_process(grid, project, fake, monkeypatch):
    plain, refused = runner.execute_job, []

    def execute(root, out, job):
        if not refused:
            with pytest.raises(GridError, match="another process running it") as error:
                run_jobs(plan(grid), grid, project)
            refused.append(error)
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    assert not run_jobs(plan(grid), grid, project).failed and refused
    assert len(run_jobs(plan(grid), grid, project).passed) == len(plan(grid))  # it is free again


def test_data_that_changes_is_named(grid, project, fake, tmp_path):
    """A data set of one's own; conditions without it are not concerned."""
    data = project / "runs" / "mine"
    data.mkdir(parents=True)
    (data / "train.parquet").write_bytes(b"rows")
    (tmp_path / "own.yaml").write_text(GOOD.replace("{COUNT_2D: 0}", "{DATA: ../runs/mine}"))
    own = load_grid(tmp_path / "own.yaml")
    jobs = plan(own, seeds=[0], only=["3D only", "joint"])
    run_jobs(jobs, own, project)
    kept = kept_by(own, project, tmp_path / "kept")
    (data / "picture.png").write_bytes(b"p")  # named in the table, or not used
    assert len(run_jobs(jobs, own, project).passed) == len(jobs) == len(fake)
    (data / "train.parquet").write_bytes(b"more")
    others = [job for job in jobs if job.conditions[0] != "3D only"]
    assert len(run_jobs(others, own, project).passed) == len(others)
    for lines in (
        kept.lines.values(),
        Ledger(folder_of(own, project) / "ledger.jsonl").passed().values(),
    ):
        with pytest.raises(
            GridError, match=r"1 of another data \.\./runs/mine .*sft of 3D only.*--mixed"
        ):
            check_made_by(lines, made_by(own, project), tmp_path)
    with pytest.raises(GridError, match="of another data"):
        run_jobs(jobs, own, project)


def test_a_torn_ledger_loses_one_line(grid, project, fake):
    jobs = plan(grid, seeds=[0])
    run_jobs(jobs, grid, project)
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    ledger.path.write_bytes(ledger.path.read_bytes()[:-30])
    assert len(finished(jobs, ledger, project)) == len(jobs) - 1
    run_jobs(jobs, grid, project)
    assert len(fake) == len(jobs) + 1 and len(finished(jobs, ledger, project)) == len(jobs)


def test_interrupting_leaves_what_is_done(grid, project, fake, monkeypatch):
    plain = runner.execute_job

    def execute(root, out, job):
        if len(fake) == 3:
            return "interrupted", 1.0, "after 2 of 9 cells"
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    jobs = plan(grid)
    study = run_jobs(jobs, grid, project)
    assert study.interrupted and len(study.passed) == 3
    monkeypatch.setattr(runner, "execute_job", plain)
    assert len(run_jobs(jobs, grid, project).passed) == len(jobs) == len(fake)


def test_notebooks_are_really_run(grid, project):
    jobs = plan(grid, only=["RL"])
    study = run_jobs(jobs, grid, project, workers=2)
    assert len(study.passed) == len(jobs) == 6, study.failed
    names = {path.stem for path in (folder_of(grid, project) / "notebooks").glob("*.ipynb")}
    assert names == {job.name for job in jobs}
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    found = collect(grid, project, ledger, "python -m unireason_lib ablate mine.yaml")
    rows = found.rows
    assert conditions(rows) == {"RL": [0, 1], "RL, blind": [0, 1], "RL, random crops": [0, 1]}
    (_, *lines) = table_of_conditions(rows, ["RL", "RL, blind"])
    assert [line[:2] for line in lines] == [("RL", "2"), ("RL, blind", "2")]
    assert lines[0][2].startswith("75.0 (") and lines[1][2] == "0.0 (0.0-32.4)"
    write_results(grid, found, project / "results")
    assert read_tidy(project / "results" / "mine.csv.gz") == rows
    told = json.loads((project / "results" / "mine.json").read_text())
    assert len(told["runs"]) == 6 and told["verdicts"][0]["verdict"] == "cannot tell"
    text = gzip.decompress((project / "results" / "mine.csv.gz").read_bytes())
    assert told["table_sha256"] == hashlib.sha256(text).hexdigest()
    assert told["made"][0]["command"] == "python -m unireason_lib ablate mine.yaml"
    assert set(told["minutes"]) == {"of all runs", "while any was under way"}
    assert told["missing"] == [
        f"{name}, seed {k}" for k in (0, 1) for name in grid.conditions if name != "RL"
    ]


def kept_by(grid, project, place, **how):
    """What a project keeps of a study now."""
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    found = collect(grid, project, ledger, "ablate")
    write_results(grid, found, place, **how)
    return read_kept(place, grid.name)


def test_a_study_in_parts_is_the_study(grid, project, fake, tmp_path):
    """What one machine kept, another goes on from, without the runs; the table is that of one go."""
    jobs, first = plan(grid), plan(grid, seeds=[0])
    run_jobs(first, grid, project)
    kept = kept_by(grid, project, tmp_path / "kept", judged=False)
    told = json.loads((tmp_path / "kept" / "mine.json").read_text())
    assert (
        len(told["missing"]) == 4
        and told["missing"][0].endswith("seed 1")
        and told["verdicts"] == []
    )
    run_jobs(jobs, grid, project)
    whole = kept_by(grid, project, tmp_path / "whole")
    for place in ("sft", "rl", "evaluation", "ablation"):  # another machine
        shutil.rmtree(project / "runs" / place)
    fake.clear()
    left = still_needed(jobs, kept)
    assert {job.seed for job in left} == {1} and len(left) == len(jobs) - len(first)
    run_jobs(left, grid, project)
    assert len(fake) == len(left)
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    both = collect(grid, project, ledger, "ablate --parts kept", kept)
    assert both.rows == whole.rows and list(both.lines) == [job.key for job in jobs]
    assert [one["command"] for one in both.made] == ["ablate", "ablate --parts kept"]
    write_results(grid, both, tmp_path / "kept")
    again = read_kept(tmp_path / "kept", "mine")
    assert not still_needed(jobs, again) and not again.missing(grid)
    told = json.loads((tmp_path / "kept" / "mine.json").read_text())
    assert told["missing"] == [] and told["verdicts"]
    assert (
        collect(grid, tmp_path, Ledger(tmp_path / "none"), "nothing", again) == again
    )  # nothing was added


def test_other_code_and_another_base_are_named(grid, project, fake, tmp_path):
    run_jobs(plan(grid), grid, project)
    lines, here = list(kept_by(grid, project, tmp_path).lines.values()), made_by(grid, project)
    check_made_by(lines, here, tmp_path)
    for what in ("code", "base"):
        with pytest.raises(
            GridError, match=rf"{len(lines)} of another {what} .*sft of joint, seed 0.*--mixed"
        ):
            check_made_by(lines, {**here, what: "0123"}, tmp_path)


def test_a_test_under_way_does_not_count(grid, project, fake, tmp_path):
    """Its file is there from the beginning, first empty, then with some of the answers."""
    jobs = plan(grid, seeds=[0])
    run_jobs(jobs[:2], grid, project)
    (under_way,) = [job for job in jobs if job.stage == "test" and job.conditions == ("3D only",)]
    replies = project / under_way.makes
    replies.parent.mkdir(parents=True)
    line = (project / jobs[1].makes).read_text()
    for content in ("", line, line[:-9]):
        replies.write_text(content)
        assert conditions(kept_by(grid, project, tmp_path).rows) == {"joint": [0]}


def test_the_agreement_of_volumes_and_slices_is_kept(grid, project, fake, tmp_path):
    jobs = plan(grid, seeds=[0], only=["joint"])
    run_jobs(jobs, grid, project)
    about = {"parent": "q", "slice": 1, "cuboid": [0, 0, 1, 4, 4, 2]}
    line = {
        "id": "q/1",
        "patient": "p",
        "about": about,
        "boxes": [[0, 0, 4, 2]],
        "frame": [8, 8, 1],
    }
    (project / jobs[-1].makes).with_name("replies.slices.jsonl").write_text(json.dumps(line) + "\n")
    kept = kept_by(grid, project, tmp_path)
    assert kept.consistency[jobs[-1].key]["overlap"]["value"] == pytest.approx(0.5)
    other = collect(grid, tmp_path, Ledger(tmp_path / "none"), "nothing", kept)
    assert other.consistency == kept.consistency


def test_replies_that_failed_are_counted(grid, project, fake, tmp_path):
    jobs = plan(grid, seeds=[0], only=["joint"])
    run_jobs(jobs, grid, project)
    blank = (project / jobs[-1].makes).with_name("replies.blank.jsonl")
    lines = [
        {"id": f"q{k}", "patient": "p", "dimension": "2d", "family": "f", "kind": "k"}
        for k in (0, 1)
    ]
    blank.write_text("".join(json.dumps({**line, "error": "no memory"}) + "\n" for line in lines))
    kept = kept_by(grid, project, tmp_path)
    assert kept.failed == {"joint, blind, seed 0": 2}
    assert collect(grid, tmp_path, Ledger(tmp_path / "none"), "nothing", kept).failed == kept.failed


def test_the_command_does_not_judge_what_failed(grid, project, fake, ablate, tmp_path, monkeypatch):
    """A condition that could not be run may be mended, and whoever mends it has not seen the rest."""
    plain, kept = runner.execute_job, tmp_path / "kept"

    def execute(root, out, job):
        if job.stage == "rl" and job.seed == 1:
            return "failed", 1.0, "cell 3: MemoryError"
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    first = ablate()
    assert first.exit_code == 1 and "1 of 8 tests of the study are missing" in first.output
    assert "verdict" not in first.output and "verdict" in ablate("--look").output
    assert json.loads((kept / "mine.json").read_text())["verdicts"] == []  # looked at, not judged
    monkeypatch.setattr(runner, "execute_job", plain)
    assert "verdict" in ablate().output and json.loads((kept / "mine.json").read_text())["verdicts"]
    # runs of other code that are here do not slip in behind what was kept
    (project / "unireason_lib" / "new.py").write_text("x = 1\n")
    told = json.loads((kept / "mine.json").read_text())
    for line in told["runs"]:
        line["code"] = code_hash(project)
    (kept / "mine.json").write_text(json.dumps(told))
    refused = ablate("--parts", str(kept))
    assert (
        refused.exit_code == 2
        and "of another code" in refused.output
        and "ledger" in refused.output
    )


def test_the_command_tells_nothing_before_the_end(
    grid, project, fake, ablate, tmp_path, monkeypatch
):
    """Interrupted, it keeps what it has and judges nothing; another machine goes on from there."""
    plain, kept = runner.execute_job, tmp_path / "kept"

    def execute(root, out, job):
        if len(fake) == 10:
            told = json.loads(
                (kept / "mine.json").read_text()
            )  # written after every test, not at the end
            assert len(told["runs"]) >= 8 and told["missing"] and not told["verdicts"]
            return "interrupted", 1.0, "after 2 of 9 cells"
        return plain(root, out, job)

    monkeypatch.setattr(runner, "execute_job", execute)
    first = ablate()
    assert first.exit_code == 130, first.output
    assert (
        "of 8 tests of the study are missing" in first.output
        and "when it has ended" in first.output
    )
    assert "verdict" not in first.output
    shutil.rmtree(project / "runs")
    monkeypatch.setattr(runner, "execute_job", plain)
    # of the second seed one test is there; what it built on, RL needs again
    assert "9 kept in" in ablate("--parts", str(kept), "--dry-run").output
    ours = (kept / "mine.json").read_bytes()
    refused = ablate()
    assert refused.exit_code == 2 and "5 tests that this study does not have" in refused.output
    assert (kept / "mine.json").read_bytes() == ours
    second = ablate("--parts", str(kept))
    assert second.exit_code == 0 and "verdict" in second.output and "missing" not in second.output
    assert len(json.loads((kept / "mine.json").read_text())["runs"]) == len(plan(grid))
    part = ablate("--parts", str(kept), "--seeds", "1")  # all is there, but a part was asked for
    assert part.exit_code == 0 and "with --look" in part.output and "verdict" not in part.output
    assert "verdict" in ablate("--parts", str(kept), "--seeds", "1", "--look").output
    more = ablate("--parts", str(kept), "--seeds", "3")  # one seed more than the grid has
    assert more.exit_code == 0 and "verdict" in more.output
    assert {row["seed"] for row in read_kept(kept, "mine").rows} == {0, 1, 2}
    (project / "unireason_lib" / "new.py").write_text("x = 1\n")
    refused = ablate("--parts", str(kept))
    assert (
        refused.exit_code == 2
        and "of another code" in refused.output
        and "--mixed" in refused.output
    )


def test_what_a_kept_test_shares_is_made_again_for_others(grid, project, fake, tmp_path):
    jobs = plan(grid, seeds=[0])
    run_jobs(jobs, grid, project)
    (rl,) = [job for job in jobs if job.stage == "rl"]
    found = kept_by(grid, project, tmp_path)
    kept = replace(found, rows=[row for row in found.rows if not row["condition"].startswith("RL")])
    left = still_needed(jobs, kept)
    assert [job.stage for job in left] == ["sft", "rl", "test"] and rl in left
    assert left[0].conditions == ("joint", "RL")  # joint's test is kept, its model is not
    assert still_needed(jobs, Results()) == jobs
    other = plan(replace(grid, overrides="sft.steps=7"), seeds=[0])
    assert still_needed(other, found) == other  # another study


def test_damaged_parts_are_refused(grid, project, fake, tmp_path):
    assert read_kept(tmp_path, "mine") == Results()
    run_jobs(plan(grid, seeds=[0], only=["joint"]), grid, project)
    whole = kept_by(grid, project, tmp_path)
    told, table = tmp_path / "mine.json", tmp_path / "mine.csv.gz"
    good, packed = told.read_text(), table.read_bytes()
    for file, content in (
        (told, good[:-20]),
        (told, "[]"),
        (told, good.replace('"code"', '"cod"')),
    ):
        file.write_text(content)
        with pytest.raises(GridError, match="without --parts"):
            read_kept(tmp_path, "mine")
    told.write_text(good)
    table.write_bytes(packed[:-9])
    with pytest.raises(GridError, match=r"mine\.json.*without --parts"):
        read_kept(tmp_path, "mine")
    table.write_bytes(gzip.compress(gzip.decompress(packed).replace(b"q", b"r")))
    with pytest.raises(GridError, match="from one place"):
        read_kept(tmp_path, "mine")
    (tmp_path / "mine.new.csv.gz").write_bytes(packed)  # killed between the two files
    assert read_kept(tmp_path, "mine") == whole
    (tmp_path / "mine.new.csv.gz").unlink()
    table.unlink()
    with pytest.raises(GridError, match="without --parts"):
        read_kept(tmp_path, "mine")


def test_a_notebook_that_fails_says_why(grid, project):
    job = plan(grid, seeds=[0], only=["answer only"])[0]
    broken = type(job)(**{**vars(job), "parameters": {**job.parameters, "FORM": "broken"}})
    status, _, error = execute_job(str(project), str(project / "out"), broken)
    assert status == "failed" and "AssertionError" in error and "broken" in error
    assert (project / "out" / f"{job.name}.ipynb").is_file()
    unknown = type(job)(**{**vars(job), "parameters": {**job.parameters, "FROM": "x"}})
    status, _, error = execute_job(str(project), str(project / "out"), unknown)
    assert status == "failed" and "'FROM'" in error
    lost = type(job)(**{**vars(job), "makes": "runs/nowhere"})
    assert execute_job(str(project), str(project / "out"), lost)[2].endswith(
        "runs/nowhere is not there"
    )


def begin(grid_file, project, rest):
    """A study in a process of its own; ``rest`` is what it does with the grid ``g`` and the project ``p``."""
    program = (
        "import sys; from pathlib import Path; from unireason_lib.ablation.grid import load_grid;"
        "from unireason_lib.ablation.plan import plan; from unireason_lib.ablation.runner import run_jobs;"
        f"g, p = load_grid(sys.argv[1]), Path(sys.argv[2]); {rest}"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(grid_file), str(project)], env=environment
    )


def test_a_killed_study_goes_on(grid, project, tmp_path):
    """kill -9 in the middle: no finished run is repeated, none is lost."""
    running = begin(tmp_path / "mine.yaml", project, "run_jobs(plan(g, seeds=[0]), g, p)")
    ledger = Ledger(folder_of(grid, project) / "ledger.jsonl")
    deadline = time.time() + 120
    while time.time() < deadline and len(ledger.lines) < 2:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = ledger.lines
    jobs = plan(grid, seeds=[0])
    assert 2 <= len(before) < len(jobs)
    study = run_jobs(jobs, grid, project)
    assert len(study.passed) == len(jobs)
    keys = [line["key"] for line in ledger.lines]
    assert len(set(keys)) == len(keys) == len(jobs) and ledger.lines[: len(before)] == before


def test_ctrl_c_reaches_all_notebooks_under_way(grid, project, tmp_path):
    """Two at a time, in threads, where no signal arrives: what they have is saved, and none is waited for."""
    path = project / "notebooks" / "04_sft.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = (
        "import time\nfrom pathlib import Path\nmade = Path('../runs/sft') / RUN\n"
        "made.mkdir(parents=True)\n(made / 'begun').touch()\n"
        "try:\n    time.sleep(300)\nexcept KeyboardInterrupt:\n    (made / 'saved').touch()"
    )
    nbformat.write(notebook, path)
    rest = "sys.exit(7 if run_jobs(plan(g), g, p, workers=2).interrupted else 0)"
    running = begin(tmp_path / "mine.yaml", project, rest)
    deadline = time.time() + 120
    while time.time() < deadline and len(list(project.glob("runs/sft/*/begun"))) < 2:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == 7
    assert len(list(project.glob("runs/sft/*/saved"))) == 2
    assert not Ledger(folder_of(grid, project) / "ledger.jsonl").passed()


def test_a_ray_cluster_runs_the_same(grid, project):
    pytest.importorskip("ray")
    jobs = plan(grid, seeds=[0], only=["RL", "joint"])
    study = run_jobs(jobs, grid, project, ray="local")
    assert len(study.passed) == len(jobs), study.failed
    with pytest.raises(GridError, match=r"expected 1 GPU for a run.*with 0\..*model\.device=cpu"):
        run_jobs(
            jobs, replace(grid, name="other", overrides="model.device=cuda"), project, ray="local"
        )


@pytest.mark.parametrize("gpus, together", [("0.5", 2), ("1.0", 1), ("2.0", 0)])
def test_gpus_of_a_run_on_a_cluster_are_those_of_the_profile(
    grid, project, tmp_path, monkeypatch, gpus, together
):
    ray = pytest.importorskip("ray")
    begin_ray = ray.init
    monkeypatch.setattr(ray, "init", lambda address, **own: begin_ray(address, num_gpus=1, **own))
    overrides = f"model.device=cuda, model.gpus={gpus}"
    if not together:
        with pytest.raises(GridError, match=r"expected 2 GPU for a run.*with 1\."):
            run_jobs(plan(grid), replace(grid, overrides=overrides), project, ray="local")
        return
    with runner._crew(project, tmp_path, 1, "local", float(gpus)) as (_, most, _):
        assert most == together
    jobs = plan(grid, seeds=[0], only=["joint"])
    study = run_jobs(jobs, replace(grid, overrides=overrides), project, ray="local")
    assert len(study.passed) == len(jobs), study.failed
