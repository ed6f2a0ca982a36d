"""Studies: failures, kills, Ctrl-C, changed code, parts from elsewhere, and what is shown when.

Stub notebooks leave what the real ones would; most tests do not even start a kernel.
"""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from unireason_lib.ablation import load_grid, plan, run_study, study
from unireason_lib.errors import DatasetError, GridError
from unireason_lib.evaluation.table import read_pooled
from unireason_lib.io import locked, read_json

from .test_grid import GOOD

ROOT = Path(__file__).parents[2]
SHARED = 'PROFILE = "laptop"\nOVERRIDES = ""\nSEED = 0\n'
STUBS = {
    "04_sft": (
        'COMPONENTS = "full"\nRECORDS_2D = None\nRUN = ""',
        "from pathlib import Path\nassert COMPONENTS != 'answer', 'no such luck'\n"
        "made = Path('../runs/sft') / RUN / 'model'\nmade.mkdir(parents=True)\n"
        "(made / 'seed').write_text(str(SEED))",
    ),
    "05_outcome_rl": ("", ""),
    "06_evaluation": (
        'MODEL = ""\nRESULTS = ""',
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, '..')\nfrom stub import leave\n"
        "leave(Path('..') / RESULTS, int((Path('..') / MODEL / 'seed').read_text()))",
    ),
}


def leave(folder, seed):
    """Replies as notebook 06 leaves them, right more often without a control; a slice alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, wrong in (("replies", 1), ("replies.blank", 4), ("textures.no-crop", 2)):
        line = {"dimension": "2d", "family": "f", "kind": "k", "options": {"A": "x", "B": "y"}}
        line |= {"truth": "A", "prediction": "A", "text": "A. x", "in_format": True, "boxes": []}
        lines = [
            {**line, "id": f"q{k}", "patient": f"p{k}", "correct": (k + seed) % 4 >= wrong}
            for k in range(8)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    line |= {"about": {"parent": "q", "slice": 1, "cuboid": [0, 0, 1, 4, 4, 2]}, "id": "q/1"}
    line |= {"patient": "p", "boxes": [[0, 0, 4, 2]], "frame": [8, 8, 1]}
    (folder / "replies.slices.jsonl").write_text(json.dumps(line) + "\n")


@pytest.fixture
def root(tmp_path):
    """A project of stub notebooks, under git."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "stub.py").write_text(f"import json\n\n{inspect.getsource(leave)}")
    cell, notebook = nbformat.v4.new_code_cell, nbformat.v4.new_notebook
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, (parameters, work) in STUBS.items():
        cells = [cell(SHARED + parameters, metadata={"tags": ["parameters"]}), cell(work)]
        made = notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(made, tmp_path / "notebooks" / f"{name}.ipynb")
    commit(tmp_path)
    return tmp_path


def run(grid, root, **options):
    """The study, and what it said."""
    said = []
    return run_study(grid, root, say=said.append, **options), "\n".join(said)


