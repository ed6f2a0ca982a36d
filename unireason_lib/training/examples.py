"""The data path of training: records become examples once, and stay.

Decoding pictures, cutting crops, rendering and tokenizing a conversation takes longer than a training step of a small
model. So it is done before the first epoch and kept (``keep=True``), and because the vision tower is frozen, so are the
tokens that it makes of every picture (:class:`Features`): an epoch then is nothing but the language model. At paper
scale, where neither fits into memory, examples are made when they are asked for, in the loader's worker processes
(``keep=False``), and the batch carries pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unireason_lib.boxes import BOX_END, BOX_START
from unireason_lib.dataset.schema import Record
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.training.encoding import Collator, Encoded, Encoder
from unireason_lib.training.forms import check_form, conversation

_TOKENS = re.compile(r"\d|[^\W\d]+|[^\s\w]")

Images = Callable[[Record], Sequence[Image.Image]]
"""Gives the pictures of a record, for instance :func:`unireason_lib.dataset.hub.record_images` with a table."""


@dataclass(frozen=True)
class TooLong:
    """A record that does not fit.

    Attributes:
        id: The record.
        tokens: Its length.
        kept: Tokens of it that are trained on, 0 when it is left out altogether.
    """

    id: str
    tokens: int
    kept: int


class Examples(Sequence):
    """Encoded records.

    Args:
        records: What to train on.
        pictures: Gives the pictures of a record.
        processor: Of the model.
        form: What the reply holds; see :mod:`unireason_lib.training.forms`.
        max_length: Longest example in tokens. A longer one loses the end of its reply, cut at a place where no
            picture is broken; one whose prompt is too long is left out.
        listed: File of JSON lines to which both are added when they are met (:func:`read_too_long`), also by a
            loader's worker processes; None lists them nowhere.
        keep: Whether to encode all now and keep them; else one by one, when asked for.
        progress: Whether to show a bar.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pictures: Images,
        processor: Any,
        *,
        form: str = "full",
        max_length: int = 40_960,
        keep: bool = True,
        listed: Path | None = None,
        progress: bool = False,
    ) -> None:
        self.records, self.pictures, self.form, self.max_length = (
            records,
            pictures,
            check_form(form),
            max_length,
        )
        self.encoder = Encoder(processor)
        tokenizer = processor.tokenizer
        self.vision_end = tokenizer.convert_tokens_to_ids("<|vision_end|>")
        self._listed = listed
        self._told = {one.id for one in read_too_long(listed)} if listed else set()
        self.rows: list[int] = list(range(len(records)))
        self.kept: list[Encoded] | None = None
        if keep:
            made = [
                self._encode(k)
                for k in tqdm(self.rows, "examples", disable=not progress, unit=" records")
            ]
            self.rows = [k for k, one in zip(self.rows, made, strict=True) if one is not None]
            self.kept = [one for one in made if one is not None]
            self.lengths = [len(one) for one in self.kept]
        else:
            self.lengths = [estimated_length(record, self.encoder.frame) for record in records]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        if self.kept is not None:
            return self.kept[index]
        for step in range(len(self)):  # one that does not fit is replaced by the next that does
            if (one := self._encode((index + step) % len(self))) is not None:
                return one
        raise IndexError(index)

    def record(self, index: int) -> Record:
        """The record behind an example."""
        return self.records[self.rows[index]]

    def _encode(self, index: int) -> Encoded | None:
        record = self.records[index]
        messages = conversation(record, self.pictures(record), self.form, self.encoder.frame)
        encoded = self.encoder(messages)
        if len(encoded) <= self.max_length:
            return encoded
        short = shortened(encoded, self.max_length, self.vision_end)
        self._tell(TooLong(record.id, len(encoded), 0 if short is None else len(short)))
        return short

    def _tell(self, one: TooLong) -> None:
        if self._listed is None or one.id in self._told:
            return
        self._told.add(one.id)
        with open(
            self._listed, "a", encoding="utf-8"
        ) as lines:  # one write, so that processes do not mix lines
            lines.write(json.dumps(asdict(one)) + "\n")


