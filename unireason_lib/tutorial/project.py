"""The checkout a notebook belongs to: where it lies, what it declares, and whether the installed versions fit.

``pyproject.toml`` is the only list of dependencies. In a checkout it is read directly (an installed copy of it
can be out of date), otherwise from the metadata that the installation left.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from unireason_lib.errors import UniReasonError

DISTRIBUTION = "unireason-lab"
SHOWN = ("torch", "transformers", "trl")
"""Packages whose versions a notebook shows, since results depend on them."""


@dataclass(frozen=True)
class Declaration:
    """What the project says about itself.

    Args:
        version: Of the project.
        repository: Address of its public repository.
        requires_python: A specifier like ``>=3.11``.
        requirements: Core dependencies, one requirement each.
    """

    version: str
    repository: str
    requires_python: str
    requirements: tuple[str, ...]


def project_root(start: str | Path | None = None) -> Path:
    """The folder with ``notebooks/``, ``data/`` and ``runs/``.

    Args:
        start: Look here and in the folders above; default: where the process works. If it is outside any
            checkout, the one that this package was imported from counts.

    Raises:
        UniReasonError: There is no checkout: the package was installed without one.
    """
    start = Path(start or Path.cwd()).resolve()
    package = Path(__file__).resolve().parents[2]
    for folder in (start, *start.parents, package):
        if _is_checkout(folder):
            return folder
    raise UniReasonError(
        "project folder",
        f"a checkout of {DISTRIBUTION} at or above the working folder",
        "none",
        "work inside the cloned repository",
    )


def declared() -> Declaration:
    """The project's own declaration, from its checkout or else from the installed metadata."""
    from unireason_lib import __version__

    package = Path(__file__).resolve().parents[2]
    if _is_checkout(package):
        project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        requirements = tuple(project["dependencies"])
        return Declaration(
            __version__, project["urls"]["Repository"], project["requires-python"], requirements
        )
    try:
        installed = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        do = "install the project: pip install -e . in its checkout"
        raise UniReasonError(DISTRIBUTION, "an installed package", "none", do) from error
    urls = dict(line.split(", ", 1) for line in installed.get_all("Project-URL", []))
    core = tuple(line for line in installed.get_all("Requires-Dist", []) if "extra ==" not in line)
    return Declaration(__version__, urls["Repository"], installed["Requires-Python"], core)


def check_versions() -> str:
    """Compare the installed packages with what the project needs, before a notebook trips over one of them.

    Returns:
        One line to show: the project, Python and the packages that results depend on most.

    Raises:
        UniReasonError: Something is missing, too old, too new, or was upgraded after this kernel had loaded it; the
            message lists all of it and says what to do.
    """
    declaration = declared()
    problems, stale = _problems(declaration)
    if problems:
        advice = "run `make tutorial` in the checkout, or `pip install -r requirements.lock`, and restart the kernel"
    elif stale:
        problems = stale
        advice = "restart the kernel (Colab: Runtime > Restart session) and run from the top; nothing need be installed"
    else:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in SHOWN)
        python = ".".join(str(number) for number in sys.version_info[:3])
        return f"{DISTRIBUTION} {declaration.version}, Python {python}, {versions}"
    expected = "the versions that pyproject.toml asks for"
    raise UniReasonError("installed packages", expected, "; ".join(problems), advice)


def _problems(declaration: Declaration) -> tuple[list[str], list[str]]:
    """What is not installed as declared, and what is installed but not what this process has loaded."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    problems, stale = [], []
    python = ".".join(str(number) for number in sys.version_info[:3])
    if python not in SpecifierSet(declaration.requires_python):
        problems.append(f"Python {python} (needs {declaration.requires_python})")
    for requirement in map(Requirement, declaration.requirements):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"no {requirement.name}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name} {installed} (needs {requirement.specifier})")
        loaded = getattr(sys.modules.get(requirement.name), "__version__", installed)
        try:
            if Version(loaded).public != Version(installed).public:
                stale.append(f"{requirement.name} {loaded} loaded, {installed} installed")
        except (InvalidVersion, TypeError):
            continue
    return problems, stale


def _is_checkout(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    return file.is_file() and f'name = "{DISTRIBUTION}"' in file.read_text(
        encoding="utf-8", errors="replace"
    )
