"""Run the notebooks, keep their outputs fresh, and keep them in step with their paired scripts.

papermill executes, jupytext pairs. Ours are a status line per notebook, the table of published
results, the check that committed outputs belong to the committed code, and the set-up cell.

    python -m unireason_lib.notebooks sync | refresh | gate [00 03 ...]
"""

import builtins
import difflib
import hashlib
import itertools
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unireason_lib import __version__
from unireason_lib.errors import UniReasonError
from unireason_lib.io import write_json, write_whole

RESULT = "application/vnd.unireason.result+json"
TRAINING = ("04", "05")
"""Notebooks that train for long: in a run of all notebooks they run as ``smoke``, and they may be
committed without outputs until somebody trains (never with outputs of other code)."""
MACHINE_PATH = re.compile(r"(?<![\w.~/<])/(?:home|Users|root|tmp|private|mnt|work)/[\w.-]+")
SET_UP_FILE = Path(__file__).parent / "configs" / "setup_cell.txt"


def project_root(start: str | Path = ".") -> Path:
    """The checkout at or above a folder, else that of this package; it holds ``data/``."""
    start = Path(start).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks" / "jupytext.toml").is_file():
            return folder
    raise UniReasonError(
        "project folder", "a checkout", "none", "work inside the cloned repository"
    )


def check_versions() -> str:
    """One line with the versions that results depend on.

    Raises:
        UniReasonError: A package is missing, of another version than pyproject.toml asks for, or
            newer than what this kernel loaded; or papermill injected an undeclared parameter.
    """
    from packaging.requirements import Requirement

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    cells = shell.user_ns.get("In", []) if shell else []
    for declared, injected in itertools.pairwise(cells):
        if injected.startswith("# Parameters"):  # papermill only warns, and runs the defaults
            names = [re.findall(r"^(\w+) *(?::.*)?=", text, re.M) for text in (injected, declared)]
            _refuse_unknown(*names, "parameter")
    wrong = []
    for requirement in map(Requirement, metadata.requires("unireason-lab") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"no {requirement.name}")
            continue
        loaded = str(getattr(sys.modules.get(requirement.name), "__version__", installed))
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} (needs {requirement.specifier})")
        elif loaded.split("+")[0] != installed.split("+")[0]:
            wrong.append(f"{requirement.name} {loaded} loaded, {installed} installed")
    if wrong:
        do = "run `make tutorial` or `pip install -r requirements.lock`, and restart the kernel"
        raise UniReasonError("installed packages", "those of pyproject.toml", "; ".join(wrong), do)
    shown = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl")]
    return f"unireason-lab {__version__}, Python {sys.version.split()[0]}, {', '.join(shown)}"


def _refuse_unknown(given: Any, known: Any, subject: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1) or sorted(known)
            raise UniReasonError(subject, "a known one", repr(name), f"perhaps {', '.join(near)}")


def publish(
    name: str, value: Any, unit: str = "", *, interval: tuple | None = None, note: str = ""
) -> None:
    """Show a result, and add it to the table that a run of the notebooks ends with.

    Args:
        name, value, unit: What was measured: a finite number or a short text, in its unit.
        interval: Lower and upper end, in the same unit; left out where an end is not known (nan).
        note: What to know when reading it.
    """
    from IPython.display import display

    interval = None if interval and math.isnan(interval[0] + interval[1]) else interval
    values = [getattr(x, "item", lambda x=x: x)() for x in (value, *(interval or ()))]
    numbers = [x for x in values if not isinstance(x, str)]
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise UniReasonError(f"result {name!r}", "finite numbers or a text", repr(values), "fix it")
    shown = [f"{x:.3g}" if isinstance(x, float) and abs(x) < 1000 else str(x) for x in values]
    text = f"{shown[0]} {unit}".strip() + (f" ({shown[1]} to {shown[2]})" if interval else "")
    row = {"result": name, "value": text, "note": note}
    display({RESULT: row, "text/plain": f"{name}: {text}" + f"  [{note}]" * bool(note)}, raw=True)


def select(names: Any = ()) -> list[Path]:
    """Notebooks by number or name (``["00", "03_grounded_interface"]``), in order; none: all."""
    found = sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    words = " ".join(names or ()).replace(",", " ").split()
    _refuse_unknown(words, {x for p in found for x in (p.stem, p.stem[:2])}, "notebook")
    return [path for path in found if not words or {path.stem, path.stem[:2]} & set(words)]


