"""Re-execute the committed notebooks, so that readers see outputs of the code beside them.

A notebook is executed with the parameters it declares (profile ``laptop``), cleaned, and stamped with profile,
parameters, hashes of source and outputs, and the time it took. One that fails stays as it was.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unireason_lib.errors import UniReasonError
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial.document import (
    STAMP,
    clean,
    outputs_hash,
    parameters_of,
    read_notebook,
    source_hash,
    write_notebook,
    write_whole,
)
from unireason_lib.tutorial.execution import Execution, execute
from unireason_lib.tutorial.gate import COMMITTED_PROFILE
from unireason_lib.tutorial.pair import sync, twin_text


def refresh(path: str | Path, root: str | Path, **options: Any) -> Execution:
    """Bring notebook and twin in step, execute, and replace both if all went well.

    Args:
        path: The notebook.
        root: The project folder, which paths in outputs become relative to.
        options: For :func:`~unireason_lib.tutorial.execution.execute` (``on_cell``).

    Returns:
        The outcome; unless it says ``"passed"`` the committed outputs are untouched.

    Raises:
        UniReasonError: The notebook is ill-formed or declares another profile.
    """
    path = Path(path)
    sync(path, root)
    parameters = parameters_of(path)
    if parameters.get("PROFILE") != COMMITTED_PROFILE:
        found, do = repr(parameters.get("PROFILE")), f'write PROFILE = "{COMMITTED_PROFILE}"'
        raise UniReasonError(path.name, f"profile {COMMITTED_PROFILE!r}", found, do)
    settings = load_profile(COMMITTED_PROFILE).notebook
    execution = execute(path, timeout=settings.cell_timeout, offline=settings.offline, **options)
    if execution.status == "passed":
        stamp(execution.notebook, root, parameters, execution.seconds)
        write_notebook(path, execution.notebook)
        write_whole(path.with_suffix(".py"), twin_text(execution.notebook, path.parent))
    return execution


def stamp(notebook: Any, root: str | Path, parameters: dict[str, Any], seconds: float) -> None:
    """Clean an executed notebook and record, in place, how its outputs were made.

    Args:
        notebook: The executed notebook.
        root: The project folder.
        parameters: Those it ran with, ``PROFILE`` among them.
        seconds: How long it took.
    """
    clean(notebook, root)
    notebook.metadata[STAMP] = {
        "profile": parameters["PROFILE"],
        "parameters": parameters,
        "source_sha256": source_hash(notebook),
        "outputs_sha256": outputs_hash(notebook),
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
    }


def is_stale(path: str | Path) -> bool:
    """Whether the outputs of a notebook belong to other code than it has now, its twin's edits included."""
    from unireason_lib.tutorial.pair import twin_differences

    notebook = read_notebook(path)
    recorded = notebook.metadata.get(STAMP, {})
    hashes = (recorded.get("source_sha256"), recorded.get("outputs_sha256"))
    return hashes != (source_hash(notebook), outputs_hash(notebook)) or bool(twin_differences(path))
