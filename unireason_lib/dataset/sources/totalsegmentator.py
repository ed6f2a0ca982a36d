"""TotalSegmentator's data set, and scans that its program has segmented: one mask file a structure, or one label map.

::

    s0011/ct.nii.gz                              or mri.nii.gz
    s0011/segmentations/kidney_left.nii.gz       one file for each of 117 structures, empty where it is absent
    meta.csv                                     image_id;age;gender;...;split;...;pathology (semicolons, a BOM)

In the other form, what ``TotalSegmentator --ml`` writes, a case has one label map instead of the folder::

    s0011/segmentations.nii.gz                   values 1, 2, ...; their names in the file's own header,
    labels.json                                  or in a table {"1": "spleen", ...} that is named with ``names=``

The numbering of structures differs between versions of the program, so names are never guessed.

Most outlines are a network's, corrected by people. ``split`` of ``meta.csv`` becomes the study's own split; age, sex
and pathology are kept among its details only: they are not seen in a picture. A scan covers a part of the body, and
what it does not reach has an empty mask: absent from the picture, not from the patient.

Reading 117 masks takes seconds a case. ``labels="liver+spleen"`` reads only those.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from unireason_lib.dataset.sources.files import (
    NIFTI,
    FileSource,
    bad,
    case_name,
    count_lesions,
    existing_folder,
    grid_of,
    inside,
    listed,
    read_object,
    read_volume,
    settle_sides,
    space_of,
    structure_name,
    study_of_labels,
    value_names,
)
from unireason_lib.dataset.study import Study
from unireason_lib.imaging import check_same_grid

SCANS = {"ct": "CT", "mri": "MRI"}
"""File name of the scan -> modality."""

META = ("age", "gender", "study_type", "pathology", "pathology_location")
"""Columns of ``meta.csv`` that are kept among the details."""

_HOSTS = {"kidney_cyst_left": "left kidney", "kidney_cyst_right": "right kidney"}
_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*>\s*<!\[CDATA\[(.*?)\]\]>', re.DOTALL)


@dataclass(frozen=True, eq=False)
class TotalSegmentatorSource(FileSource):
    """Cases of TotalSegmentator (see the module).

    Args:
        path: The folder with ``s0000, s0001, ...``.
        labels: Only these structures, by file name or readable name: ``"liver+kidney_left"`` or a list.
        multilabel: File name of label maps, for cases without a folder ``segmentations``.
        names: Table of label names, relative to ``path``; None reads them from the header of each label map.
        split: Only cases of this split of ``meta.csv``.
        terms: The licence, if it is not that of the published CT set (whose versions have stated different ones).
        redistributable: Set it when those terms let the scans be passed on.

    Raises:
        DatasetError: No cases, or ``meta.csv`` or ``names`` is ill-formed.
    """

    path: str | Path
    labels: str | Sequence[str] | None = None
    multilabel: str = "segmentations.nii.gz"
    names: str | None = None
    split: str | None = None
    terms: str = "CC BY 4.0, or CC BY-NC-SA in earlier versions; see the record that it was downloaded from"
    redistributable: bool = False

    name = "totalsegmentator"

    def __post_init__(self) -> None:
        if not isinstance(self.redistributable, bool):
            raise bad("redistributable", "true or false", repr(self.redistributable), "correct it")
        if not self._cases:
            wanted = f" of the split {self.split}" if self.split else ""
            raise bad(self.path, f"cases{wanted} like s0011/ct.nii.gz", "none", "check the path")
        _ = self._table, self._meta

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def license(self) -> str:
        """The terms."""
        return self.terms

    @cached_property
    def modality(self) -> str:
        """``"CT"``, ``"MRI"`` or ``"mixed"``, by the file names."""
        found = {
            modality for name, modality in SCANS.items() if any(_named(case, name) for case in self._cases)
        }
        return found.pop() if len(found) == 1 else "mixed"

    @cached_property
    def _cases(self) -> list[Path]:
        root = existing_folder(self.path, "TotalSegmentator")
        folders = sorted(
            folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")
        )
        return [
            folder
            for folder in folders
            if (self.split is None or self._meta.get(folder.name, {}).get("split") == self.split)
            and (
                (folder / "segmentations").is_dir()
                or (folder / self.multilabel).is_file()
                or any(_named(folder, name) for name in SCANS)
            )
        ]

    @cached_property
    def _meta(self) -> dict[str, dict[str, str]]:
        """Case -> its row of ``meta.csv``; empty without that file."""
        path = Path(self.path) / "meta.csv"
        if not path.exists():
            return {}
        try:
            with path.open(newline="", encoding="utf-8-sig") as lines:
                rows = list(csv.DictReader(lines, delimiter=";"))
        except (OSError, ValueError, csv.Error) as error:
            raise bad(
                path, "a table separated by semicolons", str(error)[:120], "download it again"
            ) from error
        if not rows or not rows[0].get("image_id"):
            raise bad(
                path, "a column image_id, separated by semicolons", "another table", "download it again"
            )
        return {row["image_id"]: {key: value for key, value in row.items() if key and value} for row in rows}

    @cached_property
    def _table(self) -> dict[int, str | None] | None:
        if self.names is None:
            return None
        path = inside(Path(self.path), self.names, "names")
        return value_names(read_object(path), path)

    @cached_property
    def _wanted(self) -> frozenset[str] | None:
        """Readable names of the chosen structures."""
        chosen = listed(self.labels)
        return None if chosen is None else frozenset(map(structure_name, chosen))

    def _study(self, k: int) -> Study:
        case = self._cases[k]
        scans = [(path, modality) for name, modality in SCANS.items() if (path := _named(case, name))]
        if len(scans) != 1:
            raise bad(
                case,
                "one scan, ct.nii.gz or mri.nii.gz",
                f"{len(scans)} scans",
                "complete or remove the case",
            )
        ((scan, modality),) = scans
        meta = self._meta.get(case.name, {})
        about = {
            "id": f"{self.name}-{case.name}",
            "patient": f"{self.name}-{case.name}",
            "source": self.name,
            "modality": modality,
            "license": self.license,
            "split": meta["split"] if meta.get("split") in ("train", "val", "test") else None,
            "details": {
                "scan": scan.relative_to(self.path).as_posix(),
                **{key: meta[key] for key in META if key in meta},
            },
        }
        if (case / "segmentations").is_dir():
            return self._from_masks(case, scan, about)
        labels = case / self.multilabel
        names = self._table or _names_in_header(labels)
        names = {value: name if name is None else structure_name(name) for value, name in names.items()}
        if self._wanted is not None:
            self._check_wanted(labels, names.values())
            names = {value: name if name in self._wanted else None for value, name in names.items()}
        return study_of_labels(scan, labels, names, **about)

    def _from_masks(self, case: Path, scan: Path, about: Mapping[str, Any]) -> Study:
        files = sorted(
            path for path in (case / "segmentations").iterdir()
            if path.name.endswith(NIFTI) and not path.name.startswith(".")
        )  # fmt: skip
        files = [(structure_name(case_name(path)), path) for path in files]
        if self._wanted is not None:
            self._check_wanted(case / "segmentations", [name for name, _ in files])
            files = [(name, path) for name, path in files if name in self._wanted]
        grid, known = grid_of(scan)

        def masks() -> Iterator[tuple[str, np.ndarray]]:
            for name, path in files:
                mask = read_volume(path)
                check_same_grid(grid, mask)
                yield name, mask.array

        hosts = {
            number: {"host": _HOSTS[case_name(path)]}
            for number, (_, path) in enumerate(files, start=1)
            if case_name(path) in _HOSTS
        }
        study = Study.from_masks(
            masks(), scan=partial(read_volume, scan), attributes=hosts, **space_of(grid, known), **about
        )
        return settle_sides(count_lesions(study, study.labels))

    def _check_wanted(self, where: Path, found: Sequence[str | None]) -> None:
        if missing := sorted(self._wanted - set(found)):
            raise bad(
                where, "all structures that were asked for", f"no {', '.join(missing)}", "correct labels"
            )


def _named(folder: Path, name: str) -> Path | None:
    """``<name>.nii.gz`` or ``<name>.nii`` in a folder."""
    return next((folder / f"{name}{end}" for end in NIFTI if (folder / f"{name}{end}").is_file()), None)


def _names_in_header(path: Path) -> dict[int, str | None]:
    """The label table that ``TotalSegmentator --ml`` writes behind the NIfTI header.

    Raises:
        ScanError: No NIfTI file.
        DatasetError: No such table.
    """
    grid_of(path)  # for its errors
    import nibabel as nib

    texts = [extension.get_content() for extension in nib.load(path).header.extensions]
    found = [pair for text in texts if isinstance(text, bytes) for pair in _LABEL.findall(text)]
    if not found:
        raise bad(path, "label names in the header", "none", "give a table of them: names=labels.json")
    return {int(key): name.decode("utf-8", "replace") for key, name in found}
