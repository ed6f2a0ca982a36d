"""Versions are compared with what pyproject.toml asks for, and the message says what to do."""

from __future__ import annotations

import sys
import types
from importlib import metadata

import pytest

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial import check_versions, project, project_root


def test_this_environment_fits_and_its_versions_are_shown():
    line = check_versions()
    assert line.startswith("unireason-lab ")
    assert f"transformers {metadata.version('transformers')}" in line


def test_the_project_folder_is_found_from_within_and_from_outside(
    checkout, tmp_path, notebooks, monkeypatch
):
    assert project_root(checkout / "unireason_lib" / "tutorial") == checkout
    assert project_root(notebooks) == tmp_path
    monkeypatch.chdir(notebooks)
    assert project_root() == tmp_path
    outside = tmp_path.parent
    assert project_root(outside) == checkout


def test_outside_any_checkout_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "_is_checkout", lambda folder: False)
    with pytest.raises(UniReasonError, match="inside the cloned repository"):
        project_root(tmp_path)


def test_the_declaration_is_the_same_from_checkout_and_metadata(monkeypatch, checkout, tmp_path):
    """The metadata that an installation leaves, read the way a notebook on Colab would read it."""
    from_checkout = project.declared()
    info = tmp_path / "unireason_lab-0.1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: unireason-lab", f"Version: {from_checkout.version}"]
    lines += [f"Requires-Python: {from_checkout.requires_python}"]
    lines += [f"Project-URL: Repository, {from_checkout.repository}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in from_checkout.requirements]
    lines += ['Requires-Dist: ray>=2.50; extra == "ray"']
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(project, "_is_checkout", lambda folder: False)
    monkeypatch.syspath_prepend(tmp_path)
    assert project.declared() == from_checkout


def test_not_installed_at_all_says_how(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(project, "_is_checkout", lambda folder: False)
    monkeypatch.setattr(project.metadata, "metadata", missing)
    with pytest.raises(UniReasonError, match="pip install -e"):
        project.declared()


def declare(monkeypatch, *requirements, python=">=3.11"):
    declaration = project.Declaration("0.1.0", "https://github.com/a/b", python, requirements)
    monkeypatch.setattr(project, "declared", lambda: declaration)


def test_every_misfit_is_listed_with_what_to_do(monkeypatch):
    declare(
        monkeypatch,
        "trl<1",
        "no-such-package>=3",
        "numpy>=1",
        'gone>=1; python_version < "3"',
        python=">=4",
    )
    with pytest.raises(UniReasonError) as caught:
        check_versions()
    message = str(caught.value)
    for part in (
        "trl",
        "needs <1",
        "no no-such-package",
        "needs >=4",
        "make tutorial",
        "requirements.lock",
    ):
        assert part in message
    assert "numpy" not in message and "gone" not in message


def test_a_package_upgraded_under_a_running_kernel_asks_for_a_restart(monkeypatch):
    declare(monkeypatch, "nibabel>=3")
    monkeypatch.setitem(sys.modules, "nibabel", types.SimpleNamespace(__version__="3.0.0"))
    with pytest.raises(UniReasonError, match=r"3\.0\.0 loaded.*restart the kernel"):
        check_versions()


def test_local_build_tags_do_not_count_as_another_version(monkeypatch):
    declare(monkeypatch, "nibabel>=3")
    loaded = types.SimpleNamespace(__version__=f"{metadata.version('nibabel')}+cu130")
    monkeypatch.setitem(sys.modules, "nibabel", loaded)
    assert "unireason-lab" in check_versions()
