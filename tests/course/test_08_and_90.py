"""Notebooks 08 and 90: their functions as written there, and their solutions."""

import ast
import json
import re
import subprocess

import pytest
import torch

from tests.course.notebook import NOTEBOOKS, functions_of, solutions_of


def test_the_slurm_script_is_one_in_both_files(tmp_path):
    """jupytext once took the # from #!/bin/bash, and sbatch refuses a file without it."""
    cells = json.loads((NOTEBOOKS / "08_scaling_up.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    sources += (NOTEBOOKS / "08_scaling_up.py").read_text(encoding="utf-8").split("# %%\n")
    lists = [ast.parse(s) for s in sources if s.startswith("SLURM = [")]
    scripts = ["\n".join(ast.literal_eval(tree.body[0].value)) for tree in lists]
    assert len(scripts) == 2 and scripts[0] == scripts[1]
    assert scripts[0].startswith("#!/bin/bash\n#SBATCH ")
    (tmp_path / "x").write_text(scripts[0])
    subprocess.run(["bash", "-n", tmp_path / "x"], check=True)
    (file,) = re.findall(r"--config_file (\S+)", scripts[0])
    assert (NOTEBOOKS.parent / file).is_file()


def test_solutions_of_notebook_08():
    solutions = solutions_of("08_scaling_up")
    count, part = solutions.fewest_gpus("H200")
    assert 1 <= count < 4 and part == "weights, gradients, optimizer"
    counted, predicted = solutions.updates_per_fine_tuning()
    assert counted == pytest.approx(predicted, rel=0.5) and predicted > 1
    (tokens, flops), (more, higher) = (solutions.cost_of_slices(side) for side in (256, 512))
    assert 3.5 < more / tokens < 4 < higher / flops


def test_solutions_of_notebook_90(tiny_model):
    solutions = solutions_of("90_tiny_base")
    assert -1 <= solutions.similarity_of_ends(*tiny_model) <= 1
    right, asked = solutions.reach_of_letter(*tiny_model, words=150, count=4)
    assert 0 <= right <= asked == 4
    matrix = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    update = functions_of("90_tiny_base", torch=torch).orthogonal(matrix)
    start = torch.linalg.svdvals(matrix / matrix.norm()).tolist()
    end = sorted(solutions.iterated(value) for value in start)
    assert torch.linalg.svdvals(update).flip(0).tolist() == pytest.approx(end, rel=1e-3)
    assert all(0.6 < solutions.iterated(k / 1000) < 1.2 for k in range(5, 1001))
    assert solutions.iterated(0.0001) < 0.1 and abs(solutions.iterated(1.3)) > 1e3