def read_too_long(path: Path) -> list[TooLong]:
    """The records that did not fit, each once; none when there is no such file."""
    if not path.is_file():
        return []
    found = (TooLong(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return list({one.id: one for one in found}.values())


def shortened(encoded: Encoded, most: int, vision_end: int) -> Encoded | None:
    """The beginning of an example, up to its last own token: whole pictures only, and none that nothing follows.

    Args:
        encoded: A longer example.
        most: Tokens to keep at most.
        vision_end: Id of the token behind a picture.

    Returns:
        The example cut, or None when nothing of the reply would be left.
    """
    own = np.flatnonzero(encoded.own[:most])
    if not len(own):
        return None
    end = int(own[-1]) + 1  # never inside a picture: no token of one is own
    whole = int((encoded.ids[:end] == vision_end).sum())
    return Encoded(encoded.ids[:end], encoded.own[:end], encoded.pictures[:whole])


def estimated_length(record: Record, frame: ProcessorFrame) -> int:
    """Tokens of a record without reading its pictures or tokenizing: exact for pictures, and for text one token a word,
    digit and sign. Enough to put examples of like length into one batch."""
    height, width = record.image_size or (256, 256)
    tokens = len(record.image_ids) * (frame.tokens(height, width) + 2)
    for box in record.boxes:
        depth = 1 if not hasattr(box, "z1") else max(1, int(box.z2 - box.z1))
        tokens += depth * (frame.tokens(max(4, int(box.height)), max(4, int(box.width))) + 2)
    text = record.user_text + record.reply.replace(BOX_START, "[").replace(BOX_END, "]")
    return tokens + len(_TOKENS.findall(text))


class Features:
    """What a frozen vision tower makes of every picture, computed once.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration`` whose vision tower and merger will not change.
        collator: Cuts pictures into patches.
        batch: Images encoded together.
    """

    def __init__(self, model: Any, collator: Collator, batch: int = 256) -> None:
        self.model, self.patches, self.batch = model, collator.patches, batch
        self.known: dict[bytes, torch.Tensor] = {}

    def add(self, pictures: Sequence[np.ndarray], progress: bool = False) -> None:
        """Encode all pictures that are not known yet."""
        new = {_key(picture): picture for picture in pictures if _key(picture) not in self.known}
        names = sorted(new, key=lambda name: new[name].shape)
        with tqdm(total=len(names), desc="vision", disable=not progress, unit=" pictures") as bar:
            for first in range(0, len(names), self.batch):
                part = names[first : first + self.batch]
                grids = torch.tensor([self.patches.grid(new[name]) for name in part])
                pixels = torch.from_numpy(self.patches([new[name] for name in part]))
                device = self.model.device
                with torch.no_grad():
                    found = self.model.model.get_image_features(
                        pixels.to(device), grids.to(device), return_dict=True
                    )
                # a slice of a batch's tensor would keep all of it in memory
                self.known.update(
                    (n, f.clone().cpu()) for n, f in zip(part, found.pooler_output, strict=True)
                )
                bar.update(len(part))

    def __call__(self, pictures: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Tokens of each picture, ``(tokens, hidden)``; those not known are encoded first."""
        if any(_key(picture) not in self.known for picture in pictures):
            self.add(pictures)
        return [self.known[_key(picture)] for picture in pictures]


def _key(picture: np.ndarray) -> bytes:
    from hashlib import blake2b

    return blake2b(
        picture.tobytes(), digest_size=16, person=str(picture.shape[:2]).encode()[:16]
    ).digest()


class FeatureCollator(Collator):
    """A collator whose batches carry the vision tower's tokens in place of pixels."""

    def __init__(self, processor: Any, model: Any, multiple: int = 8) -> None:
        super().__init__(processor, multiple)
        self.features = Features(model, self)

    def _pictures(self, pictures: Sequence[np.ndarray]) -> Mapping[str, Any]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        found = self.features(pictures)
        return {
            "mm_encoder_outputs": {
                "image": BaseModelOutputWithPooling(pooler_output=[torch.cat(found)])
            },
            "image_grid_thw": torch.tensor([self.patches.grid(picture) for picture in pictures]),
        }