def execute(path: Path, out: Path, parameters: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Execute one notebook into a file; a row with its seconds, status and error comes back."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    os.environ |= dict.fromkeys(offline if settings.offline else (), "1")
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this interpreter
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # and this copy of the package
    out.parent.mkdir(parents=True, exist_ok=True)
    began, status, error = time.monotonic(), "passed", ""
    how = {"kernel_name": "python3", "start_timeout": 180, "cwd": path.parent}
    how |= {"execution_timeout": settings.cell_timeout, "progress_bar": sys.stderr.isatty()}
    how["extra_arguments"] = ["--IPKernelApp.log_level=50", "--HistoryManager.enabled=False"]
    try:
        papermill.execute_notebook(path, out, parameters, **how)
    except papermill.PapermillExecutionError as failure:
        status, error = "failed", f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}"
    except (CellTimeoutError, DeadKernelError) as failure:
        status, error = "failed", f"{type(failure).__name__}: {failure}"
    seconds, error = time.monotonic() - began, error.split("\n")[0]
    print(f"  {path.stem:<24}{seconds:8.1f} s  {status}  {error}".rstrip(), flush=True)
    return {"notebook": path.stem, "seconds": round(seconds, 1), "status": status, "error": error}


def run(
    names: Any = (),
    profile: str = "laptop",
    parameters: dict | None = None,
    out: str = "runs/tutorial",
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Execute notebooks in order and print what they published; one that fails stops no other.

    Args:
        names: Numbers or names; none: all, those of :data:`TRAINING` in the profile ``smoke``.
        profile: Goes to every notebook as PROFILE.
        parameters: Further parameters, each for the notebooks that declare it.
        out: Folder of the executed notebooks and ``results.json``, within the project.
        workers: Notebooks at a time.

    Raises:
        UniReasonError: An unknown notebook, profile or parameter, before anything runs.
    """
    import pandas as pd
    import papermill

    from unireason_lib.config import load_profile

    paths, out = select(names), project_root() / out
    # plain values: the classes of a profile's sections do not pass to another process
    settings = SimpleNamespace(**load_profile(profile).notebook.model_dump())
    declared = {path: papermill.inspect_notebook(str(path)) for path in paths}
    _refuse_unknown(parameters or (), set().union(*declared.values()), "parameter")
    given = {path: {"PROFILE": profile} for path in paths}
    for path in paths:
        short = not names and path.stem[:2] in TRAINING
        given[path] = {k: v for k, v in (parameters or {}).items() if k in declared[path]}
        given[path]["PROFILE"] = "smoke" if short else profile
    arguments = (
        paths,
        [out / path.name for path in paths],
        given.values(),
        [settings] * len(paths),
    )
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        rows = list((pool or builtins).map(execute, *arguments))
    results = []
    for path in paths:
        outputs = [
            output.get("data", {})
            for cell in _read(out / path.name).cells
            for output in cell.get("outputs", ())
        ]
        if given[path]["PROFILE"] != "smoke":  # smoke figures mean nothing
            found = [data[RESULT] for data in outputs if RESULT in data]
            results += [{"notebook": path.stem, **row} for row in found]
    write_json(out / "results.json", {"profile": profile, "notebooks": rows, "results": results})
    print("\n" + pd.DataFrame(results or rows).to_markdown(index=False))
    print(f"\nExecuted notebooks: {os.path.relpath(out)}")
    return rows


def _read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, 4)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def source_hash(notebook: Any) -> str:
    """SHA-256 of the code cells: prose may change without making outputs stale."""
    return _digest("\0".join(cell.source for cell in _code(notebook)))


def refresh(names: Any = ()) -> bool:
    """Execute notebooks with their own parameters; keep the outputs of those that pass."""
    import nbformat
    import papermill
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    from unireason_lib.config import load_profile

    sync(names)
    failed = 0
    for path in select(names):
        with tempfile.TemporaryDirectory() as folder:
            row = execute(path, Path(folder, path.name), {}, load_profile().notebook)
            notebook, _ = CoalesceStreamsPreprocessor()(_read(Path(folder, path.name)), {})
        if row["status"] != "passed":
            failed += 1
            continue
        profile = papermill.inspect_notebook(str(path))["PROFILE"]["default"].strip("\"'")
        stamp = {"profile": profile, "source": source_hash(notebook), "seconds": row["seconds"]}
        stamp["synced"] = _digest(_script(path))
        notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "unireason": stamp}
        for cell in notebook.cells:
            cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
            for data in (output.get("data", {}) for output in cell.get("outputs", ())):
                for kind in [kind for kind in data if "jupyter.widget" in kind]:
                    del data[kind]
        write_whole(path, nbformat.writes(notebook) + "\n")
    return not failed


def sync(names: Any = ()) -> None:
    """Bring notebooks and paired scripts in step (`jupytext --sync`), from the one that was edited.

    Raises:
        UniReasonError: Both were edited since they were last in step; neither is changed.
    """
    import nbformat
    from jupytext.cli import jupytext

    for path in select(names):
        script, paired = path.with_suffix(".py"), _script(path)
        text = script.read_text(encoding="utf-8") if script.is_file() else paired
        if text != paired:
            last = _read(path).metadata.get("unireason", {}).get("synced")
            edited = [last != _digest(one) for one in (text, paired)]
            if last and all(edited):
                do = "rename one, sync, and take its changes over by hand"
                raise UniReasonError(script, "one of the pair edited", f"{path.name} too", do)
            if last:
                (script if edited[0] else path).touch()  # jupytext takes the newer one
        jupytext(["--quiet", "--sync", str(path)])
        notebook, now = _read(path), _digest(_script(path))
        if notebook.metadata.setdefault("unireason", {}).get("synced") != now:
            notebook.metadata["unireason"]["synced"] = now
            write_whole(path, nbformat.writes(notebook) + "\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _script(path: Path) -> str:
    """The paired script that belongs to a notebook."""
    import jupytext
    from jupytext.config import load_jupytext_configuration_file

    notebook = _read(path)
    load_jupytext_configuration_file(str(path.parent / "jupytext.toml")).set_default_format_options(
        notebook.metadata.setdefault("jupytext", {})
    )
    return jupytext.writes(notebook, "py:percent")


def gate(names: Any = ()) -> list[str]:
    """What keeps committed notebooks from being shown, a sentence each."""
    urls = dict(u.split(", ") for u in metadata.metadata("unireason-lab").get_all("Project-URL"))
    set_up = SET_UP_FILE.read_text(encoding="utf-8").strip()
    set_up = set_up.format(repository=urls["Repository"], version=__version__)
    problems = []
    for path in select(names):
        notebook, text = _read(path), path.read_text(encoding="utf-8")
        code, stamp = _code(notebook), notebook.metadata.get("unireason", {})
        fresh = (stamp.get("profile"), stamp.get("source")) == ("laptop", source_hash(notebook))
        script = path.with_suffix(".py").read_text(encoding="utf-8")
        errors = [o for cell in code for o in cell.outputs if o.output_type == "error"]
        unexecuted = path.stem[:2] in TRAINING and not any(cell.outputs for cell in code)
        fresh = fresh or unexecuted
        ran = unexecuted or all(cell.execution_count for cell in code)
        for problem, found in (
            ("it differs from its paired script: make sync", _script(path) != script),
            (f"its set-up cell is not {SET_UP_FILE.name}", set_up not in [c.source for c in code]),
            ("its outputs are of other code or another profile: make notebooks", not fresh),
            ("a cell failed or did not run", errors or not ran),
            ("it carries widget state", "jupyter.widget" in text),
            ("it shows a path of one machine", MACHINE_PATH.search(text)),
            ("it has more than 3 MB", len(text) > 3e6),
            ("a cell has more than 25 lines", any(c.source.count("\n") > 24 for c in code)),
        ):
            problems += [f"{path.name}: {problem}"] if found else []
    return problems


if __name__ == "__main__":
    action, *wanted = sys.argv[1:] or [""]
    try:
        if action == "gate":
            print("\n".join(found := gate(wanted)) or "notebooks: fresh and in step")
            sys.exit(bool(found))
        elif action in ("sync", "refresh"):
            sys.exit({"sync": sync, "refresh": refresh}[action](wanted) is False)
        sys.exit("usage: python -m unireason_lib.notebooks sync | refresh | gate [00 03 ...]")
    except UniReasonError as error:
        sys.exit(f"error: {error}")
