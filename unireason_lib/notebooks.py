"""Run the notebooks, keep their outputs fresh, and keep them in step with their paired scripts.

papermill executes, jupytext pairs. Ours are a status line per notebook, the table of published
results, the check that committed outputs belong to the committed code, and the set-up cell.

    python -m unireason_lib.notebooks sync | refresh | gate [00 03 ...]
"""

import hashlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat

from unireason_lib import __version__
from unireason_lib.config import load_profile, near
from unireason_lib.errors import UniReasonError
from unireason_lib.io import write_json, write_whole

RESULT = "application/vnd.unireason.result+json"
TRAINING = ("04", "05")
"""Notebooks that train for long: in a run of all notebooks they run as ``smoke``, and they may be
committed without outputs until somebody trains (never with outputs of other code)."""
MACHINE_PATH = re.compile(r"(?<![\w.~/<])/(?:home|Users|root|tmp|private|mnt|work)/[\w.-]+")
SET_UP_FILE = Path(__file__).parent / "configs" / "setup_cell.txt"
ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this interpreter
    "PYTHONPATH": str(Path(__file__).parents[1]),  # and this copy of the package
}
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")


def project_root() -> Path:
    """The checkout at or above this folder, else that of this package; it holds ``data/``."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks" / "jupytext.toml").is_file():
            return folder
    do = "work inside the cloned repository"
    raise UniReasonError("project folder", "a checkout", "none", do)


def short_hash(*parts: Any) -> str:
    """Eight digits that change when anything in the parts (of JSON) does: names of runs."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def check_versions() -> str:
    """One line with the versions that results depend on. A :class:`UniReasonError` for a package
    that is missing, not as pyproject.toml asks, or newer than what this kernel loaded, and for a
    parameter that papermill injected and nobody declared."""
    from packaging.requirements import Requirement

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    for declared, injected in itertools.pairwise(shell.user_ns.get("In", []) if shell else []):
        if injected.startswith("# Parameters"):  # papermill only warns, and runs the defaults
            names = [re.findall(r"^(\w+) *(?::.*)?=", text, re.M) for text in (injected, declared)]
            _refuse_unknown(*names, "parameter")
    wrong = []
    for needed in map(Requirement, metadata.requires("unireason-lab") or ()):
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        found = next((one.version for one in metadata.distributions(name=needed.name)), "nothing")
        loaded = getattr(sys.modules.get(needed.name), "__version__", found)
        if found == "nothing" or not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed}: {found} installed")
        elif loaded.split("+")[0] != found.split("+")[0]:
            wrong.append(f"{needed.name} {loaded} loaded, {found} installed")
    if wrong:
        do = "run `make tutorial` or `pip install -r requirements.lock`, and restart the kernel"
        raise UniReasonError("installed packages", "those of pyproject.toml", "; ".join(wrong), do)
    shown = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl")]
    return f"unireason-lab {__version__}, Python {sys.version.split()[0]}, {', '.join(shown)}"


def _refuse_unknown(given: Any, known: Any, subject: str) -> None:
    for name in set(given) - set(known):
        raise UniReasonError(subject, "a known one", repr(name), near(name, sorted(known)))


def publish(
    name: str, value: Any, unit: str = "", *, interval: tuple | None = None, note: str = ""
) -> None:
    """Show a result (a finite number or a short text), and add it to the table that a run of the
    notebooks ends with; an interval whose ends are not known (nan) is left out."""
    from IPython.display import display

    ends = () if interval is None or math.isnan(sum(interval)) else interval
    values = [getattr(x, "item", lambda x=x: x)() for x in (value, *ends)]
    for x in values:
        if not isinstance(x, str) and not (isinstance(x, int | float) and math.isfinite(x)):
            raise UniReasonError(f"result {name!r}", "finite numbers or a text", repr(x), "fix it")
    shown = [f"{x:.3g}" if isinstance(x, float) and abs(x) < 1000 else str(x) for x in values]
    text = f"{shown[0]} {unit}".strip() + (f" ({shown[1]} to {shown[2]})" if ends else "")
    row = {"result": name, "value": text, "note": note}
    display({RESULT: row, "text/plain": f"{name}: {text}" + f"  [{note}]" * bool(note)}, raw=True)