def commit(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in ("init -q", "add notebooks", "commit -qm x"):
        subprocess.run([*git, *words.split()], check=True, capture_output=True)


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    return load_grid(tmp_path / "mine.yaml")


@pytest.fixture
def executed(monkeypatch, root):
    """Names of the runs that were executed; no kernel starts. ``fail`` names stages that fail."""
    names, fail = [], set()

    def execute(notebook, out, given, settings):
        names.append(out.stem)
        stage, seed = out.stem.split("-")[0], int(out.stem.split("-seed")[1].split("-")[0])
        if {stage, out.stem} & fail:
            return {"status": "failed", "seconds": 1.0, "error": "MemoryError: none left"}
        if "nothing" in fail and stage == "test":
            return {"status": "passed", "seconds": 1.0, "error": ""}
        if stage == "test":
            leave(root / given["RESULTS"], seed)
        else:
            (root / "runs" / stage / given["RUN"] / "model").mkdir(parents=True)
        return {"status": "passed", "seconds": 60.0, "error": ""}

    monkeypatch.setattr(study, "execute", execute)
    monkeypatch.setattr(study, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    return names, fail


def stages(names):
    return [name.split("-")[0] for name in names]


def test_a_whole_study_is_judged_and_kept(grid, root, executed, tmp_path):
    made, said = run(grid, root, keep=tmp_path / "kept", command="ablate mine.yaml", workers=2)
    names, _ = executed
    assert len(names) == len(set(names)) == len(plan(grid)) and not made.failed
    assert "16 of 16" in said and "about" in said and "cannot tell" in said  # two seeds only
    assert made.missing == []
    kept = read_json(tmp_path / "kept" / "mine.json")
    assert kept["made"][0]["command"] == "ablate mine.yaml" and kept["missing"] == []
    assert kept["verdicts"][0]["verdict"] == "cannot tell" and len(kept["runs"]) == 16
    agreement = [run["consistency"] for run in kept["runs"] if run["stage"] == "test"]
    assert [one["overlap"]["value"] for one in agreement] == [0.5] * 8
    table = read_pooled(tmp_path / "kept" / "mine.csv.gz")
    assert len(table) == 8 * 3 * 8  # tests, files of replies, questions
    blank = table[(table["condition"] == "RL") & (table["control"] == "blank")]
    assert blank["correct"].sum() == 0 and set(blank["seed"]) == {0, 1}
    assert "RL, textures" in set(table["condition"])
    again, _ = run(grid, root, keep=tmp_path / "kept")
    assert len(names) == 16 and len(again.table) == len(table)  # nothing is made twice


def test_a_run_that_fails_stops_only_what_builds_on_it(grid, root, executed):
    names, fail = executed
    fail.add("nothing")  # a notebook that passes and leaves no replies
    assert "it made no runs/" in run(grid, root, only=["3D only"])[1]
    fail.clear()
    fail.add("rl")
    made, said = run(grid, root)
    assert made.missing == ["RL, seed 0", "RL, seed 1"] and len(made.failed) == 2
    assert stages(names).count("rl") == 2 and stages(names).count("test") == 2 + 6  # not of RL
    assert "failed: rl-RL-seed0" in said and "MemoryError: none left" in said
    assert "verdict" not in said and "3D only" not in said.split("missing")[1].split("failed")[0]
    looked = run(grid, root, look=True)[1]
    assert "| 3D only" in looked and "verdict" not in looked  # the table, without verdicts
    fail.clear()
    names.clear()
    assert "verdict" in run(grid, root)[1] and stages(names).count("rl") == 2
    assert "sft" not in stages(names)


def test_a_run_waits_only_for_what_it_builds_on(grid, root, executed, monkeypatch):
    """The last fine-tuning ends only when a test has begun, which waited for all of them before."""
    names, begun, others = executed[0], threading.Event(), study.execute
    last = [job for job in plan(grid) if job.stage == "sft"][-1].name

    def execute(notebook, out, given, settings):
        if out.stem.startswith("test"):
            begun.set()
        assert out.stem != last or begun.wait(30), "no test began beside it"
        return others(notebook, out, given, settings)

    monkeypatch.setattr(study, "execute", execute)
    made, _ = run(grid, root, workers=2)
    assert made.missing == [] and made.failed == {} and len(names) == 16


def test_a_part_is_not_judged(grid, root, executed, tmp_path):
    """Whoever may stop when the figures please makes intervals worthless."""
    for part in ({"seeds": 1}, {"only": ["joint", "3D only"]}):
        _, said = run(grid, root, keep=tmp_path / "kept", **part)
        assert "tests are missing" in said and "verdict" not in said
        assert read_json(tmp_path / "kept" / "mine.json")["verdicts"] == []
    kept = {"keep": tmp_path / "kept"}
    assert "verdict" in run(grid, root, **kept)[1]
    assert "verdict" not in run(grid, root, seeds=1, look=True, **kept)[1]  # a part was asked


def test_another_machine_goes_on_from_what_was_kept(grid, root, executed, tmp_path):
    names, fail = executed
    fail |= {job.name for job in plan(grid) if job.seed == 1 and job.conditions == ("RL",)}
    run(grid, root, keep=tmp_path / "kept")
    shutil.rmtree(root / "runs")
    fail.clear()
    names.clear()
    made, said = run(grid, root, keep=tmp_path / "kept")
    # the test of RL is missing, so RL and the fine-tuning that it begins with are made again
    assert stages(names) == ["sft", "rl", "test"]
    assert "verdict" in said and len(made.table) == 8 * 3 * 8
    other = grid.model_copy(update={"overrides": "sft.max_steps=9"})
    with pytest.raises(GridError, match="another form"):
        run(other, root, keep=tmp_path / "kept")


@pytest.mark.parametrize(
    "after",
    [
        "conditions: {joint: {test: {OVERRIDES: generation.max_rounds=1}}}",
        "conditions: {together: {}}",
        "conditions: {joint: {}, the same: {}}",
    ],
)
def test_a_changed_grid_has_the_replies_of_its_own_conditions(root, executed, tmp_path, after):
    """Old replies were shown as those of a changed test, and a renamed condition had none."""
    path = tmp_path / "mine.yaml"
    for conditions in ("conditions: {joint: {}}", after):
        path.write_text(f"name: mine\nprofile: smoke\nseeds: 2\n{conditions}\n")
        made, _ = run(load_grid(path), root)
    own = made.table[made.table["control"].eq("none")]
    assert not made.missing and set(own["condition"]) == {*made.grid.conditions}
    assert (own.groupby(["condition", "seed", "id"]).size() == 1).all() and not made.failed


def test_a_dry_run_only_shows_cost_and_commands(grid, root, executed):
    grid = grid.model_copy(update={"minutes": {"sft": 4, "rl": 6, "test": 1}})
    with locked(root / "runs/ablation/mine/.lock", "x"), pytest.raises(DatasetError, match="mine"):
        run(grid, root)  # two processes do not run one study
    _, said = run(grid, root, dry_run=True, workers=2)
    assert "16 to be made; about 22 min" in said and not executed[0]
    assert said.count("python -m unireason_lib tutorial 06") == 8


def test_edited_code_warns_and_stops_nothing(grid, root, executed):
    """A study died of an edited docstring after hours."""
    run(grid, root, only=["joint"])
    notebook = root / "notebooks" / "04_sft.ipynb"
    notebook.write_text(notebook.read_text() + "\n")
    made, said = run(grid, root)
    assert not made.failed and not made.missing and len(executed[0]) == 16
    assert said.count("warning: the code changed") == 1 and "-dirty" in said
    commit(root)
    assert "warning" not in run(grid, root)[1]  # nothing is left to be made
    kept = read_json(root / "runs/ablation/mine/mine.json")
    assert len({one["commit"] for one in kept["runs"]}) == 2


def test_a_stopped_study_goes_on(grid, root):
    """kill -9 or Ctrl-C in the middle: no finished run is repeated, none is lost, none goes on. Then
    a condition that fails in its second cell."""
    program = (
        "from pathlib import Path; from unireason_lib.ablation import *;"
        f"run_study(load_grid('{root}/mine.yaml'), Path('{root}'), seeds=1, only=['joint'])"
    )
    words, env = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = root / "runs/ablation/mine"
    for ending in (signal.SIGKILL, signal.SIGINT):
        began = time.time()
        process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, start_new_session=True)
        while not any(path.stat().st_mtime > began for path in folder.glob("test-*.ipynb")):
            assert process.poll() is None and time.time() < began + 120
            time.sleep(0.05)
        if ending == signal.SIGKILL:  # the study alone; its workers see that it is gone
            process.kill()
        else:  # as a terminal does
            os.killpg(process.pid, ending)
        process.communicate(timeout=60)
        assert process.returncode != 0
    before = {path: path.stat().st_mtime for path in root.glob("runs/sft/*/model/seed")}
    done = len(read_json(folder / "mine.json")["runs"])
    made, said = run(grid, root, seeds=1, only=["joint", "answer only"])
    assert f"{4 - done} to be made" in said and len(made.table) == 3 * 8
    assert before and all(path.stat().st_mtime == changed for path, changed in before.items())
    (name,) = made.failed
    assert name.startswith("sft-answer-only") and made.failed[name].endswith("no such luck")
    assert "AssertionError" in said
    cells = nbformat.read(folder / f"{name}.ipynb", 4).cells
    assert any(cell.source.startswith("# Parameters") for cell in cells)
