"""Finished data sets: load them, get the images of a record, publish them.

``load_dataset(folder, "sft")`` gives typed, memory-mapped rows by split. Images come from the table
``images``; those that may not be passed on are made again from scans that the user holds, *through
the source* that read them at the build: with the same axis order, flips and channels.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from unireason_lib.dataset.schema import IMAGE_FEATURES, Record
from unireason_lib.dataset.sources import open_source
from unireason_lib.dataset.sources.base import Source, SourceSpec
from unireason_lib.dataset.splits import SPLITS
from unireason_lib.dataset.view import scan_images
from unireason_lib.errors import DatasetError, raising
from unireason_lib.imaging import load_image

CONFIGS = ("sft", "rl", "images", "refused")
_opened = lru_cache(maxsize=16)(open_source)


def load_set(
    where: str | Path,
    config: Literal["sft", "rl", "images", "refused"] = "sft",
    split: str | None = None,
) -> Dataset | DatasetDict:
    """One configuration of a finished set (a folder or a hub id), memory-mapped and with its
    declared features; ``sft`` and ``rl`` have the splits train, val and test, the others only
    ``train``. A ``split`` of None gives a dictionary of all."""
    folder = Path(where)
    if folder.exists() and not (folder / "README.md").is_file():
        raise DatasetError(where, "a finished data set", "no README.md", "run the build to its end")
    expected = f"the configuration {config!r}, split {split!r}"
    with raising(DatasetError, where, expected, "check the name, or build it again"):
        return load_dataset(str(where), config, split=split)


class ImageTable(Mapping):
    """The images of a data set by id, RGB. ``where`` is a folder with ``images/`` (a set without
    one has no images), or an id on the hub."""

    def __init__(self, where: str | Path) -> None:
        self.where = where
        if files := sorted(map(str, Path(where).glob("images/*.parquet"))):
            dataset = Dataset.from_parquet(files, features=IMAGE_FEATURES)
        elif Path(where).is_dir():
            dataset = Dataset.from_dict({name: [] for name in IMAGE_FEATURES}, IMAGE_FEATURES)
        else:
            dataset = load_set(where, "images", "train")
        self._bytes = dataset.data.column("bytes")
        self._rows: dict[str, int] = {}
        for row, name in enumerate(dataset.data.column("image_id").to_pylist()):
            first = self._rows.setdefault(name, row)
            if first != row and self._bytes[first] != self._bytes[row]:
                raise DatasetError(where, "one image per id", f"two of {name}", "build it again")

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageTable, (self.where,)  # workers map the files, nothing is copied

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Any:
        return iter(self._rows)

    def __getitem__(self, image_id: str) -> Image.Image:
        return load_image(self._bytes[self._rows[image_id]].as_py(), name=f"image {image_id}")


def record_images(
    record: Record,
    table: Mapping[str, Image.Image],
    roots: Mapping[str, str | Path | Source] | None = None,
) -> list[Image.Image]:
    """The images of a record: from the table, else from its scan, read by its source.

    ``roots``: source -> folder of its scans on this machine, or the opened source; called as in
    records (``Record.source``) or as in the registry, ``""`` is any other. A :class:`DatasetError`
    when images are not stored and the scan is not at hand."""
    if record.image_ids and all(name in table for name in record.image_ids):
        return [table[name] for name in record.image_ids]
    if record.scan is None:
        found, do = "neither them nor a scan", "get the images, or say where its volume is"
        raise DatasetError(record.id, "images, or where the scan is", found, do)
    names, roots = (record.source, SourceSpec.parse(record.scan.spec).name, ""), roots or {}
    root = next((roots[name] for name in names if name in roots), None)
    expected = f"its {len(record.image_ids)} images, or the folder of {record.source}"
    do = "obtain these scans and give their folder (roots={source: FOLDER}, or --m3d-root FOLDER)"
    try:
        source = root if hasattr(root, "scan") else _opened(record.scan.spec, root and str(root))
    except DatasetError as error:
        raise DatasetError(record.id, expected, error, do) from error
    layout = record.serialization
    pixels = scan_images(source.scan(record.scan.key), layout["size"], layout["window"], record.id)
    planes = [pixels] if record.dimension == "2d" else pixels
    return [Image.fromarray(plane).convert("RGB") for plane in planes]


def push_set(
    folder: str | Path, repo_id: str, *, private: bool = True, token: str | None = None
) -> str:
    """Publish a finished set as ``user/name``: its Parquet files, card and manifest, in one commit,
    whose address is returned. Without a token that of ``hf auth login`` is taken."""
    from huggingface_hub import HfApi

    if not (Path(folder) / "manifest.json").is_file():
        raise DatasetError(folder, "a finished data set", "no manifest", "run the build to its end")
    api, kind = HfApi(token=token), {"repo_type": "dataset"}
    api.create_repo(repo_id, private=private, exist_ok=True, **kind)
    patterns = ["README.md", "manifest.json", *(f"{config}/*.parquet" for config in CONFIGS)]
    files = {"folder_path": folder, "allow_patterns": patterns}
    return str(api.upload_folder(repo_id=repo_id, **files, **kind))


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """The card of a set from its manifest; the header tells ``datasets`` and the hub what is in."""
    from huggingface_hub import DatasetCard, DatasetCardData

    # `datasets` caches a local set by folder name, configuration and version. With one version for
    # all, a set would be taken for another of its name that lies elsewhere or was there before.
    identity = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).digest()
    version = ".".join(map(str, struct.unpack("3I", identity[:12])))
    splits = [s for s in SPLITS if manifest["counts"]["split"].get(s)]
    files = {name: {split: f"{split}-*.parquet" for split in splits} for name in ("sft", "rl")}
    files |= {name: {"train": "*.parquet"} for name in ("images", "refused") if manifest[name]}
    configs = []
    for name, parts in files.items():
        paths = [{"split": split, "path": f"{name}/{path}"} for split, path in parts.items()]
        configs += [{"config_name": name, "version": version, "data_files": paths}] if paths else []
    tasks = ["visual-question-answering"]
    header = DatasetCardData(task_categories=tasks, language="en", configs=configs)
    template = Path(__file__).with_name("card.jinja")
    return str(DatasetCard.from_template(header, str(template), **manifest))
