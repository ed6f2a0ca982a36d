"""The families of models that the grounded interface runs on, and all in which they differ.

A box, its crop and the tokens put back ask little of a model: ``get_rope_index`` for the positions
of new tokens, ``mm_encoder_outputs`` for features of images that were encoded before. What else
differs is a row of one table. Slices go in as images, one by one, so the timestamps that Qwen3-VL
writes between the frames of a video are never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.errors import ModelError

if TYPE_CHECKING:
    import torch

TEMPLATE = Path(__file__).parent / "grounding" / "chat_template.jinja"


@dataclass(frozen=True)
class Backbone:
    """One family."""

    family: str  # ``model_type`` of config.json
    name: str  # as its authors write it
    classes: str  # with what the names of its classes in transformers begin
    system_turn: bool  # its chat template adds a system turn where a conversation has none
    scale: int | None  # None: it writes boxes in pixels; 1000: in thousandths of width and height
    patch_size: int  # side of a vision patch in pixels
    areas: tuple[int, int]  # smallest and largest of an image after the resize, in square pixels

    def of_transformers(self, kind: str) -> Any:
        """Its class in transformers: ``"Config"``, ``"Processor"`` or the model's,
        ``"ForConditionalGeneration"``."""
        import transformers

        return getattr(transformers, self.classes + kind)

    def template(self) -> str:
        """Its chat template, with marks around what the assistant generates."""
        start = "" if self.system_turn else "{%- set no_system_turn = true -%}\n"
        return start + TEMPLATE.read_text(encoding="utf-8")


_QWEN2_5 = Backbone(
    "qwen2_5_vl", "Qwen2.5-VL", "Qwen2_5_VL", True, None, 14, (56 * 56, 28 * 28 * 16384)
)
_QWEN3 = Backbone("qwen3_vl", "Qwen3-VL", "Qwen3VL", False, 1000, 16, (256 * 256, 4096 * 4096))
BACKBONES = {row.family: row for row in (_QWEN2_5, _QWEN3)}
"""Family -> its row. Patch sizes and areas are those of the published ``preprocessor_config.json``;
thousandths: https://github.com/QwenLM/Qwen3-VL, "Coordinate System"."""


def backbone_of(family: str, subject: object) -> Backbone:
    """The row of a family; a :class:`ModelError` about the ``subject`` when there is none."""
    if family not in BACKBONES:
        expected = " or ".join(f"{row.family} ({row.name})" for row in BACKBONES.values())
        do = "use a checkpoint of one of these; another family needs a row in backbones.py, with "
        do += "its classes, its chat template and the scale of its boxes"
        raise ModelError(subject, expected, family, do)
    return BACKBONES[family]


def scale_of(processor: Any) -> int | None:
    """The :attr:`Backbone.scale` of a processor, by the name of its class; pixels if it is none of
    the table's, as image processors alone, which the families share."""
    name = type(processor).__name__
    return next((b.scale for b in BACKBONES.values() if name == f"{b.classes}Processor"), None)


# Features of an image are one tensor (1 + deepstack layers, tokens, hidden): what the merger gives,
# and what Qwen3-VL adds to the hidden states behind its first layers (arXiv 2406.04334); Qwen2.5-VL
# has no such layers.


def split_features(output: Any) -> list[torch.Tensor]:
    """The features of each image in what ``get_image_features`` returns."""
    import torch

    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return [torch.stack(parts) for parts in zip(*layers, strict=True)]


def join_features(features: Sequence[torch.Tensor]) -> Any:
    """The way back: what ``get_image_features`` returns, and ``mm_encoder_outputs`` takes as its
    ``"image"``."""
    from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl

    merged, *deep = map(list, zip(*features, strict=True))
    return qwen3_vl.BaseModelOutputWithDeepstackFeatures(
        pooler_output=merged, deepstack_features=deep
    )
