"""The card of a data set: its ``README.md``, written from the manifest, with the header that the Hugging
Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unireason_lib.dataset.splits import SPLITS

_READ = """\
```python
from unireason_lib.dataset.parquet import ImageStore, pictures_of, read_records

images = ImageStore(".")
for record in read_records(".", split="train"):
    conversation = record.load(pictures_of(record, images))   # crops are cut where the reply points
    break
```"""


def card_text(manifest: Mapping[str, Any]) -> str:
    """A data set card in Markdown.

    Args:
        manifest: As :func:`unireason_lib.dataset.build.build` writes it.
    """
    counts, studies, settings = manifest["counts"], manifest["studies"], manifest["settings"]
    patients = studies["patients_by_split"]
    families = counts["family and dimension"]
    parts = [
        _header(manifest),
        "# Grounded medical questions\n",
        f"{manifest['records']:,} multiple-choice questions about {studies['read']:,} studies of "
        f"{studies['patients']:,} patients, each with reasoning that points: the boxes in a reply are "
        "pixels of the picture as the processor shows it to the model. In the form of UniMed-CoT (`sft/`, "
        "`rl/`, `images/`). Not for clinical use.\n",
        _table(
            ("split", "patients", "records"),
            [(name, f"{patients[name]:,}", f"{counts['split'].get(name, 0):,}") for name in SPLITS],
        ),
        _table(
            ("family", "2D", "3D"),
            [
                (family, *(f"{families.get(f'{family}, {d}', 0):,}" for d in ("2d", "3d")))
                for family in counts["family"]
            ],
        ),
        _table(("right letter", "records"), [(k, f"{v:,}") for k, v in counts["answer"].items()]),
        "## Sources\n",
        _table(
            ("source", "modality", "studies used", "records", "licence"),
            [
                (
                    source["name"],
                    source["modality"],
                    f"{source['used']:,}",
                    f"{counts['source'].get(source['name'], 0):,}",
                    source["license"] or "not stated",
                )
                for source in manifest["sources"]
            ],
        ),
        "Rows without `image_ids` are text only, because the licence of their source does not let pictures be "
        "passed on; `extra_info.record` says where the scan lies in its source (`lookup`) and how it is shown "
        "(`serialization`).\n",
        "## Reading\n",
        _READ + "\n",
        "## How it was made\n",
        f"Split by patient, {_shares(settings['fractions'])}; {studies['look_alikes']:,} pairs of scans of "
        "different patients look like one scan and were kept in one split. Reasoning by the writer "
        f"`{settings['writer']}`. Seed {manifest['seed']}. Left out, with reasons in `refused.jsonl`: "
        f"{_list(manifest['refused']) or 'nothing'}. `manifest.json` lists settings, versions and a hash of every "
        "file.\n",
    ]
    return "\n".join(parts)


def _header(manifest: Mapping[str, Any]) -> str:
    """Configurations and splits in YAML, as the hub wants them."""
    lines = ["---", "task_categories:", "- visual-question-answering", "language:", "- en", "configs:"]
    files = [entry["path"] for entry in manifest["files"]]
    for form in ("sft", "rl"):
        there = [split for split in SPLITS if any(path.startswith(f"{form}/{split}-") for path in files)]
        lines += [f"- config_name: {form}", *(["  default: true"] if form == "sft" else []), "  data_files:"]
        for split in there:
            lines += [f"  - split: {split}", f"    path: {form}/{split}-*.parquet"]
    if any(path.startswith("images/") for path in files):
        lines += ["- config_name: images", "  data_files:", "  - split: all", "    path: images/*.parquet"]
    return "\n".join([*lines, "---", ""])


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    lines = [_row(head), _row("---" for _ in head), *map(_row, body)]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def _shares(fractions: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:g}" for name, share in fractions.items())


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
