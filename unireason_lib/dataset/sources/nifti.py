"""NIfTI scans with label maps on the same grid, in the three layouts of ``LAYOUTS.md``.

To make a study, of the scan only the header is read. Some decathlon headers are reported to say
R-A-S where the anatomy lies L-P-S (MONAI model-zoo issue 766): ``flip="xy"`` puts them right.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from unireason_lib.dataset.sources import base
from unireason_lib.dataset.sources.base import Entry, names_table, value_names, well_formed
from unireason_lib.dataset.splits import SPLITS
from unireason_lib.dataset.study import Study, space_of
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import Volume, check_same_grid, load_volume, nifti_grid, orient
from unireason_lib.io import read_json

_FREE = re.compile(r"CC[- ]?(0|BY([- ]SA)?)([- ]?\d\.\d)?", re.IGNORECASE)

Names = tuple[dict[int, str | None], dict[int, int]]  # value -> name, value of lesion -> of organ


class NiftiSource(base.FileSource):
    """A source of NIfTI scans; subclasses say where cases are and what label values mean."""

    meaning: Names  # of the values of label maps (None: left out)
    flip: str = ""  # world axes along which headers are wrong; "xy": L-P-S written as R-A-S

    def scan(self, key: str) -> Volume:
        return self._turned(load_volume(self.scan_file(key), frame=self.case(key).frame))

    def study(self, key: str) -> Study:
        names, inside = self.meaning
        labels = load_volume(self.file(self.case(key).labels[0]))
        grid = nifti_grid(self.scan_file(key))
        check_same_grid(grid, labels)
        grid = replace(grid, sides_certain=grid.sides_certain and labels.sides_certain)
        about = {"inside": inside, **space_of(grid)}
        about["hosts"] = {names[part]: names[organ] for part, organ in inside.items()}
        return self.measured(key, Study.from_labels, self._turned(labels), names, **about)

    def _turned(self, volume: Volume) -> Volume:
        signs = np.diag([-1.0 if axis in self.flip else 1.0 for axis in "xyz"] + [1.0])
        about = {"sides_certain": volume.sides_certain, "scaling": volume.scaling}
        return orient(volume.array.T, signs @ volume.affine, volume.source, **about)


@dataclass(eq=False)
class DecathlonSource(NiftiSource):
    """The labelled cases of one task of the Medical Segmentation Decathlon. Each channel of a 4D
    scan (BRATS: FLAIR, T1w, t1gd, T2w) is a study of its own, all of one patient."""

    path: str | Path
    flip: str = ""
    title: str | None = None

    registered = "decathlon"

    def __post_init__(self) -> None:
        if not set(self.flip) <= set("xyz"):
            raise DatasetError("flip", "letters of x, y, z", repr(self.flip), "correct it")
        about = self.about = read_json(self.root / "dataset.json")
        self.license = str(about.get("licence") or about.get("license") or "not stated")
        self.redistributable = _FREE.fullmatch(self.license.strip()) is not None
        self.task = str(about.get("name") or self.root.resolve().name)
        table, task = names_table(self.registered), re.sub("task|[^a-z]", "", self.task.lower())
        known = table["names"].get(task, {})
        names = value_names(about.get("labels"), self.root / "dataset.json", known)
        self.meaning = names, base.parts_of(names, table["hosts"].get(task, {}))
        super().__post_init__()

    @cached_property
    def cases(self) -> Mapping[str, Entry]:
        cases, path = {}, self.root / "dataset.json"
        with well_formed(path, 'modality like {"0": "CT"}, training: list of image and label'):
            table = self.about["modality"]
            channels = [str(table[str(k)]) for k in range(len(table) or 1)]
            pairs = [(entry["image"], entry["label"]) for entry in self.about["training"]]
            scans = [(PurePosixPath(scan).as_posix(), label) for scan, label in pairs]
        for scan, label in scans:
            case = scan.removeprefix("imagesTr/").removesuffix(".gz").removesuffix(".nii")
            patient = f"{self.name}-{self.task}-{case}"
            for k, channel in enumerate(channels):
                # all other channels of the decathlon (FLAIR, T2, ADC, MRI) are MRI
                modality = "CT" if channel.upper().startswith("CT") else "MRI"
                one = Entry(scan, patient, id=patient, modality=modality, labels=(label,))
                if len(channels) > 1:
                    one = replace(one, key=f"{scan}#{k}", id=f"{patient}-{channel}", frame=k)
                cases[one.key] = one
        return cases


@dataclass(frozen=True, eq=False)
class TotalSegmentatorSource(NiftiSource):
    """TotalSegmentator's data set, and scans that its program has segmented. The numbering differs
    between versions, so names are never guessed."""

    path: str | Path
    names: str | None = None  # table of label names below it, for label maps
    title: str | None = None

    registered = "totalsegmentator"
    license = "CC BY 4.0, or CC BY-NC-SA in earlier versions; see where it was downloaded from"
    chooses = frozenset({"names"})

    @cached_property
    def cases(self) -> Mapping[str, Entry]:
        """Scans with the split of ``meta.csv``, if it is there."""
        cases, splits, path = {}, {}, self.root / "meta.csv"
        if path.exists():
            with well_formed(path, "a table with image_id, separated by semicolons"):
                table = pd.read_csv(path, sep=";", dtype=str, encoding="utf-8-sig")
                column = table.set_index("image_id").get("split", pd.Series())
                splits = column[column.isin(SPLITS)].to_dict()
        for scan in sorted([*self.root.glob("*/ct.nii.gz"), *self.root.glob("*/mri.nii.gz")]):
            folder, modality = scan.parent.name, "CT" if scan.name[0] == "c" else "MRI"
            outlines = f"{folder}/segmentations"
            outlines += "" if (self.root / outlines).is_dir() else ".nii.gz"
            key, name = f"{folder}/{scan.name}", f"{self.name}-{folder}"
            about = {"split": splits.get(folder), "modality": modality, "labels": (outlines,)}
            cases[key] = Entry(key, name, id=name, **about)
        return cases

    def study(self, key: str) -> Study:
        (outlines,) = self.case(key).labels
        if outlines.endswith(".nii.gz"):
            return super().study(key)
        grid = nifti_grid(self.scan_file(key))

        def masks() -> Iterator[tuple[str, np.ndarray]]:
            for name in sorted(file.name for file in self.file(outlines).glob("[!.]*.nii.gz")):
                volume = load_volume(self.file(f"{outlines}/{name}"))
                check_same_grid(grid, volume)
                yield base.structure_name(name.removesuffix(".nii.gz")), volume.array

        hosts = names_table(self.registered)["hosts"]
        return self.measured(key, Study.from_masks, masks(), hosts=hosts, **space_of(grid))

    @property
    def about(self) -> Names | None:
        return self.names and self.meaning

    @cached_property
    def meaning(self) -> Names:
        if self.names is None:
            do = "give names=labels.json"
            raise DatasetError(self.name, "a table of label names for label maps", "none", do)
        return value_names(read_json(self.file(self.names)), self.names), {}


@dataclass(eq=False)
class FolderOfScans(NiftiSource):
    """Scans and label maps of one's own. ``names.json`` names every value of the label maps (null
    leaves one out), or says more: ``{"names": {...}, "inside": {"2": 1}, "modality": "CT",
    "license": "CC BY 4.0", "redistributable": true}``; 2 is then a part of 1."""

    path: str | Path
    patient: str = "(.+)"  # regular expression: its first group is the patient in a file's name
    title: str | None = None  # of the data set; None: the folder's name

    registered = "folder"
    chooses = frozenset({"patient"})

    def __post_init__(self) -> None:
        if not (self.root / "names.json").is_file():
            do = 'write the names of the label values into it: {"1": "liver", "2": "liver lesion"}'
            raise DatasetError(self.root, "a folder with names.json", "none", do)
        table = read_json(self.root / "names.json")
        about = self.about = table if isinstance(table.get("names"), dict) else {"names": table}
        self.license = str(about.get("license") or "not stated in names.json")
        self.redistributable = about.get("redistributable") is True
        with well_formed("names.json", 'inside like {"2": 1}'):
            inside = {int(p): int(around) for p, around in about.get("inside", {}).items()}
        self.meaning = value_names(about["names"], "names.json"), inside
        if unknown := {*inside, *inside.values()} - {*self.meaning[0]}:
            expected, found = "labels that have a name", f"{sorted(unknown)} in inside"
            raise DatasetError("names.json", expected, found, "name them, or correct inside")
        super().__post_init__()

    @property
    def name(self) -> str:
        return str(self.title or self.root.resolve().name)

    @cached_property
    def cases(self) -> Mapping[str, Entry]:
        """Scans by path; one without a label map is an error of its own."""
        cases, modality = {}, str(self.about.get("modality") or "medical")
        for path in sorted(self.root.glob("images/[!.]*.nii*")):
            case = path.name.removesuffix(".gz").removesuffix(".nii")
            with well_formed("patient", f"a regular expression with a group that fits {case}"):
                who = re.match(self.patient, case)[1]
            plain = f"labels/{case}.nii"
            label = plain if (self.root / plain).exists() else f"{plain}.gz"
            key, name = f"images/{path.name}", f"{self.name}-{case}"
            # a pattern of one's own says who it is, in several folders too
            patient = name if self.patient == type(self).patient else f"patient-{who}"
            cases[key] = Entry(key, patient, id=name, modality=modality, labels=(label,))
        return cases
