"""The top level keeps its promises: one list of dependencies, a lock that fits it, arrows that run one way."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = map(Requirement, re.findall(r"^[a-zA-Z].*", LOCK, re.M))
PINS = {canonicalize_name(pin.name): pin for pin in PINS}
EXTRAS = PROJECT["optional-dependencies"]
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml", "ipython": "IPython"}


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return names


def test_the_lock_pins_a_version_that_fits_for_every_dependency():
    wanted = chain(PROJECT["dependencies"], *(EXTRAS[extra] for extra in ("dev", "llm", "ray")))
    for requirement in map(Requirement, wanted):
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier)[2:]), f"{requirement}: {pin}"
        assert pin.marker is None, f"{requirement.name} would be left out somewhere"
    pinned = [str(PINS[name].specifier) for name in ("torch", "torchvision")]
    assert pinned == ["==2.14.1", "==0.29.1"]
    assert "://" not in LOCK and "--" not in LOCK, "the lock names no host"


def test_everything_imported_is_declared():
    lines = chain(PROJECT["dependencies"], *EXTRAS.values())
    declared = {Requirement(line).name.lower() for line in lines}
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in declared}
    declared |= set(sys.stdlib_module_names) | {"unireason_lib"}
    imported = set().union(*map(imports_of, (ROOT / "unireason_lib").rglob("*.py")))
    assert {name.split(".")[0] for name in imported} <= declared


def test_packages_import_in_no_circle():
    """The order that README states; imports inside functions count."""
    package, graph = ROOT / "unireason_lib", {}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).with_suffix("").parts[0]
        for name in imports_of(path):
            first, other, *_ = [*name.split("."), ""]
            if first == "unireason_lib" and other not in (part, "") and not other.startswith("__"):
                graph.setdefault(part, set()).add(other)
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    pipeline = ["errors", "boxes", "imaging", "dataset", "training", "cli"]
    assert sorted(pipeline, key=order.index) == pipeline


def test_light_parts_import_without_heavy_packages():
    """`--help`, reading a profile and reading results must not wait for torch."""
    code = """
import sys
from unireason_lib.cli import app
try: app()
except SystemExit: pass
assert not {'torch', 'transformers', 'matplotlib', 'numpy', 'PIL', 'pandas', 'papermill'} & {*sys.modules}
import unireason_lib.notebooks, unireason_lib.config as c; c.load_profile('smoke')
assert 'pandas' not in sys.modules
import unireason_lib.evaluation
assert not {'torch', 'transformers', 'matplotlib', 'papermill'} & {*sys.modules}
"""
    words = [sys.executable, "-c", code, "evaluate", "--help"]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


PROGRAM = """#!/bin/sh
echo "$(basename $0) $*" >> calls
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *requirements.lock*) [ ! -e broken ] ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    """The files that make reads, with stand-ins for Python and uv that note how they are called."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "uv"):
        (tmp_path / "bin" / name).write_text(PROGRAM)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in "make sh awk cat cksum tr test touch rm mkdir cp basename".split():
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))

    def make(*arguments):
        (tmp_path / "calls").write_text("")
        how = {"env": {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}, "text": True}
        run = subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, **how)
        calls = (tmp_path / "calls").read_text().splitlines()
        return run, [call for call in calls if "sys.exit" not in call]

    make.folder = tmp_path
    return make


def test_make_fills_the_environment_once_and_takes_up_a_broken_installation(clone):
    assert "make tutorial" in clone()[0].stdout
    (clone.folder / "broken").touch()
    run, calls = clone("tutorial")
    assert run.returncode != 0 and not any("unireason_lib" in call for call in calls)
    (clone.folder / "broken").unlink()
    tutorial = "python -m unireason_lib tutorial --profile laptop --workers 2"
    assert clone("tutorial")[1][-1] == tutorial
    some = "python -m unireason_lib tutorial --profile smoke 00 03"
    assert clone("tutorial", "PROFILE=smoke", "ONLY=00 03")[1] == [some]
    with (clone.folder / "requirements.lock").open("a") as file:
        file.write("another==1\n")
    calls = clone("test")[1]
    assert calls[0].startswith("uv pip install") and "-r requirements.lock" in calls[0]
    parts = [call.split("-m ")[1].split(" ")[:2] for call in calls if "-m " in call]
    assert [part[-1] for part in parts] == ["format", "check", "gate", "-q", "tutorial", "ablate"]

    shutil.rmtree(clone.folder / ".venv")
    (clone.folder / "bin" / "python3").unlink()
    run, calls = clone("lint")
    assert run.returncode != 0 and "Python 3.11 or newer" in run.stderr and calls == []


def test_everything_that_the_package_reads_is_installed_with_it():
    """Else a notebook on Colab, which installs the package, would miss templates and styles."""
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["*"]
    files = [path for path in (ROOT / "unireason_lib").rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix != ".py" and "__pycache__" not in path.parts]
    assert [str(path) for path in kept if f"*{path.suffix}" not in patterns] == []
