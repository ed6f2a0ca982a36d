"""TotalSegmentator's data set, and scans that its program has segmented.

::

    s0011/ct.nii.gz                              or mri.nii.gz
    s0011/segmentations/kidney_left.nii.gz       one file for each of 117 structures, may be empty
    s0011/segmentations.nii.gz                   or (--ml) one label map; names in its header, or in
    labels.json                                  a table {"1": "spleen"}: names=labels.json
    meta.csv                                     image_id;age;gender;...;split;... (and a BOM)

The numbering differs between versions, so names are never guessed. What a scan does not reach has
an empty mask: absent from the image, not from the patient."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from unireason_lib.dataset.sources.base import (
    Case,
    names_table,
    structure_name,
    value_names,
    well_formed,
)
from unireason_lib.dataset.sources.nifti import NiftiSource
from unireason_lib.dataset.study import Study, space_of
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import check_same_grid, load_volume
from unireason_lib.io import read_json

META = ("age", "gender", "study_type", "pathology", "pathology_location")
"""Columns of ``meta.csv`` that are kept among the details: they are not seen in an image."""

_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*>\s*<!\[CDATA\[(.*?)\]\]>', re.DOTALL)


@dataclass(frozen=True, eq=False)
class TotalSegmentatorSource(NiftiSource):
    """The folders with a scan."""

    path: str | Path
    names: str | None = None  # table of label names below it; None reads each label map's header

    name = registered = "totalsegmentator"
    license = "CC BY 4.0, or CC BY-NC-SA in earlier versions; see where it was downloaded from"
    chooses = frozenset({"names"})

    @cached_property
    def cases(self) -> Mapping[str, Case]:
        """Scans with what ``meta.csv`` says about them, if it is there."""
        cases, meta, path = {}, {}, self.root / "meta.csv"
        with well_formed(path, "a table with image_id, separated by semicolons"):
            if path.exists():
                rows = csv.DictReader(path.read_text("utf-8-sig").splitlines(), delimiter=";")
                meta = {row["image_id"]: row for row in rows}
        for scan in sorted([*self.root.glob("*/ct.nii.gz"), *self.root.glob("*/mri.nii.gz")]):
            folder = scan.parent.name
            key, name, row = f"{folder}/{scan.name}", f"{self.name}-{folder}", meta.get(folder, {})
            split = row.get("split") if row.get("split") in ("train", "val", "test") else None
            outlines = f"{folder}/segmentations"
            outlines += "" if (self.root / outlines).is_dir() else ".nii.gz"
            about = {"modality": "CT" if scan.name[0] == "c" else "MRI", "labels": (outlines,)}
            about["details"] = {column: row[column] for column in META if row.get(column)}
            cases[key] = Case(key, name, split, id=name, **about)
        return cases

    def study(self, key: str) -> Study:
        """One case, from its masks or from its label map."""
        (outlines,), grid = self.case(key).labels, self.grid(key)
        if outlines.endswith(".nii.gz"):
            return super().study(key)

        def masks() -> Iterator[tuple[str, np.ndarray]]:
            for name in sorted(file.name for file in self.file(outlines).glob("[!.]*.nii.gz")):
                volume = load_volume(self.file(f"{outlines}/{name}"))
                check_same_grid(grid, volume)
                yield structure_name(name.removesuffix(".nii.gz")), volume.array

        hosts = names_table(self.name)["hosts"]
        return self.measured(key, Study.from_masks, masks(), hosts=hosts, **space_of(grid))

    def names_of(self, labels: Path) -> tuple[dict[int, str | None], dict[int, int]]:
        """The table ``names``, or what ``TotalSegmentator --ml`` writes behind the NIfTI header."""
        if self.names:
            return value_names(read_json(self.file(self.names)), self.names), {}
        import nibabel as nib

        with well_formed(labels, "a NIfTI file"):
            texts = [e.get_content() for e in nib.load(labels).header.extensions]
        pairs = [pair for text in texts if isinstance(text, bytes) for pair in _LABEL.findall(text)]
        if not pairs:
            do = "give a table of them: names=labels.json"
            raise DatasetError(labels, "label names in the header", "none", do)
        return {int(key): structure_name(name.decode()) for key, name in pairs}, {}
