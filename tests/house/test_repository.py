"""The top level keeps its promises: one list of dependencies, a lock that fits it, commands that set themselves up."""

from __future__ import annotations

import ast
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKED_EXTRAS = ("dev", "cc3d", "llm", "ray")


@pytest.fixture
def project(checkout) -> dict:
    return tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def pins(checkout) -> dict[str, Requirement]:
    lines = (checkout / "requirements.lock").read_text(encoding="utf-8").split("\n")
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(requirement.specifier).startswith("==") for requirement in pinned)
    return {canonicalize_name(requirement.name): requirement for requirement in pinned}


def test_the_lock_pins_a_version_that_fits_for_every_dependency(project, pins):
    wanted = list(project["dependencies"])
    for extra in LOCKED_EXTRAS:
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        pin = pins[canonicalize_name(requirement.name)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} but the lock has {version}"
        assert pin.marker is None, f"{requirement.name} would be left out somewhere"


def test_torch_and_torchvision_belong_together(pins):
    assert str(pins["torch"].specifier) == "==2.14.1"
    assert str(pins["torchvision"].specifier) == "==0.29.1"


def test_the_lock_installs_on_other_systems_and_names_no_host(checkout, pins):
    for name, pin in pins.items():
        if name.startswith(("nvidia-", "cuda-", "triton")):
            assert "sys_platform == 'linux'" in str(pin).replace('"', "'"), name
    text = (checkout / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "--" not in text and " @ " not in text


def test_everything_else_installs_from_the_lock(checkout, project):
    environment = yaml.safe_load((checkout / "environment.yml").read_text(encoding="utf-8"))
    python, pip, nested = environment["dependencies"]
    assert python.startswith(f"python {project['requires-python']}") and pip == "pip"
    assert nested == {"pip": ["-r requirements.lock", "-e ."]}
    assert (
        "pip install --progress-bar off -r requirements.lock" in (checkout / "Makefile").read_text()
    )


def test_continuous_integration_runs_make_test_and_nothing_else(checkout):
    script = checkout / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    code = [line for line in script.read_text().split("\n") if line and not line.startswith("#")]
    assert code == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "exec make test"]


