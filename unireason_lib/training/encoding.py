"""From a conversation with pictures to what a training step needs, made once and kept.

A grounded reply is one assistant turn in which text and pictures alternate: the model wrote the text, the pictures
(crops of what it pointed at) were put in. Only what it wrote carries loss. Which tokens those are is decided by the
chat template alone: it encloses the assistant's text with generation marks and leaves the pictures out (see
``grounding/chat_template.jinja``); here the marked characters become marked tokens.

    user:       <picture> Where is ...?                        no loss
    assistant:  <think>I look at <|box_start|>[..]<|box_end|>  loss
                <crop>                                         no loss
                It is bright.</think>B. Left                   loss

Images are kept as 8-bit arrays at the size in which the processor shows them (see
:class:`~unireason_lib.imaging.frame.ProcessorFrame`) and cut into patches when a batch is put together: that is a
reshape, a twelfth of the memory of float32 patches, and equal to what the processor gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unireason_lib.errors import DatasetError
from unireason_lib.imaging import ProcessorFrame

IGNORED = -100
"""Label of tokens without loss (``ignore_index`` of PyTorch's cross entropy)."""


@dataclass(frozen=True)
class Encoded:
    """One conversation, ready for training.

    Attributes:
        ids: Token ids, ``(tokens,) int32``, picture tokens expanded.
        own: ``(tokens,) bool``: written by the assistant itself, so it carries loss.
        pictures: ``(height, width, 3) uint8`` each, as the processor shows them to the model, in order.
    """

    ids: np.ndarray
    own: np.ndarray
    pictures: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """Encodes conversations for one processor.

    Args:
        processor: A ``Qwen2_5_VLProcessor`` whose chat template has generation marks.

    Raises:
        DatasetError: The template has none; loss on the assistant's own text cannot be told from the rest.
    """

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.frame = ProcessorFrame.from_processor(processor)
        self.template = processor.chat_template or self.tokenizer.chat_template
        self.image_token = processor.image_token
        if "generation" not in self.template:
            raise DatasetError(
                "chat template",
                "generation marks around the assistant's own text",
                "none",
                "use unireason_lib.grounding.chat_template(), which renders the same text with marks",
            )

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> Encoded:
        """Encode one conversation.

        Args:
            messages: Chat messages with content lists; pictures as PIL images under ``"image"``, in the
                assistant's turn too (:meth:`unireason_lib.dataset.schema.Record.load` makes them).

        Raises:
            DatasetError: The text contains picture tokens that belong to no picture.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        parts = [p for m in messages if not isinstance(m["content"], str) for p in m["content"]]
        pictures = tuple(
            np.asarray(self.frame.aligned(p["image"])) for p in parts if p["type"] == "image"
        )
        rendered, spans = render_jinja_template(
            [list(messages)], chat_template=self.template, return_assistant_tokens_mask=True
        )
        text, spans = self._expanded(rendered[0], spans[0], pictures)
        coded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        starts = np.array([start for start, _ in coded["offset_mapping"]], dtype=np.int64)
        own = np.zeros(len(starts), bool)
        for first, last in spans:
            own |= (starts >= first) & (starts < last)
        return Encoded(np.array(coded["input_ids"], np.int32), own, pictures)

    def _expanded(
        self, text: str, spans: Sequence[tuple[int, int]], pictures: Sequence[np.ndarray]
    ) -> tuple[str, list[tuple[int, int]]]:
        """One picture token for every token that its picture costs; the spans move along."""
        pieces = text.split(self.image_token)
        if len(pieces) != len(pictures) + 1:
            raise DatasetError(
                "conversation",
                f"{len(pictures)} picture tokens, one a picture",
                str(len(pieces) - 1),
                f"remove {self.image_token} from the texts",
            )
        factor = self.frame.factor
        counts = [(p.shape[0] // factor) * (p.shape[1] // factor) for p in pictures]
        width = len(self.image_token)
        ends = np.cumsum(
            [len(piece) + width for piece in pieces[:-1]]
        )  # where each token ended before
        growth = np.concatenate([[0], np.cumsum([(n - 1) * width for n in counts])])

        def moved(at: int) -> int:
            return int(at + growth[np.searchsorted(ends, at, side="right")])

        out = pieces[0] + "".join(
            self.image_token * n + piece for n, piece in zip(counts, pieces[1:], strict=True)
        )
        return out, [(moved(first), moved(last)) for first, last in spans]


class Patcher:
    """Cuts pictures into the patches that the vision tower reads.

    Args:
        image_processor: The processor's image processor: its patch sizes, mean and standard deviation are used.
    """

    def __init__(self, image_processor: Any) -> None:
        self.patch, self.merge = int(image_processor.patch_size), int(image_processor.merge_size)
        self.frames = int(image_processor.temporal_patch_size)
        # one multiplication and one addition a pixel: (value / 255 - mean) / std
        std = np.asarray(image_processor.image_std, np.float64)
        self.scale = (image_processor.rescale_factor / std).astype(np.float32)
        self.shift = (-np.asarray(image_processor.image_mean) / std).astype(np.float32)

    def grid(self, picture: np.ndarray) -> list[int]:
        """Time, height and width of a picture in patches."""
        return [1, picture.shape[0] // self.patch, picture.shape[1] // self.patch]

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Patches of all pictures, ``(patches, 3 * frames * patch * patch) float32``, in the processor's order:
        picture by picture, and within one the patches of a token side by side."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            groups.setdefault(picture.shape, []).append(index)
        found: list[np.ndarray] = [np.empty(0)] * len(pictures)
        for shape, indices in groups.items():
            for index, patches in zip(
                indices, self._cut(np.stack([pictures[i] for i in indices]), shape), strict=True
            ):
                found[index] = patches
        return np.concatenate(found)

    def _cut(self, stack: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        p, m = self.patch, self.merge
        rows, columns = shape[0] // (p * m), shape[1] // (p * m)
        values = stack.astype(np.float32) * self.scale + self.shift
        blocks = values.reshape(len(stack), rows, m, p, columns, m, p, 3)
        blocks = blocks.transpose(
            0, 1, 4, 2, 5, 7, 3, 6
        )  # n, row, column, in token (y, x), channel, y, x
        patches = blocks.reshape(len(stack), rows * columns * m * m, 3, 1, p * p)
        return np.repeat(patches, self.frames, axis=3).reshape(
            len(stack), rows * columns * m * m, -1
        )


class Collator:
    """Puts encoded conversations into one batch, padded on the right.

    Args:
        processor: Of the model that is trained.
        multiple: Lengths are padded to a multiple of this.
    """

    def __init__(self, processor: Any, multiple: int = 8) -> None:
        self.patches = Patcher(processor.image_processor)
        self.pad = processor.tokenizer.pad_token_id
        self.image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.multiple = multiple

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        """The keyword arguments of the model's forward pass, labels included."""
        import torch

        ids, mask, labels = self._padded(examples)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
            "mm_token_type_ids": torch.from_numpy((ids == self.image_token).astype(np.int32)),
        }
        pictures = [picture for example in examples for picture in example.pictures]
        return {**batch, **self._pictures(pictures)} if pictures else batch

    def _pictures(self, pictures: Sequence[np.ndarray]) -> Mapping[str, Any]:
        """The pictures of all conversations in order, as the model takes them."""
        import torch

        return {
            "pixel_values": torch.from_numpy(self.patches(pictures)),
            "image_grid_thw": torch.tensor([self.patches.grid(picture) for picture in pictures]),
        }

    def _padded(self, examples: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        longest = -(-max(map(len, examples)) // self.multiple) * self.multiple
        ids = np.full((len(examples), longest), self.pad, np.int64)
        mask = np.zeros((len(examples), longest), np.int64)
        labels = np.full((len(examples), longest), IGNORED, np.int64)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = example.ids
            mask[row, : len(example)] = 1
            labels[row, : len(example)] = np.where(example.own, example.ids, IGNORED)
        return ids, mask, labels
