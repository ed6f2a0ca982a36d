"""What a source of studies is, and what all readers of published data sets share.

A source lists its studies cheaply (:meth:`Source.index`) and makes the study of a key
(:meth:`Source.study` measures the outlines). :meth:`Source.scan` is **the only place that reads a
scan**: axis order, flips and channels are applied there, when a set is built and whenever its
records are shown, trained on or evaluated: ``open_source(spec, folder).scan(key)``.

Two things that files say are doubted. **Sides**: a header can be mirrored against the anatomy
(:func:`settle_sides`). **One lesion**: a label often covers several (:func:`count_lesions`).
"""

import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import yaml
from scipy.ndimage import label

from unireason_lib.dataset.study import Structure, Study, readable_name, slices_of
from unireason_lib.errors import DatasetError, ScanWarning, raising
from unireason_lib.imaging import Volume
from unireason_lib.io import safe_path

well_formed = partial(raising, DatasetError, do="correct it, or download it again")
"""``well_formed(file, expected)``: whatever goes wrong in taking a file apart is our error."""


@dataclass(frozen=True)
class Entry:
    """One study of a source, before anything of it is opened."""

    key: str  # its name inside the source
    patient: str
    split: str | None = None  # "train", "val" or "test" when the source has its own
    # and what a source of files knows besides
    id: str = ""  # of the study
    modality: str = ""
    labels: tuple[str, ...] = ()  # paths of label maps or masks below the folder of the source
    frame: int | None = None  # which volume of a 4D scan; its key ends in "#frame"


@dataclass(frozen=True)
class LazyIndex(Sequence):
    """An index whose entries are made on access, each from a name or number."""

    names: Sequence[Any]
    entry: Callable[[Any], Entry]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, k: int) -> Entry:
        return self.entry(self.names[k])


