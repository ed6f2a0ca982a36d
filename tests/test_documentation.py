"""README and the guides promise nothing that is not there: commands, links, files, verdicts."""

import ast
import importlib
import math
import re
import runpy
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import typer
from PIL import Image
from safetensors import safe_open

from unireason_lib.cli import app

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ("README.md", "notebooks/README.md", "unireason_lib/README.md", "data/README.md")


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(name), re.M | re.S)


def commands(name: str) -> list[str]:
    """The lines of all shell blocks, without comments; continued lines are one."""
    lines = "\n".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def anchors(name: str) -> set[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(name), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", GUIDES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(name)):
        path, _, heading = target.partition("#")
        if path.startswith("https://"):
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if heading:
            assert heading in anchors(str(file.resolve().relative_to(ROOT))), target


@pytest.mark.parametrize("name", GUIDES)
def test_commands_have_the_options_that_they_are_given(name):
    """Words are read as the command line reads them; nothing is run."""
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.M))
    for line in commands(name):
        words = shlex.split(line.split(" -m ", 1)[-1] if "unireason_lib" in line else line)
        if words[0] == "make":
            assert words[1] in targets, line
        if words[0] != "unireason_lib":
            continue
        command, context, rest = typer.main.get_command(app), None, words[1:]
        while hasattr(command, "commands") and rest[0] != "--help":
            context = command.make_context("x", [], parent=context, resilient_parsing=True)
            command, rest = command.commands[rest[0]], rest[1:]
        if rest != ["--help"]:
            command.make_context("x", rest, parent=context)
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", text_of(name))) <= set(extras)


@pytest.mark.parametrize("name", GUIDES)
def test_python_examples_import_what_there_is(name):
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names), node.module


def test_readme_is_a_landing_page_that_names_every_notebook():
    readme = text_of("README.md")
    assert readme.count("\n") <= 150 and readme.count("not for clinical use") == 1
    stems = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    table = re.findall(r"^\| (?:\[)?(\d\d) [^|]*\|[^|]+\|[^|]+\|[^|]+\|$", readme, re.M)
    assert {stem[:2] for stem in stems} <= set(table) and table == sorted(table)
    with safe_open(ROOT / "data/tiny-sft/model.safetensors", "np") as weights:
        count = sum(math.prod(weights.get_slice(k).get_shape()) for k in weights.keys())  # noqa: SIM118
    assert f"{count / 1e6:.1f} M parameters" in readme


def test_verdicts_in_readme_are_those_of_the_study():
    from unireason_lib.ablation import judge, load_grid
    from unireason_lib.evaluation.table import read_pooled

    grid = load_grid(ROOT / "data/ablations/first/claims.yaml")
    names = {"supported": [], "inconclusive": [], "contradicted": []}
    for one in judge(grid, read_pooled(ROOT / "data/results/first/claims.csv.gz")):
        scale = 100 if one.claim.value == "correct" else 1
        effect = one.comparison.difference.text(scale, "+") + " IoU" * (scale == 1)
        names[one.verdict.split()[0]].append(f"{one.claim.says}, {effect}")
    for verdict, claims in names.items():
        line = re.search(rf"^- \*\*{verdict.title()}\*\*[^:]*: (.*)\.$", text_of("README.md"), re.M)
        expected = "; ".join(claims) or "none"
        assert line and line[1] == expected, f"README should say: {verdict}: {expected}."


def test_figures_show_the_present_model_results_and_imports():
    script = runpy.run_path(str(ROOT / "data/figures/draw.py"))
    for name, draw in script["FIGURES"].items():
        with Image.open(ROOT / "data/figures" / name) as image:
            kept = image.info.get("Description") or image.info["comment"].decode()
        assert kept == draw().alt, f"{name} is stale: python data/figures/draw.py"


def test_the_animation_is_small():
    for name in ("hero.gif", "hero.png"):
        with Image.open(ROOT / "data/figures" / name) as image:
            assert image.size == (860, 400)
    assert (ROOT / "data/figures/hero.gif").stat().st_size < 1.5e6


def test_every_file_in_data_is_explained():
    listed = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True)
    files = [Path(line).relative_to("data") for line in listed.stdout.split()]
    guide = text_of("data/README.md")
    unnamed = [str(f) for f in files if str(f) not in guide and f"`{f.name}`" not in guide]
    assert [name for name in unnamed if name != "README.md"] == []


def test_the_map_of_the_paper_names_sections_that_exist():
    rows = re.findall(r"\]\((\d\d\w+)\.ipynb\) (§[^|\[]*)", text_of("notebooks/README.md"))
    assert len(rows) > 15
    for stem, sections in rows:
        script = text_of(f"notebooks/{stem}.py")
        for number in re.findall(r"§(\d+)", sections):
            assert f"\n# ## {number} · " in script, (stem, number)
    table = text_of("notebooks/README.md").split("## Glossary")[1]
    terms = re.findall(r"^\| ([^|]+) \| ", table, re.M)[2:]
    assert terms and len(terms) == len(set(terms)), "a term of the glossary is explained twice"
