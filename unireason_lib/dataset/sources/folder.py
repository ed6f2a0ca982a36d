"""A plain folder of scans and label maps: the way to use data of your own.

::

    mine/names.json               {"1": "liver", "2": "liver tumour", "3": null}
    mine/images/anna.nii.gz
    mine/labels/anna.nii.gz       the same name, the same grid, whole numbers

``names.json`` gives every value of the label maps a name (null leaves a value out on purpose; 0 is background). Names
are read as people write them: ``kidney_left``, ``Left Kidney`` and ``Kidney_L`` are all the left kidney. Left and right
are the patient's. It may say more::

    {
      "names": {"1": "liver", "2": "liver tumour"},
      "inside": {"2": 1},                       the tumour is part of the liver: organ boxes hold it
      "modality": "CT",
      "license": "CC BY 4.0",
      "redistributable": true                   the scans may be passed on with a data set made from them
    }

Files may lie otherwise: ``image="*_ct"`` and ``label="*_seg"`` are patterns of paths below the folder without the
suffix, in which ``*`` stands for the name of the case. Scans next to their labels as ``anna_image.nii.gz`` and
``anna_label.nii.gz`` are found without saying so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unireason_lib.dataset.sources.files import (
    NIFTI,
    FileSource,
    bad,
    existing_folder,
    inside,
    read_object,
    structure_name,
    study_of_labels,
    value_names,
)
from unireason_lib.dataset.study import Study

LAYOUTS = (("images/*", "labels/*"), ("*_image", "*_label"))
"""Patterns of scans and label maps that are tried when none are given."""

_FIELDS = ("inside", "modality", "license", "redistributable")


@dataclass(frozen=True, eq=False)
class FolderOfScans(FileSource):
    """NIfTI scans with label maps in one folder (see the module).

    Args:
        path: The folder.
        names: Table of label names, relative to the folder.
        image, label: Patterns of the files' paths, with one ``*`` each.
        patient: Regular expression whose first group is the patient in the name of a case (``"(.+)-visit"``), when one
            person was scanned several times; None takes each case as a person.
        title: Name of the data set; None takes that of the folder.
        modality: Of all scans; None goes by ``names.json``, or says "medical".

    Raises:
        DatasetError: No cases, ill-formed names, or an option that does not fit.
    """

    path: str | Path
    names: str = "names.json"
    image: str | None = None
    label: str | None = None
    patient: str | None = None
    title: str | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        existing_folder(self.path, "scans and label maps")
        if self.modality is None:
            object.__setattr__(self, "modality", str(self._about.get("modality") or "medical"))
        _ = self._names, self._inside, self._pattern
        if not self._cases:
            layouts = " or ".join(f"{image}.nii.gz" for image, _ in self._layouts)
            raise bad(self.path, f"scans like {layouts}", "none", "rename them, or give image= and label=")

    def __len__(self) -> int:
        return len(self._cases)

    @cached_property
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
    def _file(self) -> Path:
        return inside(Path(self.path), self.names, "names")

    @cached_property
    def _table(self) -> dict[str, Any]:
        return read_object(self._file)

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What ``names.json`` says besides the names."""
        if not isinstance(self._table.get("names"), dict):
            return {}
        if unknown := sorted(set(self._table) - {"names", *_FIELDS}):
            raise bad(
                self._file, f"names, {', '.join(_FIELDS)}", ", ".join(unknown), "correct or remove them"
            )
        return {key: self._table[key] for key in _FIELDS if key in self._table}

    @cached_property
    def _names(self) -> dict[int, str | None]:
        table = self._table["names"] if isinstance(self._table.get("names"), dict) else self._table
        names = value_names(table, self._file)
        return {value: name if name is None else structure_name(name) for value, name in names.items()}

    @cached_property
    def _inside(self) -> dict[int, int]:
        said = self._about.get("inside", {})
        try:
            return {int(part): int(around) for part, around in said.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise bad(self._file, 'inside like {"2": 1}', f"{said!r:.80}", "correct it") from error

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        try:
            pattern = re.compile(str(self.patient)) if self.patient else None
        except re.error as error:
            raise bad("patient", "a regular expression", str(error), "correct it") from error
        if pattern is not None and pattern.groups < 1:
            raise bad("patient", "a group (...) around the patient", repr(self.patient), "add it")
        return pattern

    @property
    def _layouts(self) -> tuple[tuple[str, str], ...]:
        if self.image is None and self.label is None:
            return LAYOUTS
        if (
            self.image is None
            or self.label is None
            or self.image.count("*") != 1
            or self.label.count("*") != 1
        ):
            raise bad(
                "image and label", "both, with one * each", f"{self.image}, {self.label}", "correct them"
            )
        return ((self.image, self.label),)

    @cached_property
    def _cases(self) -> list[tuple[str, list[Path], list[Path]]]:
        """(name, its scans, its label maps); more or fewer than one of each is that case's error."""
        for layout in self._layouts:
            scans, labels = ({}, {})
            for pattern, found in zip(layout, (scans, labels), strict=True):
                for case, path in _matches(Path(self.path), pattern):
                    found.setdefault(case, []).append(path)
            if scans:
                return [
                    (case, scans.get(case, []), labels.get(case, [])) for case in sorted({*scans, *labels})
                ]
        return []

    def _study(self, k: int) -> Study:
        case, scans, labels = self._cases[k]
        for what, files in (("scan", scans), ("label map", labels)):
            if len(files) != 1:
                found = ", ".join(path.name for path in files) or "none"
                raise bad(f"{self.name} {case}", f"one {what}", found, "complete or clear up the case")
        ((scan,), (label,)) = scans, labels
        person = self._pattern.match(case) if self._pattern else None
        if self._pattern and (person is None or not person[1]):
            raise bad(case, f"a name that {self.patient!r} fits", "none", "correct the option patient")
        return study_of_labels(
            scan,
            label,
            self._names,
            hosts=self._inside,
            id=f"{self.name}-{case}",
            patient=f"{self.name}-{person[1] if person else case}",
            source=self.name,
            modality=self.modality,
            license=self.license,
            details={"scan": scan.relative_to(self.path).as_posix()},
        )


def _matches(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """(what ``*`` stands for, path) of the NIfTI files of a pattern, by name."""
    folder, _, name = pattern.rpartition("/")
    if "*" in folder:
        raise bad(
            pattern, "the * in the name of the file", "one in a folder", "move the files, or write a source"
        )
    start, end = name.split("*")
    place = inside(root, folder, pattern) if folder else root
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        suffix = next((suffix for suffix in NIFTI if path.name.endswith(suffix)), None)
        stem = path.name.removesuffix(suffix) if suffix else ""
        if (
            stem.startswith(start)
            and stem.endswith(end)
            and len(stem) > len(start) + len(end)
            and stem[0] != "."
        ):
            yield stem[len(start) : len(stem) - len(end)], path