@dataclass(frozen=True)
class SourceSpec:
    """Which source, where, and with which options: ``"decathlon:/data/Task03_Liver,flip=xy"``."""

    name: str  # in the registry
    path: str | None = None  # None: it needs no folder, or only the reading is meant
    options: Mapping[str, Any] = field(default_factory=dict)  # values are JSON, else text

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name``, ``name:path``, ``name:option=value,...`` or ``name:path,option=value``."""
        name, _, rest = text.partition(":")
        path, *options = re.split(r"(?:^|,)(?=[a-z_][a-z0-9_]*=)", rest)
        pairs = (option.partition("=")[::2] for option in sorted(options))
        return cls(name, path or None, {key: _value(written) for key, written in pairs})

    def __str__(self) -> str:
        parts = [f"{key}={_written(value)}" for key, value in sorted(self.options.items())]
        rest = ",".join([self.path, *parts] if self.path else parts)
        return f"{self.name}:{rest}" if rest else self.name


def _value(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written


def _written(value: Any) -> str:
    plain = isinstance(value, str) and _value(value) == value and "=" not in value
    return value if plain else json.dumps(value, sort_keys=True).replace("=", "\\u003d")


def _changes(instance: Any) -> dict[str, Any]:
    """What differs from the defaults of a dataclass, and of dataclasses in it."""
    pairs = ((option, getattr(instance, option.name)) for option in fields(instance))
    changed = {option.name: value for option, value in pairs if value != option.default}
    return {k: _changes(value) if is_dataclass(value) else value for k, value in changed.items()}


class Source(ABC):
    """Studies of one data set. Subclasses are frozen dataclasses whose fields are the options."""

    name: str  # of the data set; also `Study.source`
    license: str  # terms under which its scans may be used
    modality: str  # of its scans, or "mixed"
    path: Path | None  # the folder that it reads
    redistributable: bool = False  # whether a set made from its scans may be passed on with them
    about: Any = None  # what files beside the scans say (names, licence): a changed one is noticed
    registered: ClassVar[str]  # its name in the registry
    chooses: ClassVar[frozenset[str]] = frozenset()  # options that do not decide how a scan is read

    @abstractmethod
    def index(self) -> Sequence[Entry]:
        """All studies, perhaps made on access; no scan is opened for it."""

    @abstractmethod
    def study(self, key: str) -> Study:
        """The study of a key, with its label map; or :class:`UniReasonError`: others may do."""

    @abstractmethod
    def scan(self, key: str) -> Volume | np.ndarray:
        """The scan of a key, as this source reads scans; or :class:`UniReasonError`."""

    @property
    def spec(self) -> str:
        """The source with the options that decide how it reads, without its folder."""
        options = {k: v for k, v in _changes(self).items() if k not in ("path", *self.chooses)}
        return str(SourceSpec(self.registered, None, options))

    def __reduce__(self) -> tuple[Any, ...]:
        """The options alone: what was read of the folder does not travel between processes."""
        return type(self), tuple(getattr(self, option.name) for option in fields(self))

    def __len__(self) -> int:
        return len(self.index())

    def __getitem__(self, k: int) -> Study:
        return self.study(self.index()[k].key)


class FileSource(Source):
    """A source of files in a folder; a key is the path of a scan below it."""

    path: str | Path
    title: str | None  # of the data set, in ids of its studies; None: its name in the registry
    cases: Mapping[str, Entry]  # by key, in order; each subclass finds them in its own way

    def __post_init__(self) -> None:
        if not len(self):
            what = f"a folder with cases of {self.registered}"
            raise DatasetError(self.path, what, "none", "check path and options")
        if bad := next(filter(re.compile("[\ud800-\udfff]").search, self.cases), None):
            raise DatasetError(self.root, "file names in UTF-8", ascii(bad), "rename the file")

    @property
    def name(self) -> str:
        """The title, or else the name in the registry."""
        return self.title or self.registered

    @property
    def root(self) -> Path:
        """The folder."""
        return Path(self.path)

    @property
    def modality(self) -> str:
        """That of all cases, or ``"mixed"``."""
        kinds = {case.modality for case in self.cases.values()}
        return kinds.pop() if len(kinds) == 1 else "mixed"

    @cached_property
    def _entries(self) -> Sequence[Entry]:
        return list(self.cases.values())  # once: a source is asked for its index at every study

    def index(self) -> Sequence[Entry]:
        return self._entries

    def case(self, key: str) -> Entry:
        """The case of a key; raises :class:`DatasetError` when there is none."""
        if key not in self.cases:
            raise DatasetError(self.name, "a key of its index", repr(key), "open it as indexed")
        return self.cases[key]

    def file(self, written: str) -> Path:
        """A file that the data set names, inside its folder: see :func:`safe_path`."""
        return safe_path(self.root, written, f"{self.name} (links may not leave its folder)")

    def scan_file(self, key: str) -> Path:
        """The file of a scan."""
        return self.file(key.removesuffix(f"#{self.case(key).frame}"))

    def measured(
        self, key: str, make: Callable[..., Study], *outlines: Any, hosts: Mapping, **about: Any
    ) -> Study:
        """A study by ``Study.from_labels`` or ``from_masks``; ``hosts``: lesion -> its organ."""
        fields = ("id", "patient", "modality", "split", "key")
        known = {field: getattr(self.case(key), field) for field in fields}
        known |= {"source": self.name, "license": self.license, "scan": partial(self.scan, key)}
        study = make(*outlines, **{**known, **about})
        return settle_sides(count_lesions(study, hosts))


def from_part(written: str, part: str) -> str:
    """A path of a list from the folder ``part`` on; some begin with folders of other machines."""
    _, there, rest = ("/" + written).rpartition(f"/{part}/")
    return f"{part}/{rest}" if there else written


def strictest(splits: Mapping[str, Sequence[str]], source: str) -> dict[str, str | None]:
    """Key -> its split: of several lists the most protected one, with a warning."""
    order = ("test", "val", "train")
    if several := [key for key, names in splits.items() if len({*names} & {*order}) > 1]:
        shown = f"{len(several)} cases stand in several lists ({', '.join(several[:3])} ...)"
        message = f"{source}: {shown}; each counts for the most protected of test, val and train"
        warnings.warn(message, ScanWarning, stacklevel=2)
    return {key: next((s for s in order if s in names), None) for key, names in splits.items()}


@cache
def names_table(section: str) -> dict[str, Any]:
    """A section of ``names.yaml``: what data sets call things, and what they are called here."""
    return yaml.safe_load(Path(__file__).with_name("names.yaml").read_bytes())[section]


def structure_name(name: str) -> str:
    """A name as one says it (see :func:`readable_name`), in the words that all sources share."""
    words = f" {readable_name(name)} "
    for old, new in names_table("words").items():
        words = words.replace(f" {old} ", f" {new} ")
    return words.strip()


def value_names(table: Any, where: object, known: Mapping[str, str] = {}) -> dict[int, str | None]:
    """Label value -> name, of ``{"1": "liver"}`` or ``{"liver": 1}``, without 0, the background.
    ``known`` says what names in lower case are called here, others go by :func:`structure_name`."""
    names: dict[int, str | None] = {}
    with well_formed(where, 'a table of label names like {"1": "liver"}'):
        for key, value in table.items():
            number, name = (value, key) if isinstance(value, int) else (int(key), value)
            if number in names or number < 0 or name == "":
                raise ValueError(f"{key!r}: {value!r}")
            names[number] = name and (known.get(name.lower()) or structure_name(name))
    return {number: name for number, name in names.items() if number}


def parts_of(names: Mapping[int, str | None], hosts: Mapping[str, str]) -> dict[int, int]:
    """Label of a lesion -> label of its organ, from the names of both."""
    labels = {name: label for label, name in names.items()}
    return {labels[p]: labels[o] for p, o in hosts.items() if p in labels and o in labels}


def settle_sides(study: Study) -> Study:
    """Withdraw the directions of a study whose liver or spleen lies on the wrong side: the spleen
    must lie to the left of the liver; one alone not beyond the middle by a tenth of the grid's
    width."""
    x = {s.name: s.centroid[0] / study.shape[-1] for s in study.structures}
    liver, spleen = x.get("liver", x.get("hepatic vessels", 0.4)), x.get("spleen", 0.6)
    if liver <= spleen or not study.directions.startswith("L"):
        return study
    text = "by the header liver or spleen lie on the wrong side: left and right are not used"
    warnings.warn(f"{study.id}: {text}", ScanWarning, stacklevel=2)
    return replace(study, directions="")


def count_lesions(study: Study, hosts: Mapping[str, str]) -> Study:
    """Write into lesions how many connected parts each has, and in which organ it lies."""

    def counted(structure: Structure) -> Structure:
        if structure.kind != "lesion":
            return structure
        here = np.isin(study.labels[slices_of(structure.box)], structure.values)
        known = {"components": label(here, np.ones([3] * here.ndim))[1]}  # diagonals count
        if (organ := hosts.get(structure.name)) in study.vocabulary:
            known["host"] = organ
        return replace(structure, attributes={**structure.attributes, **known})

    return replace(study, structures=tuple(map(counted, study.structures)))