def select(names: Any = ()) -> list[Path]:
    """Notebooks by number or name (``["00", "03_grounded_interface"]``), in order; none: all."""
    found = sorted((project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    words = " ".join(names or ()).replace(",", " ").split()
    _refuse_unknown(words, {x for p in found for x in (p.stem, p.stem[:2])}, "notebook")
    return [path for path in found if not words or {path.stem, path.stem[:2]} & set(words)]


def execute(path: Path, out: Path, parameters: dict[str, Any], profile: Any) -> dict[str, Any]:
    """Execute one notebook into a file; a row with its seconds, status and error comes back. The
    profile says how long a cell may take, and whether anything may be downloaded."""
    import papermill
    from nbclient.exceptions import CellTimeoutError

    out.parent.mkdir(parents=True, exist_ok=True)
    began, error = time.monotonic(), ""
    how = {"kernel_name": "python3", "start_timeout": 180, "cwd": path.parent}
    how |= {"execution_timeout": profile.notebook.cell_timeout, "progress_bar": sys.stderr.isatty()}
    how["extra_arguments"] = ["--IPKernelApp.log_level=50", "--HistoryManager.enabled=False"]
    for _ in range(3):
        try:
            with patch.dict(
                os.environ, ENVIRONMENT | (OFFLINE if profile.notebook.offline else {})
            ):
                papermill.execute_notebook(path, out, parameters, **how)
            error = ""
        except papermill.PapermillExecutionError as failure:
            error = f"cell {failure.exec_count}: {failure.ename}: {failure.evalue}".split("\n")[0]
        except (CellTimeoutError, RuntimeError) as failure:  # also a kernel that died
            error = f"{type(failure).__name__}: {failure}".split("\n")[0]
        # kernels that start at one time may be given one port: nothing has run in the loser
        if "before replying to kernel_info" not in error:
            break
    seconds, status = round(time.monotonic() - began, 1), "failed" if error else "passed"
    print(f"  {path.stem:<24}{seconds:8.1f} s  {status}  {error}".rstrip(), flush=True)
    return {"notebook": path.stem, "seconds": seconds, "status": status, "error": error}


def run(
    names: Any = (),
    profile: str = "laptop",
    parameters: dict | None = None,
    out: str | Path = "runs/tutorial",
    workers: int = 1,
) -> list[dict[str, Any]]:
    """Execute notebooks (by default all, those of :data:`TRAINING` as ``smoke``), ``workers`` at a
    time, and print what they published; one that fails stops no other. ``parameters`` go to the
    notebooks that declare them; ``out``, a folder of the project, gets the executed notebooks and
    ``results.json``. Unknown names are a :class:`UniReasonError` before anything runs."""
    import pandas as pd
    import papermill

    paths, out, settings = select(names), project_root() / out, load_profile(profile)
    declared = {path: papermill.inspect_notebook(str(path)) for path in paths}
    _refuse_unknown(parameters or (), set().union(*declared.values()), "parameter")
    jobs = {}
    for path in paths:
        own = {k: v for k, v in (parameters or {}).items() if k in declared[path]}
        short = not names and path.stem[:2] in TRAINING
        jobs[path] = {"PROFILE": "smoke" if short else profile} | own
    # the slow ones first, by what they took when their outputs were made
    order = sorted(paths, key=lambda p: -_stamp(p).get("seconds", 0) * (workers > 1))
    with ProcessPoolExecutor(workers) as pool:
        begun = {p: pool.submit(execute, p, out / p.name, jobs[p], settings) for p in order}
        rows = [begun[path].result() for path in paths]
    results = []
    for path in (path for path in paths if jobs[path]["PROFILE"] != "smoke"):
        cells = nbformat.read(out / path.name, 4).cells  # smoke figures mean nothing
        data = [o.get("data", {}) for cell in cells for o in cell.get("outputs", ())]
        results += [{"notebook": path.stem, **one[RESULT]} for one in data if RESULT in one]
    write_json(out / "results.json", {"profile": profile, "notebooks": rows, "results": results})
    print("\n" + pd.DataFrame(results or rows).to_markdown(index=False))
    print(f"\nExecuted notebooks: {os.path.relpath(out)}")
    return rows


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def source_hash(notebook: Any) -> str:
    """SHA-256 of the code cells: prose may change without making outputs stale."""
    return _digest("\0".join(cell.source for cell in _code(notebook)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> dict[str, Any]:
    """What a notebook says of how it was made: profile, seconds, and what it was synced with."""
    return nbformat.read(path, 4).metadata.get("unireason", {})


def _script(path: Path) -> str:
    """The paired script that belongs to a notebook."""
    import jupytext
    from jupytext.config import load_jupytext_configuration_file

    notebook = nbformat.read(path, 4)
    pairing = load_jupytext_configuration_file(str(path.parent / "jupytext.toml"))
    pairing.set_default_format_options(notebook.metadata.setdefault("jupytext", {}))
    return jupytext.writes(notebook, "py:percent")


def refresh(names: Any = ()) -> list[str]:
    """Execute notebooks with their own parameters; keep the outputs of those that pass, and return
    the names of the others."""
    import papermill
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    sync(names)
    failed = []
    for path in select(names):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, path.name)
            row = execute(path, out, {}, load_profile())
            notebook = nbformat.read(out, 4)
        if row["status"] != "passed":
            failed.append(f"{path.name} failed")
            continue
        notebook, _ = CoalesceStreamsPreprocessor()(notebook, {})
        for cell in notebook.cells:
            cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
            for output in cell.get("outputs", ()):
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        profile = papermill.inspect_notebook(str(path))["PROFILE"]["default"].strip("\"'")
        stamp = {"profile": profile, "source": source_hash(notebook), "seconds": row["seconds"]}
        stamp["synced"] = _digest(_script(path))
        notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "unireason": stamp}
        write_whole(path, nbformat.writes(notebook) + "\n")
    return failed


def sync(names: Any = ()) -> None:
    """Bring notebooks and paired scripts in step (`jupytext --sync`), from the one that was edited;
    a :class:`UniReasonError`, and neither is changed, when both were, or nobody noted which."""
    from jupytext.cli import jupytext

    for path in select(names):
        script, paired = path.with_suffix(".py"), _script(path)
        text = script.read_text(encoding="utf-8") if script.is_file() else paired
        last = _stamp(path).get("synced")
        if text != paired:
            contents = {script: text, path: paired}
            edited = [one for one, content in contents.items() if _digest(content) != last]
            if len(edited) == 2:
                do = "rename one, sync, and take its changes over by hand"
                raise UniReasonError(script, "one of the pair edited", f"{path.name} too", do)
            edited[0].touch()  # jupytext takes the newer one
        jupytext(["--quiet", "--sync", str(path)])
        notebook, now = nbformat.read(path, 4), _digest(_script(path))
        if notebook.metadata.setdefault("unireason", {}).get("synced") != now:
            notebook.metadata["unireason"]["synced"] = now
            write_whole(path, nbformat.writes(notebook) + "\n")


def gate(names: Any = ()) -> list[str]:
    """What keeps committed notebooks from being shown, a sentence each."""
    urls = dict(u.split(", ") for u in metadata.metadata("unireason-lab").get_all("Project-URL"))
    set_up = SET_UP_FILE.read_text(encoding="utf-8").strip()
    set_up = set_up.format(repository=urls["Repository"], version=__version__)
    problems = []
    for path in select(names):
        notebook, text = nbformat.read(path, 4), path.read_text(encoding="utf-8")
        code, stamp = _code(notebook), notebook.metadata.get("unireason", {})
        unexecuted = path.stem[:2] in TRAINING and not any(cell.outputs for cell in code)
        fresh = (stamp.get("profile"), stamp.get("source")) == ("laptop", source_hash(notebook))
        errors = [o for cell in code for o in cell.outputs if o.output_type == "error"]
        ran = unexecuted or all(cell.execution_count for cell in code)
        script = path.with_suffix(".py").read_text(encoding="utf-8")
        for problem, found in {
            "it differs from its paired script: make sync": _script(path) != script,
            f"its set-up cell is not {SET_UP_FILE.name}": set_up not in [c.source for c in code],
            "its outputs are of other code or profile: make notebooks": not (fresh or unexecuted),
            "a cell failed or did not run": errors or not ran,
            "it carries widget state": "jupyter.widget" in text,
            "it shows a path of one machine": MACHINE_PATH.search(text),
            "it has more than 3 MB": len(text) > 3e6,
            "a cell has more than 25 lines": any(c.source.count("\n") > 24 for c in code),
        }.items():
            problems += [f"{path.name}: {problem}"] if found else []
    return problems


if __name__ == "__main__":
    action, *wanted = sys.argv[1:] or [""]
    try:
        if action not in ("sync", "refresh", "gate"):
            sys.exit("usage: python -m unireason_lib.notebooks sync | refresh | gate [00 03 ...]")
        found = {"sync": sync, "refresh": refresh, "gate": gate}[action](wanted)
        sys.exit("\n".join(found or ()) or 0)
    except UniReasonError as error:
        sys.exit(f"error: {error}")
