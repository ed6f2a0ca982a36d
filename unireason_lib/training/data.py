"""From a data set to what a trainer takes: which records, where their images are, their tokens.

The data set is a folder that :mod:`unireason_lib.dataset` wrote, or the authors' release (a folder
or its hub id), which names a volume by its path only: with ``m3d_root`` rows whose volume the user
holds are used, without it only those about 2D images.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from PIL import Image
from tqdm import tqdm

from unireason_lib.dataset.hub import ImageTable, load_set, record_images
from unireason_lib.dataset.release import open_release, release_split
from unireason_lib.dataset.schema import SFT_FEATURES, Record
from unireason_lib.errors import DatasetError
from unireason_lib.imaging.crops import crop_rectangle, slice_range
from unireason_lib.training.encoding import Encoded, Encoder, conversation, share_images

Images = Callable[[Record], Sequence[Image.Image]]  # gives the images of a record


class Records(Sequence):
    """Records of a typed table, made from its memory-mapped ``rows`` when asked for."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Records(self.rows.select(range(len(self))[index]))
        return Record.from_row(self.rows[index])


def training_records(
    folder: str | Path,
    records: Mapping[str, int | None] | None = None,
    *,
    split: str = "train",
    seed: int = 0,
    form: Literal["sft", "rl"] = "sft",
    kinds: Collection[str] = (),
    temperature: float = 1.0,
    **release: Any,
) -> Records:
    """Records of a split of a data set, or of the authors' release, in the random order of a seed.

    ``records``: dimension -> how many of it (None: all); None takes all of both, a dimension left
    out none. More than there are means that some come again, each as often as any other; a smaller
    number is part of a larger one. ``form``: ``"sft"`` with replies, ``"rl"`` without. ``kinds`` of
    questions (:data:`~.dataset.questions.FAMILIES`): none named means all; those of a dimension are
    mixed in proportion to the ``1 / temperature``-th power of their numbers (Raffel et al. 2020,
    arXiv 1910.10683): above 1, rare kinds come more often than they are. ``release``:
    ``m3d_root`` and ``volumes`` of :func:`~.dataset.release.open_release`; rows whose volume is
    missing are left out, with a warning that counts them. A :class:`DatasetError` when there is no
    such data set, or it has no records of a dimension that is asked for."""
    if _is_built(folder):
        rows = load_set(folder, form, split)
    else:
        opened = open_release(folder, **release).records(form)
        ours = [record for record in opened if release_split(record) == split]
        held = [one.to_row() for one in ours if one.dimension == "2d" or one.image_ids]
        if left_out := len(ours) - len(held):
            do = "give the folder of those that you hold (m3d_root), and a table of rows (volumes)"
            text = f"{left_out:,} rows about volumes are left out, which the release has not; {do}"
            warnings.warn(f"{folder}: {text}", stacklevel=2)
        rows = Dataset(pa.Table.from_pylist(held, SFT_FEATURES.arrow_schema))
    about = zip(rows["dimension"], rows["kind"], strict=True)
    usable = [dimension if not kinds or kind in kinds else "" for dimension, kind in about]
    where = {d: [k for k, one in enumerate(usable) if one == d] for d in ("2d", "3d")}
    wanted = dict.fromkeys(where) if records is None else records
    wanted = {d: len(where[d]) if n is None else n for d, n in wanted.items()}
    if not any(wanted.values()) or any(n and not where[d] for d, n in wanted.items()):
        of_kinds = f" of the kinds {', '.join(kinds)}" if kinds else ""
        expected = f"records of the split {split!r} in {' and '.join(wanted)}{of_kinds}"
        found = ", ".join(f"{len(numbers)} in {d}" for d, numbers in where.items())
        do = "build a data set that has them, or ask for others"
        raise DatasetError(folder, expected, found, do)
    parts = [_mixed(rows.select(where[d]), n, seed, temperature) for d, n in wanted.items() if n]
    return Records(concatenate_datasets(parts).shuffle(seed=seed))


def _mixed(rows: Dataset, count: int, seed: int, temperature: float) -> Dataset:
    """``count`` rows, the kinds of questions mixed as :func:`training_records` says."""
    if temperature == 1:
        return _passes(rows, count, seed)
    of_kind: dict[str, list[int]] = {}
    for number, kind in enumerate(rows["kind"]):
        of_kind.setdefault(kind, []).append(number)
    weights = [len(numbers) ** (1 / temperature) for numbers in of_kind.values()]
    ends = [round(count * end / sum(weights)) for end in accumulate(weights)]
    counts = [end - start for start, end in pairwise([0, *ends])]
    chosen = zip(of_kind.values(), counts, strict=True)
    return concatenate_datasets([_passes(rows.select(k), n, seed) for k, n in chosen if n])


