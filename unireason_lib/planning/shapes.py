"""How large a model of the Qwen2.5-VL architecture is, part by part, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.errors import ModelError
from unireason_lib.grounding.model import ARCHITECTURE

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """Sizes that decide what a model costs.

    Attributes:
        vocabulary, hidden, layers, heads, kv_heads, intermediate: Of the language model; heads are ``hidden / heads``
            wide.
        tied: Whether the output layer is the embedding.
        vision_hidden, vision_layers, vision_intermediate: Of the vision tower.
        vision_full: How many of its layers look at a whole picture; the others at windows.
        window: Patches of a window.
        patch, merge, temporal: Side of a patch in pixels, patches merged along a side, frames of a patch.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    vision_full: int
    window: int
    patch: int
    merge: int
    temporal: int

    @classmethod
    def from_config(cls, config: Any) -> Shape:
        """Read a ``Qwen2_5_VLConfig``."""
        text, vision = config.text_config, config.vision_config
        return cls(
            vocabulary=text.vocab_size,
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            intermediate=text.intermediate_size,
            tied=bool(config.tie_word_embeddings),
            vision_hidden=vision.hidden_size,
            vision_layers=vision.depth,
            vision_intermediate=vision.intermediate_size,
            vision_full=sum(k < vision.depth for k in vision.fullatt_block_indexes),
            window=(vision.window_size // vision.patch_size) ** 2,
            patch=vision.patch_size,
            merge=vision.spatial_merge_size,
            temporal=vision.temporal_patch_size,
        )

    @property
    def keys(self) -> int:
        """Width of keys, and of values, in one layer."""
        return self.kv_heads * (self.hidden // self.heads)

    @property
    def layer(self) -> int:
        """Parameters of one layer of the language model: attention (biases at q, k, v), a gated MLP, two norms."""
        attention = 2 * self.hidden * (self.hidden + self.keys) + self.hidden + 2 * self.keys
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def layer_matrices(self) -> int:
        """Of those, what is in matrices and is quantised."""
        return 2 * self.hidden * (self.hidden + self.keys) + 3 * self.hidden * self.intermediate

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the output layer where it has its own."""
        return self.vocabulary * self.hidden

    @property
    def language(self) -> int:
        """Parameters of the language model, output layer included."""
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def vision_layer(self) -> int:
        """Parameters of one layer of the vision tower."""
        wide, inner = self.vision_hidden, self.vision_intermediate
        return 4 * wide * wide + 4 * wide + 3 * wide * inner + 2 * inner + wide + 2 * wide

    @property
    def merger(self) -> int:
        """Parameters of what turns four patches into one token."""
        wide = self.vision_hidden * self.merge**2
        return self.vision_hidden + wide * wide + wide + wide * self.hidden + self.hidden

    @property
    def vision(self) -> int:
        """Parameters of the vision tower and its merger, which stay frozen."""
        patches = self.vision_hidden * 3 * self.temporal * self.patch**2
        return patches + self.vision_layers * self.vision_layer + self.merger

    @property
    def total(self) -> int:
        """All parameters."""
        return self.language + self.vision

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters on the seven matrices of every layer of the language model."""
        h, k, i = self.hidden, self.keys, self.intermediate
        sides = [(h, h), (h, k), (h, k), (h, h), (h, i), (h, i), (i, h)]
        return self.layers * rank * sum(a + b for a, b in sides)


@cache
def published() -> dict[str, dict[str, Any]]:
    """Hub id -> configuration, for the models whose shapes are written out here."""
    known = yaml.safe_load((FOLDER / "models.yaml").read_text(encoding="utf-8"))
    return {name: known[one["like"]] if "like" in one else one for name, one in known.items()}


def published_config(name: str) -> Any:
    """A ``Qwen2_5_VLConfig`` of a published model, without asking a hub."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(**published()[name])


def shape_of(path: str | Path) -> Shape:
    """The shape of a checkpoint.

    Args:
        path: A folder with a ``config.json``, a hub id of :func:`published`, or ``3b`` or ``7b``.

    Raises:
        ModelError: The path is neither, or the architecture is another.
    """
    path = str(path)
    name = {"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"}.get(
        path.lower(), path
    )
    if name in published():
        return Shape.from_config(published_config(name))
    if not (Path(path) / "config.json").is_file():
        raise ModelError(
            path,
            "a folder with a config.json, or one of " + ", ".join(published()),
            "neither",
            "download the checkpoint's config.json into a folder and give that",
        )
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type != ARCHITECTURE:
        raise ModelError(path, ARCHITECTURE, config.model_type, "plan for a Qwen2.5-VL checkpoint")
    return Shape.from_config(config)
