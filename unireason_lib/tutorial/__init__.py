"""The notebooks as a product: run them all, keep them fresh, collect what they found.

Readers see executed notebooks, reviewers read their text twins, ``make tutorial`` runs them with papermill. This room
holds what that takes, so that a notebook itself needs no more than::

    from unireason_lib.tutorial import check_versions, project_root, publish

``check_versions()`` stands in each set-up cell, ``project_root()`` finds ``data/`` and ``runs/`` from wherever
the kernel works, and ``publish(name, value)`` adds a row to the table that the tutorial ends with.

Modules: ``project`` (the checkout and its versions), ``opening`` (badge and set-up cell), ``document`` (one
notebook as a document), ``pair`` (text twins), ``execution`` (one notebook in a kernel), ``results`` (published
rows), ``runner`` (all of them), ``refresh`` (re-execute what is committed), ``gate`` (what may be committed).
"""

from unireason_lib.tutorial.project import check_versions, project_root
from unireason_lib.tutorial.results import publish

__all__ = ["check_versions", "project_root", "publish"]
