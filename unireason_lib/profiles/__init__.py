"""One dial for every size in the project: the profile.

A profile is a YAML file in this folder. ``laptop`` holds every value there is; ``smoke`` (seconds, for tests), ``gpu``
(the paper's scale) and ``t4`` (one GPU of 16 GB) say which profile they extend, and change some values. A notebook has
one parameter ``PROFILE``, and one ``OVERRIDES`` for single values::

    >>> profile = load_profile("laptop", "generation.max_rounds=3")
    >>> profile.generation.max_rounds
    3

A name that does not exist and a value of another type than the file's are errors: a typo must not run the defaults.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from unireason_lib.errors import ProfileError

FOLDER = Path(__file__).parent

ORDER = ["smoke", "laptop", "t4", "gpu"]
"""Profiles that ship, smallest first; others come behind."""


class Section(Mapping):
    """Read-only settings, by attribute or key; a value is a scalar, a tuple, or another section.

    Args:
        values: Name -> value; lists become tuples, mappings become sections.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(
            self, "_values", {name: _freeze(value) for name, value in values.items()}
        )

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(f"no setting {name!r}; there are: {', '.join(values)}")
        return values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a profile is read-only; ask for another one: load_profile(..., {name}={value!r})"
        )

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.as_dict()})"

    def as_dict(self) -> dict[str, Any]:
        """A nested dictionary of plain values, as one would write it to JSON."""
        return {
            name: value.as_dict() if isinstance(value, Section) else value
            for name, value in self.items()
        }


class Profile(Section):
    """All settings of one run: sections by attribute, and :attr:`name`, the file they come from."""


def profile_names() -> list[str]:
    """The profiles that ship, smallest first."""
    names = [path.stem for path in FOLDER.glob("*.yaml")]
    return sorted(
        names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)
    )


def load_profile(
    name: str = "laptop", overrides: str | Mapping[str, Any] = "", **more: Any
) -> Profile:
    """Read a profile and change single values of it.

    Args:
        name: ``"smoke"``, ``"laptop"``, ``"t4"`` or ``"gpu"``.
        overrides: ``{"generation.max_rounds": 3}`` or the same as text, as a papermill parameter has it:
            ``"generation.max_rounds=3, serialization.size=[8,64,64]"``.
        more: The same by keyword; the section may be left out where only one section has the name (``max_rounds=3``).

    Returns:
        The profile, frozen.

    Raises:
        ProfileError: There is no such profile or setting (the message names near matches), a value has another type
            than the profile's, or the text cannot be read.
    """
    values = _read(name)
    changes = parse_overrides(overrides) if isinstance(overrides, str) else dict(overrides)
    for key, value in {**changes, **more}.items():
        section, setting = _find(values, key, name)
        if value is None and setting in _nullable():
            section[setting] = None
        else:
            section[setting] = match_type(f"profile {name!r}, {key}", value, section[setting])
    return Profile({"name": name, **values})


def parse_overrides(text: str) -> dict[str, Any]:
    """``"a.b=3, c=[1,2]"`` -> ``{"a.b": 3, "c": [1, 2]}``; commas, semicolons and newlines separate.

    Raises:
        ProfileError: A part has no ``=``.
    """
    changes = {}
    for part in re.split(r"[,;\n](?![^\[(]*[\])])", text):
        key, equals, value = part.partition("=")
        if equals:
            changes[key.strip()] = parse_value(value)
        elif part.strip():
            raise ProfileError("overrides", "setting=value", repr(part.strip()), "write the '='")
    return changes


def parse_value(text: str) -> Any:
    """A literal as a person types it: ``3``, ``1e-5``, ``true``, ``none``, ``[8, 64]``; anything else is a string."""
    text = text.strip()
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def match_type(subject: str, value: Any, default: Any) -> Any:
    """``value`` if it can stand where ``default`` stood: an int may stand for a float, anything plain for None.

    Args:
        subject: What the value is of, for the message.
        value: The new value.
        default: The present one; a tuple or list asks for a sequence of the same kind of elements.

    Raises:
        ProfileError: The types differ.
    """
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        return (
            [match_type(subject, element, default[0]) for element in value]
            if default
            else list(value)
        )
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is type(default) or (
        default is None and not isinstance(value, (Mapping, list, tuple))
    ):
        return value
    kind = "none" if default is None else type(default).__name__
    found = f"{value!r} ({type(value).__name__})"
    raise ProfileError(subject, f"a value like {default!r} ({kind})", found, "fix it")


def near(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """What was perhaps meant, for messages: ``"perhaps 'max_rounds'"``, else all that is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "perhaps " + " or ".join(repr(match) for match in close)
    return "there are " + ", ".join(known) if known else "there are none"


def _read(name: str) -> dict[str, Any]:
    import yaml

    path = FOLDER / f"{name}.yaml"
    if name not in profile_names():
        do = f"use {', '.join(profile_names())}"
        raise ProfileError("PROFILE", "a known profile", repr(name), do)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = values.pop("extends", None)
    if base is None:
        return values
    merged = _read(base)
    for section, settings in values.items():
        for setting, value in settings.items():
            key = f"{section}.{setting}"
            place, leaf = _find(merged, key, path.name)
            place[leaf] = (
                None if value is None else match_type(f"{path.name}, {key}", value, place[leaf])
            )
    return merged


@cache
def _nullable() -> frozenset[str]:
    """Names of the settings that are null in some profile, and so may be null in any."""
    import yaml

    files = [
        yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in profile_names()
    ]
    sections = [
        section for values in files for section in values.values() if isinstance(section, dict)
    ]
    return frozenset(
        name for section in sections for name, value in section.items() if value is None
    )


def _find(values: dict[str, Any], key: str, name: str) -> tuple[dict[str, Any], str]:
    """The section that holds ``key`` (with or without its section), and the name within it."""
    settings = {
        f"{section}.{leaf}": (place, leaf) for section, place in values.items() for leaf in place
    }
    matches = [full for full in settings if full == key or full.split(".")[1] == key]
    if len(matches) == 1:
        return settings[matches[0]]
    if matches:
        found = f"{key!r}, which {len(matches)} sections have"
        raise ProfileError(
            f"profile {name!r}", "one setting", found, f"write {' or '.join(matches)}"
        )
    leaves = {full.split(".")[1]: full for full in settings}
    close = difflib.get_close_matches(key.split(".")[-1], leaves, n=3, cutoff=0.5)
    hint = (
        "perhaps " + " or ".join(leaves[leaf] for leaf in close)
        if close
        else near(key, list(settings))
    )
    raise ProfileError(f"profile {name!r}", "a known setting", repr(key), hint)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Section(value)
    return (
        tuple(_freeze(element) for element in value) if isinstance(value, (list, tuple)) else value
    )