def _passes(rows: Dataset, count: int, seed: int) -> Dataset:
    """``count`` rows in random order: every row once before any is repeated."""
    turns = range(-(-count // len(rows)))
    turned = concatenate_datasets([rows.shuffle(seed=seed + turn) for turn in turns])
    return turned.select(range(count))


def _is_built(folder: str | Path) -> bool:
    return (Path(folder) / "manifest.json").is_file()


def data_folder(name: str | Path) -> Path:
    """The folder of a data set: itself, or for a hub id what of it lies in the local cache; a
    :class:`DatasetError` when neither is there."""
    return open_release(name).folder


def images_from(folder: str | Path, *, m3d_root: str | Path | None = None) -> Images:
    """Gives the images of a record: from ``images/`` of a data set, or the release, else from the
    scan of its source; ``m3d_root`` is the folder of the volumes of the release."""
    folder, roots = data_folder(folder), {}
    if m3d_root:
        roots[""] = m3d_root if _is_built(folder) else open_release(folder, m3d_root=m3d_root)
    return partial(record_images, table=ImageTable(folder), roots=roots)


class Examples(Sequence):
    """Encoded records, with their ``lengths``, by which batches are made of similar ones.

    With ``keep`` all are encoded now and kept, which takes longer than a step of a small model. At
    paper scale, where they do not fit into memory, each is encoded when it is asked for, in the
    loader's worker processes; its length is then estimated from its text and the sizes of its
    images and crops. ``components`` of the replies, for those about 2D images perhaps others.

    Of a conversation of more than ``max_length`` tokens the end is cut off (:class:`~.Encoder`). In
    place of a record whose question alone is longer the next one stands, with a warning; a
    :class:`DatasetError` when a hundred in a row are too long."""

    def __init__(
        self,
        records: Sequence[Record],
        images: Images,
        processor: Any,
        *,
        components: str = "full",
        components_2d: str | None = None,
        max_length: int = 40_960,
        keep: bool = True,
        progress: bool = False,
    ) -> None:
        self.records, self.images, self.max_length = records, images, max_length
        self.components = {"2d": components_2d or components, "3d": components}
        self.encoder, self.kept = Encoder(processor), None
        if keep:
            same: dict[bytes, Any] = {}  # a volume is kept once for all questions about it
            rows = tqdm(range(len(records)), "tokenizing", disable=not progress, unit=" records")
            self.kept = [share_images(self._encode(row), same) for row in rows]
            self.lengths = [len(one) for one in self.kept]
        else:
            self.lengths = [self._estimate(record) for record in records]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Encoded:
        return self._encode(index) if self.kept is None else self.kept[index]

    def _estimate(self, record: Record) -> int:
        """About how many tokens a record has; its images are not read."""
        count, frame, size = len(record.image_ids), record.frame, record.image_size or (256, 256)
        tokens = count * (2 + frame.tokens(*size))  # with delimiters
        tokens += len(self.encoder.tokenizer.encode(record.user_text + record.reply))
        for box in record.boxes if self.components[record.dimension] == "full" else ():
            box, (height, width) = frame.pixels(box, *size), frame.size(*size)
            cut = crop_rectangle(box.xy, width, height)
            if cut is not None:
                crop = 2 + frame.tokens(int(cut.height), int(cut.width))
                tokens += len(slice_range(box, count)) * crop
        return tokens

    def _encode(self, row: int) -> Encoded:
        for k in range(min(100, len(self.records))):
            record, frame = self.records[(row + k) % len(self.records)], self.encoder.frame
            components = self.components[record.dimension]
            messages = conversation(record, self.images(record), components, frame)
            if len(encoded := self.encoder(messages, self.max_length)):
                return encoded
            text = f"is left out: its question alone has more than {self.max_length} tokens"
            warnings.warn(f"{record.id} {text}", stacklevel=2)
        expected, do = f"a question of at most {self.max_length} tokens", "raise sft.max_length"
        raise DatasetError(record.id, expected, "a longer one", do)
