"""A reply for people: the thought with what each box fetched and where it lies, then the answer.

Models and files write what they like, so control characters are taken out before anything reaches a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_reply(record: Mapping[str, Any]) -> str:
    """A record of :func:`unireason_lib.inference.record_of` as text for a terminal."""
    lines = [_scan(record), "", printable(record["question"])]
    lines += [f"  {letter}. {printable(text)}" for letter, text in record["options"].items()]
    lines += ["", *_reply(record), ""]
    lines.append(f"answer: {printable(record['answer']) or '(none)'}")
    if record["options"]:
        lines.append(f"choice: {record['choice'] or 'none'}")
    cut = " (cut off by --max-new-tokens)" if record["stop"] == "length" else ""
    lines.append(
        f"{record['prompt_tokens']} prompt tokens, {record['own_tokens']} written{cut}, "
        f"{record['injected_tokens']} put in, {record['rounds']} round{'s' * (record['rounds'] != 1)}, "
        f"{record['seconds']:.1f} s"
    )
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text without control characters other than line breaks and tabs (no escape codes for the terminal)."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _scan(record: Mapping[str, Any]) -> str:
    frame = record["frame"]
    seen = f"the model sees {frame['width']} x {frame['height']} pixels"
    if "picture" in record:
        size = record["picture"]
        return f"{printable(record['image'])}: {size['width']} x {size['height']} pixels, {seen}"
    told = record["serialization"]
    slices, rows, columns = told["size"]
    low, high = told["range"]
    window = told["window"] if isinstance(told["window"], str) else "given"
    voxels = " x ".join(map(str, told["volume_shape"][::-1]))
    lines = [
        f"{printable(record['volume'])}: {voxels} voxels as {slices} slices of {columns} x {rows}, "
        f"window {window} ({low:g} to {high:g}), {seen}"
    ]
    if told["affine"] is None:
        lines.append(
            "the file has no geometry: taken as (z, y, x) in L-P-S directions, so left and right are assumed"
        )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in record.get("warnings", ()))])


def _reply(record: Mapping[str, Any]) -> list[str]:
    """The text, broken after each box to say what became of it."""
    lines, text, number = [], record["text"], 0
    for pointing in record["pointings"]:
        before, found, after = text.partition(pointing["text"])
        if not found:
            continue
        lines.append(printable(before + found))
        lines.append("    -> " + _fate(record, pointing, number))
        number += pointing["box"] is not None
        text = after
    return [*lines, printable(text)] if text.strip() or not lines else lines


def _fate(record: Mapping[str, Any], pointing: Mapping[str, Any], number: int) -> str:
    if pointing["box"] is None:
        return "not a box: nothing put in"
    crops = pointing["crops"]
    told = f"nothing put in: {pointing['status']}"
    if crops:
        width, height = crops[0]
        told = f"{len(crops)} crop{'s' * (len(crops) > 1)} of {width} x {height} pixels put in"
    for key, unit in (("boxes_picture", "pixels"), ("boxes_voxel", "voxels"), ("boxes_mm", "mm")):
        where = record.get(key, [None] * (number + 1))[number]
        if where is not None:
            flat = where if not isinstance(where[0], list) else [*where[0], *where[1]]
            told += f"; {unit} [{', '.join(f'{value:.1f}'.removesuffix('.0') for value in flat)}]"
    return told
