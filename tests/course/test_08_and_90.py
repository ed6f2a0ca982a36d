"""Notebooks 08 and 90: their functions as written there, their solutions, and their form."""

import ast
import json
import re
import subprocess

import pytest
import torch

from tests.course.notebook import NOTEBOOKS, functions_of, solutions_of
from unireason_lib.planning import language_flops, parameters, shaped_model
from unireason_lib.tiny_base import exercise
from unireason_lib.tiny_base.guidance import HEADS
from unireason_lib.training.optim import FloatMuon

NAMES = ("08_scaling_up", "90_tiny_base")


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_parameters_and_flops_by_hand_are_those_of_the_library(size):
    eight, model = functions_of("08_scaling_up", torch=torch), shaped_model(size)
    config = model.config.text_config
    assert eight["language_parameters"](config)[1] == parameters(model)[0]
    flops, square = eight["forward_flops"](config, 1000, 7)
    assert flops == language_flops(model, 1000, 7) and 0 < square < flops


def test_sharding_divides_what_is_sharded_and_nothing_else():
    memory = functions_of("08_scaling_up", torch=torch)["training_memory"]
    config = shaped_model("3b").config.text_config
    one, four = (memory(config, 3e9, 6e8, gpus, 4096) for gpus in (1, 4))
    for part in one:
        sharded = part in ("frozen weights", "weights, gradients, optimizer")
        assert four[part] == pytest.approx(one[part] / (4 if sharded else 1))


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


def test_pairs_are_solved_by_hand():
    solve = functions_of("90_tiny_base", torch=torch)["solve_pairs"]
    found = [one for k in range(400) if (one := exercise("text", k)).name == "pairs"]
    assert len({one.question.split("?")[0] for one in found}) == 5
    assert all(solve(one.question) == one.reply == one.answer for one in found)


def test_muon_by_hand_is_that_of_the_library():
    matrix = torch.nn.Parameter(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))
    matrix.grad = torch.randn(48, 48, generator=torch.Generator().manual_seed(1))
    before = matrix.detach().clone()
    FloatMuon([matrix], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    update = functions_of("90_tiny_base", torch=torch)["orthogonal"](matrix.grad)
    expected = before - 0.1 * 0.2 * 48**0.5 * update
    torch.testing.assert_close(matrix.detach(), expected, rtol=1e-3, atol=1e-5)
    iterated = solutions_of("90_tiny_base")["iterated"]
    start = torch.linalg.svdvals(matrix.grad / matrix.grad.norm()).tolist()
    end = sorted(iterated(value) for value in start)
    assert torch.linalg.svdvals(update).flip(0).tolist() == pytest.approx(end, rel=1e-3)


def test_attention_is_read_at_the_targets():
    read = functions_of("90_tiny_base", HEADS=HEADS, torch=torch)["attention_on_targets"]
    layers = torch.rand(4, 2, 4, 9, 9)  # layers, rows, heads, tokens, tokens
    pairs = torch.tensor([[1.0, n, 5, 3] for n in range(len(HEADS))])
    for name, values in read(layers, pairs).items():
        layer, head = HEADS[name]
        assert values.tolist() == [layers[layer, 1, head, 5, 3]]


def test_solutions_of_notebook_08():
    solutions = solutions_of("08_scaling_up")
    count, part = solutions["fewest_gpus"]("H200")
    assert 1 <= count < 4 and part == "weights, gradients, optimizer"
    counted, predicted = solutions["updates_per_fine_tuning"]()
    assert counted == pytest.approx(predicted, rel=0.5) and predicted > 1
    (tokens, flops), (more, higher) = (solutions["cost_of_slices"](side) for side in (256, 512))
    assert 3.5 < more / tokens < 4 < higher / flops


def test_solutions_of_notebook_90(tiny_model):
    solutions = solutions_of("90_tiny_base")
    assert -1 <= solutions["similarity_of_ends"](*tiny_model) <= 1
    right, asked = solutions["reach_of_letter"](*tiny_model, words=150, count=4)
    assert 0 <= right <= asked == 4
    assert all(0.6 < solutions["iterated"](k / 1000) < 1.2 for k in range(5, 1001))
    assert solutions["iterated"](0.0001) < 0.1 and abs(solutions["iterated"](1.3)) > 1e3


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_the_course(name):
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 350 and text.count("# %%") <= 45
    assert text.count("**Predict first") >= 2 and "## Check yourself" in text
    links = ("colab.research.google.com", "arxiv.org/abs/2606.11740", f"solutions/{name}.py")
    assert all(link in text for link in links)
