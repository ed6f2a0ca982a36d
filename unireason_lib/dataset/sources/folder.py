"""A plain folder of scans and label maps: the way to use data of your own.

::

    mine/names.json               {"1": "liver", "2": "liver tumour", "3": null}
    mine/images/anna.nii.gz
    mine/labels/anna.nii.gz       the same name, the same grid, whole numbers

``names.json`` names every value of the label maps (null leaves one out; 0 is the background):
``kidney_left``, ``Left Kidney`` and ``Kidney_L`` are all the patient's left kidney. More can be
said as ``{"names": {...}, "inside": {"2": 1}, "modality": "CT", "license": "CC BY 4.0",
"redistributable": true}``: 2 is part of 1, and scans may be passed on with a set made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unireason_lib.dataset.sources.base import Case, value_names, well_formed
from unireason_lib.dataset.sources.nifti import NiftiSource
from unireason_lib.io import read_json


@dataclass(frozen=True, eq=False)
class FolderOfScans(NiftiSource):
    """NIfTI scans with label maps in one folder."""

    path: str | Path
    names: str = "names.json"  # table of label names below the folder
    image: str = "images/*"  # paths of scans, with one * for the name of the case
    label: str = "labels/*"  # and of label maps
    patient: str = "(.+)"  # regular expression: its first group is the patient in that name
    title: str | None = None  # of the data set; None: the folder's name. Two folders need two
    modality: str | None = None  # of all scans; None goes by names.json, or says "medical"

    registered = "folder"
    chooses = frozenset({"patient", "modality"})

    def __post_init__(self) -> None:
        modality = self.modality or str(self._about.get("modality") or "medical")
        object.__setattr__(self, "modality", modality)
        super().__post_init__()
        self.names_of()

    @property
    def name(self) -> str:
        """Of the data set."""
        return str(self.title or Path(self.path).resolve().name)

    @property
    def license(self) -> str:
        """As ``names.json`` states it."""
        return str(self._about.get("license") or "not stated in names.json")

    @property
    def redistributable(self) -> bool:
        """As ``names.json`` states it."""
        return self._about.get("redistributable") is True

    @cached_property
    def _about(self) -> dict[str, Any]:
        table = read_json(self.file(self.names))
        return table if isinstance(table.get("names"), dict) else {"names": table}

    def names_of(self, labels: Path | None = None) -> tuple[dict[int, str | None], dict[int, int]]:
        """Those of ``names.json``."""
        with well_formed(self.names, 'inside like {"2": 1}'):
            inside = {int(p): int(around) for p, around in self._about.get("inside", {}).items()}
            return value_names(self._about["names"], self.names), inside

    @cached_property
    def cases(self) -> Mapping[str, Case]:
        """Scans by path; one without a label map is an error of its own."""
        cases, labels = {}, self._files(self.label)
        for case, scan in self._files(self.image).items():
            with well_formed("patient", f"a regular expression with a group that fits {case}"):
                patient = f"{self.name}-{re.match(self.patient, case)[1]}"
            label = labels.get(case, self.label.replace("*", f"{case}.nii.gz"))
            about = {"id": f"{self.name}-{case}", "modality": self.modality, "labels": (label,)}
            cases[scan] = Case(scan, patient, **about)
        return cases

    def _files(self, pattern: str) -> dict[str, str]:
        """What ``*`` stands for -> path of the NIfTI file."""
        self.file(pattern)  # is inside
        start, _, end = pattern.rpartition("*")
        paths = sorted(self.root.glob(f"{start}*{end}.nii*"))
        paths = [path.relative_to(self.root).as_posix() for path in paths if path.name[0] != "."]
        matches = ((re.fullmatch(r"(.+?)\.nii(\.gz)?", path), path) for path in paths)
        return {m[1][len(start) : len(m[1]) - len(end)]: path for m, path in matches if m}
