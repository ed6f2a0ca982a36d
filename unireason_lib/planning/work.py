"""How much there is to compute: tokens of a sample, and floating-point operations of what is done with it.

A parameter costs two operations a token when it is read forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1),
and twice that backward: once for the gradient of what came in, once for its own. Frozen parameters and those under
adapters need only the first. Causal attention over s tokens of width h costs 2 s^2 h a layer, attention without a mask
over p patches 4 p^2 h. Gradient checkpointing does the forward pass once more (Chen et al. 2016, arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unireason_lib.imaging import ProcessorFrame
from unireason_lib.planning.machines import assumptions
from unireason_lib.planning.shapes import Shape

DELIMITERS = 2
"""Tokens around a picture."""


@dataclass(frozen=True)
class Sample:
    """A typical question with its reply.

    Attributes:
        dimension: ``"2d"`` or ``"3d"``.
        pictures: Tokens of each picture of the prompt.
        crops: Tokens of each picture that boxes fetch.
        asked: Tokens of the question's words.
        written: Tokens that the model writes itself.
        boxes: How many fetch something.
    """

    dimension: str
    pictures: tuple[int, ...]
    crops: tuple[int, ...]
    asked: int
    written: int
    boxes: int

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.asked + sum(self.pictures) + DELIMITERS * len(self.pictures)

    @property
    def injected(self) -> int:
        """Tokens that boxes fetch."""
        return sum(self.crops) + DELIMITERS * len(self.crops)

    @property
    def tokens(self) -> int:
        """All of it."""
        return self.prompt + self.injected + self.written


def samples_of(
    frame: ProcessorFrame, shape: Sequence[int], picture: int | None = None
) -> dict[str, Sample]:
    """What ``machines.yaml`` assumes of a sample, for pictures of a given size.

    Args:
        frame: Of the processor.
        shape: Slices, rows, columns of a volume.
        picture: Side of a 2D picture in pixels; None: as a slice.
    """
    assumed = assumptions()["sample"]
    slices, rows, columns = shape
    found = {}
    for dimension, count, height, width in (
        ("2d", 1, picture or rows, picture or columns),
        ("3d", slices, rows, columns),
    ):
        side = assumed["region"] ** 0.5
        new_height, new_width = frame.size(height, width)
        crop = frame.tokens(max(4, round(new_height * side)), max(4, round(new_width * side)))
        boxes = assumed[f"boxes_{dimension}"]
        spanned = 1 if dimension == "2d" else max(1, round(slices * assumed["slices"]))
        found[dimension] = Sample(
            dimension,
            (frame.tokens(height, width),) * count,
            (crop,) * (boxes * spanned),
            assumed["words_asked"],
            assumed[f"words_{dimension}"],
            boxes,
        )
    return found


@dataclass(frozen=True)
class Work:
    """Operations of a model; all methods return FLOPs.

    Attributes:
        shape: Of the model.
        adapters: Whether only adapters learn.
        checkpointing: Whether activations are computed again on the way back.
        features_kept: Whether the frozen tower has seen all pictures before.
    """

    shape: Shape
    adapters: bool = False
    checkpointing: bool = False
    features_kept: bool = False

    def language(self, tokens: int, before: int = 0, logits: int | None = None) -> float:
        """Forward pass of the language model over some tokens.

        Args:
            tokens: How many.
            before: How many are in the cache already.
            logits: For how many the output layer is computed; None: for all.
        """
        shape = self.shape
        dense = 2 * shape.layers * shape.layer * tokens
        return (
            dense
            + self._attention(tokens, before)
            + 2 * shape.embedding * (tokens if logits is None else logits)
        )

    def _attention(self, tokens: int, before: int) -> float:
        """A token looks at those before it and, on average, at half of its companions."""
        return 4 * self.shape.layers * self.shape.hidden * tokens * (before + tokens / 2)

    def vision(self, pictures: Sequence[int]) -> float:
        """Forward pass of the vision tower over pictures, given in tokens of the language model."""
        shape, total = self.shape, 0.0
        patch = shape.vision_hidden * 3 * shape.temporal * shape.patch**2
        for tokens in pictures:
            patches = tokens * shape.merge**2
            total += 2 * patches * (patch + shape.vision_layers * shape.vision_layer)
            window = min(patches, shape.window)
            looks = (shape.vision_layers - shape.vision_full) * window + shape.vision_full * patches
            total += 4 * shape.vision_hidden * patches * looks + 2 * tokens * shape.merger
        return total

    def reading(self, sample: Sample) -> float:
        """One forward pass over a sample, pictures included, with logits for what the model wrote."""
        return self.seeing(sample) + self.language(sample.tokens, logits=sample.written)

    def learning(self, sample: Sample) -> float:
        """Forward and backward over a sample; the frozen tower goes forward only."""
        again = 1 if self.checkpointing else 0
        language = self.language(sample.tokens, logits=sample.written)
        attention = self._attention(
            sample.tokens, 0
        )  # has no parameters: its way back costs twice in any case
        back = language + attention if self.adapters else 2 * language
        return (1 + again) * language + back + self.seeing(sample)

    def seeing(self, sample: Sample) -> float:
        """The vision tower over the pictures of a sample, once."""
        return 0.0 if self.features_kept else self.vision([*sample.pictures, *sample.crops])

    def writing(self, sample: Sample, replies: int) -> tuple[float, float]:
        """Replies to one question, with a cache: what is done in parallel (prompt, once for all; regions), and what
        token by token."""
        prompt = self.vision(sample.pictures) * (not self.features_kept)
        prompt += self.language(sample.prompt, logits=1)
        regions = self.vision(sample.crops) + self.language(
            sample.injected, sample.prompt, logits=sample.boxes
        )
        words = self.language(sample.written, sample.prompt + sample.injected)
        return prompt + replies * regions, replies * words
