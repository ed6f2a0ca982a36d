"""Medical Segmentation Decathlon: ten tasks, each a folder of NIfTI scans with label maps.

::

    Task03_Liver/dataset.json            name, licence, modality per channel, label names, list of training cases
    Task03_Liver/imagesTr/liver_0.nii.gz
    Task03_Liver/labelsTr/liver_0.nii.gz

Only training cases have labels; ``imagesTs`` is not read. Scans of several channels (BRATS: FLAIR, T1w, t1gd, T2w) are
4D; each chosen channel gives a study of its own, all of one patient.

**Sides.** It has been reported of these files that some headers say R-A-S where the anatomy lies L-P-S (MONAI model-zoo
issue 766, about the spleen task). Headers are believed here, unless the liver or spleen lies on the wrong side by
them: then a study has no directions (see :func:`~unireason_lib.dataset.sources.files.settle_sides`), and nothing is
asked about sides. Look at a few scans of your task; ``flip="xy"`` puts such headers right for the whole folder.

**Tumours.** In the liver and pancreas tasks the tumour's label lies in a hole of the organ's. It is put inside: box,
volume and centroid of the organ are those of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unireason_lib.dataset.sources.files import (
    FileSource,
    bad,
    case_name,
    existing_folder,
    inside,
    listed,
    read_object,
    structure_name,
    study_of_labels,
    value_names,
)
from unireason_lib.dataset.study import Study

NAMES: dict[str, dict[str, str]] = {
    "liver": {"cancer": "liver tumour"},
    "pancreas": {"cancer": "pancreatic tumour"},
    "lung": {"cancer": "lung tumour"},
    "hepaticvessel": {"vessel": "hepatic vessels", "tumour": "liver tumour"},
    "colon": {"colon cancer primaries": "colon tumour"},
    "hippocampus": {"anterior": "anterior hippocampus", "posterior": "posterior hippocampus"},
    "prostate": {"pz": "peripheral zone of the prostate", "tz": "transition zone of the prostate"},
    "brats": {"edema": "brain edema"},
}
"""Task (letters of its name in ``dataset.json``) -> label as written there -> what it is called here. Other labels are
read as written."""

HOSTS: dict[str, dict[str, str]] = {
    "liver": {"liver tumour": "liver"},
    "pancreas": {"pancreatic tumour": "pancreas"},
}
"""Task -> lesion -> the organ of which it is part."""

_FREE = re.compile(r"CC[- ]?(0|BY([- ]SA)?)([- ]?\d\.\d)?", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class DecathlonSource(FileSource):
    """The labelled cases of one task (see the module); any folder in this layout will do.

    Args:
        path: The folder with ``dataset.json``.
        channels: Which channels of scans with several, by number or name: ``"0+3"``, ``"FLAIR"``; None takes all.
        flip: World axes (``"x"``, ``"xy"``, ...) along which headers are wrong.
        hosts: For data sets of your own: value of a lesion -> value of its organ, as a mapping or as ``"2:1+3:1"``.

    Raises:
        DatasetError: ``dataset.json`` is missing or ill-formed, or an option does not fit it.
    """

    path: str | Path
    channels: str | int | Sequence[str | int] | None = None
    flip: str = ""
    hosts: str | Mapping[int, int] | None = None

    name = "decathlon"

    def __post_init__(self) -> None:
        if not set(str(self.flip)) <= set("xyz"):
            raise bad("flip", "letters of x, y, z", repr(self.flip), "correct it")
        _ = self._names, self._hosts, self._chosen, self._cases

    def __len__(self) -> int:
        return len(self._cases) * len(self._chosen)

    @cached_property
    def _file(self) -> Path:
        return existing_folder(self.path, "a task of the decathlon") / "dataset.json"

    @cached_property
    def _about(self) -> dict[str, Any]:
        return read_object(self._file)

    @cached_property
    def license(self) -> str:
        """As ``dataset.json`` states it."""
        said = self._about.get("licence") or self._about.get("license")
        return str(said) if said else "not stated in dataset.json"

    @cached_property
    def redistributable(self) -> bool:
        """Whether that licence is CC BY, CC BY-SA or CC0."""
        return _FREE.fullmatch(self.license.strip()) is not None

    @cached_property
    def modality(self) -> str:
        """``"CT"``, ``"MRI"`` or ``"mixed"``."""
        found = {_modality(self._channels[channel]) for channel in self._chosen}
        return found.pop() if len(found) == 1 else "mixed"

    @cached_property
    def _task(self) -> str:
        return str(self._about.get("name") or self._file.parent.resolve().name)

    @cached_property
    def _key(self) -> str:
        return re.sub("[^a-z]", "", self._task.lower())

    @cached_property
    def _names(self) -> dict[int, str | None]:
        names = value_names(self._about.get("labels"), self._file)
        known = NAMES.get(self._key, {})
        return {
            value: known.get(name.lower(), structure_name(name)) if name else name
            for value, name in names.items()
        }

    @cached_property
    def _hosts(self) -> dict[int, int]:
        if self.hosts is None:
            values = {name: value for value, name in self._names.items()}
            pairs = HOSTS.get(self._key, {}).items()
            return {
                values[part]: values[organ] for part, organ in pairs if part in values and organ in values
            }
        try:
            pairs = (
                (pair.split(":") for pair in listed(self.hosts))
                if isinstance(self.hosts, str)
                else self.hosts.items()
            )
            hosts = {int(part): int(organ) for part, organ in pairs}
        except (AttributeError, TypeError, ValueError) as error:
            raise bad("hosts", "lesion:organ, e.g. 2:1", repr(self.hosts), "correct it") from error
        if unknown := sorted({*hosts, *hosts.values()} - set(self._names)):
            raise bad("hosts", f"values of {sorted(self._names)}", str(unknown), "correct it")
        return hosts

    @cached_property
    def _channels(self) -> list[str]:
        """Name of every channel."""
        said = self._about.get("modality")
        if not isinstance(said, dict) or not said or sorted(said) != sorted(map(str, range(len(said)))):
            raise bad(self._file, 'modality like {"0": "CT"}', f"{said!r:.80}", "correct it")
        return [str(said[str(k)]) for k in range(len(said))]

    @cached_property
    def _chosen(self) -> list[int]:
        names = [name.lower() for name in self._channels]
        chosen = listed(self.channels)
        if chosen is None:
            return list(range(len(names)))
        numbers = [
            names.index(c.lower()) if c.lower() in names else int(c) if c.isdecimal() else -1 for c in chosen
        ]
        if not numbers or not all(0 <= k < len(names) for k in numbers):
            raise bad("channels", f"some of {', '.join(self._channels)}", "+".join(chosen), "correct it")
        return list(dict.fromkeys(numbers))

    @cached_property
    def _cases(self) -> list[Any]:
        cases = self._about.get("training")
        if not isinstance(cases, list) or not cases:
            raise bad(self._file, "a list of training cases", f"{cases!r:.80}", "download it again")
        return cases

    def _study(self, k: int) -> Study:
        case, channel = self._cases[k // len(self._chosen)], self._chosen[k % len(self._chosen)]
        if not isinstance(case, dict) or not all(
            isinstance(case.get(key), str) for key in ("image", "label")
        ):
            raise bad(self._file, "paths of an image and a label", f"{case!r:.120}", "correct that entry")
        scan, labels = (inside(Path(self.path), case[key], self._file) for key in ("image", "label"))
        several = len(self._channels) > 1
        patient = f"{self.name}-{self._task}-{case_name(scan)}"
        modality = _modality(self._channels[channel])
        return study_of_labels(
            scan,
            labels,
            self._names,
            hosts=self._hosts,
            frame=channel if several else None,
            flip=self.flip,
            id=f"{patient}-{self._channels[channel]}" if several else patient,
            patient=patient,
            source=self.name,
            modality=modality,
            license=self.license,
            details={
                "scan": scan.relative_to(self.path).as_posix(),
                "task": self._task,
                **({} if self._channels[channel] == modality else {"sequence": self._channels[channel]}),
            },
        )


def _modality(channel: str) -> str:
    """``"CT"`` is CT; all other channels of the decathlon (``"FLAIR"``, ``"T2"``, ``"ADC"``, ``"MRI"``) are MRI."""
    return "CT" if channel.upper().startswith("CT") else "MRI"
