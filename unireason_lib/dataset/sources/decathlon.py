"""Medical Segmentation Decathlon: ten tasks, each a folder of NIfTI scans with label maps.

::

    Task03_Liver/dataset.json            licence, modality per channel, label names, training cases
    Task03_Liver/imagesTr/liver_0.nii.gz, labelsTr/liver_0.nii.gz

Each chosen channel of a 4D scan (BRATS: FLAIR, T1w, t1gd, T2w) is a study of its own, all of one
patient. Some headers are reported to say R-A-S where the anatomy lies L-P-S (MONAI model-zoo issue
766): look at a few scans; ``flip="xy"`` puts them right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from unireason_lib.dataset.sources.base import Case, names_table, parts_of, value_names, well_formed
from unireason_lib.dataset.sources.nifti import NiftiSource
from unireason_lib.errors import DatasetError
from unireason_lib.io import read_json

_FREE = re.compile(r"CC[- ]?(0|BY([- ]SA)?)([- ]?\d\.\d)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class DecathlonSource(NiftiSource):
    """The labelled cases of one task; any folder in this layout will do."""

    path: str | Path
    channels: str | int | None = None  # by number or name: "0+3", "FLAIR"; None: all
    flip: str = ""  # world axes ("x", "xy", ...) along which headers are wrong

    name = registered = "decathlon"

    def __post_init__(self) -> None:
        if not set(self.flip) <= set("xyz"):
            raise DatasetError("flip", "letters of x, y, z", repr(self.flip), "correct it")
        super().__post_init__()
        self.names_of()

    @cached_property
    def _about(self) -> dict[str, Any]:
        return read_json(self.root / "dataset.json")

    @property
    def license(self) -> str:
        """As ``dataset.json`` states it."""
        stated = self._about.get("licence") or self._about.get("license")
        return str(stated or "not stated in dataset.json")

    @property
    def redistributable(self) -> bool:
        """Whether that licence is CC BY, CC BY-SA or CC0."""
        return _FREE.fullmatch(self.license.strip()) is not None

    @property
    def _task(self) -> str:
        return str(self._about.get("name") or self.root.resolve().name)

    def names_of(self, labels: Path | None = None) -> tuple[dict[int, str | None], dict[int, int]]:
        """Those of the task."""
        table, task = names_table(self.name), re.sub("task|[^a-z]", "", self._task.lower())
        known = table["names"].get(task, {})
        names = value_names(self._about.get("labels"), self.root / "dataset.json", known)
        return names, parts_of(names, table["hosts"].get(task, {}))

    @cached_property
    def cases(self) -> Mapping[str, Case]:
        """Training cases, once per chosen channel."""
        cases, about, channels = {}, {"task": self._task}, self._channels()
        with well_formed(self.root / "dataset.json", "training: list of image and label"):
            pairs = [(entry["image"], entry["label"]) for entry in self._about["training"]]
            scans = [(PurePosixPath(scan).as_posix(), label) for scan, label in pairs]
        for scan, label in scans:
            case = scan.removeprefix("imagesTr/").removesuffix(".gz").removesuffix(".nii")
            patient = f"{self.name}-{self._task}-{case}"
            for k, channel in channels.items():
                # all other channels of the decathlon (FLAIR, T2, ADC, MRI) are MRI
                modality = "CT" if channel.upper().startswith("CT") else "MRI"
                files = {"id": patient, "modality": modality, "labels": (label,)}
                one = Case(scan, patient, details=about, **files)
                if len(self._about["modality"]) > 1:
                    own = {"key": f"{scan}#{k}", "id": f"{patient}-{channel}", "frame": k}
                    one = replace(one, **own, details={**about, "sequence": channel})
                cases[one.key] = one
        return cases

    def _channels(self) -> dict[int, str]:
        """Number -> name of the chosen channels."""
        with well_formed(self.root / "dataset.json", 'modality like {"0": "CT"}'):
            table = self._about["modality"]
            names = [str(table[str(k)]) for k in range(len(table) or 1)]
        numbers = {text: k for k, name in enumerate(names) for text in (str(k), name.lower())}
        chosen = names if self.channels is None else str(self.channels).split("+")
        with well_formed("channels", f"some of {', '.join(names)}"):
            return {(k := numbers[text.lower()]): names[k] for text in chosen}