def test_licence_version_and_paper_are_the_same_everywhere(checkout, project):
    from unireason_lib import __version__

    citation = yaml.safe_load((checkout / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["license"] == citation["license"] == "Apache-2.0"
    assert "Apache License" in (checkout / "LICENSE").read_text(encoding="utf-8")[:200]
    assert citation["version"] == __version__
    assert "2606.11740" in citation["preferred-citation"]["url"]


def test_extras_that_bind_stay_optional(project):
    core = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert not core & {
        "connected-components-3d",
        "openai",
        "ray",
        "bitsandbytes",
        "jupyterlab",
        "pytest",
    }


def test_pre_commit_runs_the_pinned_tools_only(checkout):
    config = yaml.safe_load((checkout / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert all(hook["entry"].startswith(".venv/bin/") for hook in config["repos"][0]["hooks"])


def test_light_parts_import_without_heavy_packages(checkout):
    """`--help` and reading a profile must not wait for torch."""
    code = (
        "import sys, unireason_lib.tutorial, unireason_lib.tutorial.runner, unireason_lib.profiles as p;"
        "p.load_profile('smoke');"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'papermill', 'nbformat', 'jupytext')"
        " if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_rooms_import_in_no_circle(checkout):
    """As README says; imports inside functions count."""
    package, knows = checkout / "unireason_lib", {}
    for path in package.rglob("*.py"):
        room = path.relative_to(package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{one.name}" for one in node.names]
            else:
                named = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            for name in named:
                first, other, *_ = [*name.split("."), ""]
                if (
                    first == "unireason_lib"
                    and other not in (room, "")
                    and not other.startswith("__")
                ):
                    knows.setdefault(room, set()).add(other)
    assert {"grounding", "training", "evaluation", "ablation"} <= knows["cli"]
    assert knows["boxes"] == {"errors"}
    order = list(TopologicalSorter(knows).static_order())  # raises where there is a circle
    assert order.index("imaging") < order.index("training") < order.index("cli")


# --- make, with stand-ins for Python and pip ------------------------------------------------------------------------


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")

FAKE_PYTHON = """\
#!/bin/sh
# A stand-in: answers what the Makefile asks, and makes a .venv whose python notes what it was called with.
case "$*" in
    *version_info*) exit {too_old} ;;
    --version) echo "Python {version}"; exit 0 ;;
    "-m venv .venv")
        [ {venv_works} = yes ] || {{ echo "ensurepip is not available"; exit 1; }}
        mkdir -p .venv/bin
        printf '#!/bin/sh\\ncase "$*" in -c*) exit 0;; "-m pip --version") exit 0;; esac\\n' > .venv/bin/python
        printf 'echo "$@" >> calls\\n' >> .venv/bin/python
        printf 'case "$*" in *requirements.lock*) echo "Collecting a==1"; [ ! -e broken ];; esac\\n' >> .venv/bin/python
        chmod +x .venv/bin/python ;;
esac
"""


@pytest.fixture
def clone(checkout, tmp_path) -> Path:
    """The files that make reads, in a folder of their own, with an empty list of programs."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(checkout / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def python_in(clone: Path, name: str, *, version="3.12.1", too_old=0, venv_works="yes") -> Path:
    file = clone / "bin" / name
    file.write_text(FAKE_PYTHON.format(version=version, too_old=too_old, venv_works=venv_works))
    file.chmod(0o755)
    return file


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run make where only the stand-ins and the system's basic tools are found."""
    tools = clone / "tools"
    if not tools.exists():
        tools.mkdir()
        for name in "make sh echo test awk cat cksum tr grep sed tee touch rm mkdir chmod tail printf find mv".split():
            if found := shutil.which(name):
                (tools / name).symlink_to(found)
    path = f"{clone / 'bin'}:{tools}"
    return subprocess.run(
        [shutil.which("make"), *arguments],
        cwd=clone,
        env={"PATH": path, "HOME": str(clone)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(clone: Path) -> list[str]:
    file = clone / "calls"
    return file.read_text().strip().split("\n") if file.exists() else []


@needs_make
def test_make_alone_lists_the_commands(clone):
    found = make(clone)
    assert found.returncode == 0
    for target in ("tutorial", "test", "lab", "bench", "notebooks", "sync", "lock"):
        assert re.search(rf"^  make {target} +\S", found.stdout, re.M)
    assert not (clone / ".venv").exists()


@needs_make
def test_the_environment_is_made_once_and_again_when_the_lock_changes(clone):
    python_in(clone, "python3")
    first = make(clone, "tutorial")
    assert first.returncode == 0, first.stderr
    assert "Making .venv with Python 3.12.1" in first.stdout
    lock = "-m pip install --progress-bar off -r requirements.lock"
    package = "-m pip install --quiet --no-deps --no-build-isolation -e ."
    run = "-m unireason_lib tutorial --profile laptop"
    assert calls(clone) == [lock, package, run]
    make(clone, "tutorial", "PROFILE=smoke", "ONLY=00 03")
    assert calls(clone)[3:] == ["-m unireason_lib tutorial --profile smoke 00 03"]
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    make(clone, "tutorial")
    assert calls(clone)[4:] == [package, run], "the pinned packages are still there"
    with (clone / "requirements.lock").open("a") as file:
        file.write("another==1\n")
    make(clone, "tutorial")
    assert calls(clone)[6:] == [lock, package, run]


@needs_make
def test_a_failed_installation_says_so_and_is_repeated(clone):
    python_in(clone, "python3")
    (clone / "broken").touch()
    failed = make(clone, "tutorial")
    assert failed.returncode != 0 and "Run make again" in failed.stderr
    assert not any("unireason_lib" in call for call in calls(clone))
    (clone / "broken").unlink()
    assert make(clone, "tutorial").returncode == 0
    assert sum("requirements.lock" in call for call in calls(clone)) == 2


@needs_make
def test_the_first_python_that_works_and_is_new_enough(clone):
    python_in(
        clone, "python3.13", version="3.13.0", too_old=1
    )  # as a version manager's shim that cannot run
    python_in(clone, "python3.11", version="3.11.4")
    python_in(clone, "python3", version="3.9.2", too_old=1)
    assert "Making .venv with Python 3.11.4" in make(clone, ".venv").stdout
    shutil.rmtree(clone / ".venv")
    chosen = python_in(clone, "mine", version="3.12.9")
    assert "Making .venv with Python 3.12.9" in make(clone, ".venv", f"PYTHON={chosen}").stdout


@needs_make
def test_no_python_and_no_venv_module_are_explained(clone):
    found = make(clone, "test")
    assert found.returncode != 0 and "expected 3.11 or newer" in found.stderr
    python_in(clone, "python3", version="3.9.2", too_old=1)
    found = make(clone, "test")
    assert "found Python 3.9.2" in found.stderr and "PYTHON=/path/to/python" in found.stderr
    python_in(clone, "python3", venv_works="no")
    found = make(clone, "test")
    assert found.returncode != 0
    assert "ensurepip is not available" in found.stderr and "python3-venv" in found.stderr
    assert not (clone / ".venv").exists()


@needs_make
def test_test_runs_all_parts_in_order(clone):
    python_in(clone, "python3")
    assert make(clone, "test").returncode == 0
    parts = [call.split(" -q")[0] for call in calls(clone)[2:]]
    assert parts == [
        "-m ruff format --check .",
        "-m ruff check .",
        "-m unireason_lib.tutorial gate",
        "-m pytest",
        "-m unireason_lib tutorial --profile smoke --out runs/smoke",
        "-m unireason_lib ablate data/ablations/claims.yaml --profile smoke --seeds 1 --look",
        "-m unireason_lib ablate data/ablations/efficiency.yaml --profile smoke --seeds 1 --only 40 volumes --look",
    ]
