"""Seeing, shown: what every token of a picture should know, and where to look when a box is written.

A model that is only told the right box has to find three things at once: which marks on a picture make a form, that
a picture's tokens are worth attending to, and how a place becomes digits. Until it has all of them, the loss says
nothing, and the tiny model writes the same box for every picture. So in exercises with pictures, where the truth is
known for every pixel, each step is shown by itself (:class:`~unireason_lib.training.base.guidance.Guide`):

- **sights**: form, shade and texture of the shape that a picture token covers are read off that token, at the vision
  tower's output and behind layer 1; so are the edges of the shape's box: at the tower's output from the middle of the
  token (a tower cannot know where in the picture it is), behind layer 1 from the corner of the picture;
- **look**: while a box is written, a head of layer 2 looks at the picture tokens of that shape;
- **named**: and a head of layer 1 at the name that was said before.

Reading along every location is from dense detectors (FCOS, Tian et al. 2019, arXiv 1904.01355).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from unireason_lib.boxes import BOX_END, BOX_START, Box2D, parse_boxes
from unireason_lib.training.base.shapes import FORMS, NOUN, SHADES, TEXTURES, Picture, Shape

NOTHING = "nothing"
WORDS: tuple[tuple[str, ...], ...] = (
    (*FORMS, NOTHING),
    SHADES,
    tuple(texture.split()[0] for texture in TEXTURES),
)
"""Words that are read off a picture token: one of each group, the last two only where there is a shape."""

_ATTRIBUTES = {word for texture in TEXTURES for word in texture.split()} | set(SHADES)
_COVERED = 0.25


def picture_tokens(ids: np.ndarray, image_token: int, grids: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Positions of every picture's tokens, row by row.

    Args:
        ids: ``(tokens,)`` of one example.
        image_token: Id of a picture token.
        grids: Rows and columns of tokens of each picture.
    """
    places = np.flatnonzero(ids == image_token)
    ends = np.cumsum([rows * columns for rows, columns in grids])
    return np.split(places, ends[:-1]) if len(grids) else []


def find_sights(
    places: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], pictures: Sequence[Picture]
) -> np.ndarray:
    """What every picture token covers.

    Returns:
        ``(picture tokens, 10) float32``: position, form, shade and texture as indices into :data:`WORDS`, the edges
        x1, y1, x2, y2 of the shape's box and the middle x, y of the token, in shares of the picture.
    """
    found = []
    for at, (rows, columns), picture in zip(places, grids, pictures, strict=True):
        height, width = picture.pixels.shape
        for k, position in enumerate(at.tolist()):
            row, column = divmod(k, columns)
            cell = Box2D(
                column * width / columns,
                row * height / rows,
                (column + 1) * width / columns,
                (row + 1) * height / rows,
            )
            shape = max(picture.shapes, key=lambda s: _cover(s.box, cell), default=None)
            middle = ((column + 0.5) / columns, (row + 0.5) / rows)
            if shape is None or _cover(shape.box, cell) < _COVERED:
                found.append((position, len(FORMS), 0, 0, 0, 0, 0, 0, *middle))
                continue
            what = (
                WORDS[0].index(shape.form),
                SHADES.index(shape.shade),
                TEXTURES.index(shape.texture),
            )
            x1, y1, x2, y2 = shape.box.as_tuple()
            found.append((position, *what, x1 / width, y1 / height, x2 / width, y2 / height, *middle))
    return np.array(found, np.float32).reshape(-1, 10)


def _cover(box: Box2D, cell: Box2D) -> float:
    """Common area as a share of the smaller one."""
    common = box.intersection(cell)
    return 0.0 if common is None else common.area / min(box.area, cell.area)


def find_looks(
    words: Sequence[str],
    own: Sequence[bool],
    sights: np.ndarray,
    places: Sequence[np.ndarray],
    pictures: Sequence[Picture],
) -> dict[str, list[tuple[int, int]]]:
    """Where to look while boxes are written: ``look`` at the shape, ``said`` at its name, ``phrase`` within it."""
    hops: dict[str, list[tuple[int, int]]] = {"look": [], "said": [], "phrase": []}
    bare = [word.strip().lower() for word in words]
    reply = next((k for k in range(len(words)) if own[k]), len(words))
    for start in range(reply, len(words)):
        if words[start] != BOX_START:
            continue
        end = next((k for k in range(start, len(words)) if words[k] == BOX_END), None)
        if end is None:
            break
        box = parse_boxes("".join(words[start : end + 1]))[0]
        target = next(
            ((p, s) for p, picture in enumerate(pictures) for s in picture.shapes if s.box == box), None
        )
        if target is None:
            continue
        at, shape = target
        tokens = _tokens_of(shape, pictures[at], sights[np.isin(sights[:, 0], places[at])])
        hops["look"] += [(k, token) for k in range(start, end) for token in tokens]
        named = _name_before(bare, start, reply, shape.form)
        if named is None:
            continue
        hops["said"] += [(k, named) for k in range(start, end)]
        first = named
        while bare[first - 1] in _ATTRIBUTES:
            first -= 1
        hops["phrase"] += [(named, k) for k in range(first, named + 1)]
    return hops


def _tokens_of(shape: Shape, picture: Picture, sights: np.ndarray) -> list[int]:
    """Picture tokens that cover a shape."""
    height, width = picture.pixels.shape
    edges = np.array(shape.box.as_tuple()) / (width, height, width, height)
    mine = (sights[:, 1] != len(FORMS)) & np.isclose(sights[:, 4:8], edges, atol=1e-4).all(1)
    return [int(position) for position in sights[mine, 0]]


def _name_before(bare: Sequence[str], start: int, reply: int, form: str) -> int | None:
    """The noun that was said last: in the reply, or in a question that has no options."""
    nouns = (form, NOUN)
    found = next((k for k in range(start - 1, reply - 1, -1) if bare[k] in nouns), None)
    if found is None and not any(bare[k] == "a" and bare[k + 1] == "." for k in range(reply - 1)):
        found = next((k for k in range(reply - 1, 0, -1) if bare[k] in nouns), None)
    return found


class Sights:
    """Reads words and edges off picture tokens, with nothing that has to be learnt besides the model itself: words by
    their embeddings, edges along fixed random directions.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``.
        tokenizer: Its tokenizer, in which every word of :data:`WORDS` is one token.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.words = [torch.tensor([tokenizer(f" {word}").input_ids[0] for word in group]) for group in WORDS]
        draw = torch.Generator().manual_seed(0)
        directions = torch.randn(model.config.text_config.hidden_size, 4, generator=draw)
        self.directions = torch.linalg.qr(directions)[0]

    def loss(
        self, hidden: torch.Tensor, rows: torch.Tensor, sights: torch.Tensor, relative: bool
    ) -> torch.Tensor:
        """Cross entropies of the words, and how far the edges are off.

        Args:
            hidden: ``(rows, tokens, width)`` hidden states.
            rows, sights: ``(n,)`` and ``(n, 10)``: row of the batch, and what :func:`find_sights` gives.
            relative: Edges are counted from the middle of the token, otherwise from the corner of the picture.
        """
        size = hidden[rows, sights[:, 0].long()].float().norm(dim=-1)
        state = self.model.model.language_model.norm(hidden[rows, sights[:, 0].long()].float())
        embedding = self.model.get_input_embeddings().weight
        there = sights[:, 1] != len(FORMS)
        total = functional.cross_entropy(state @ embedding[self.words[0]].T, sights[:, 1].long())
        if relative:
            total = total + 0.1 * (size / embedding.detach().norm(dim=-1).mean() - 1).square().mean()
        if not there.any():
            return total
        for k in (1, 2):
            logits = state[there] @ embedding[self.words[k]].T
            total = total + functional.cross_entropy(logits, sights[there, 1 + k].long())
        edges = sights[there, 4:8] - (sights[there, 8:10].repeat(1, 2) if relative else 0.5)
        off = functional.smooth_l1_loss(state[there] @ self.directions, 4 * edges, beta=0.2)
        return total + off


def collate_sights(found: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """The sights of a batch: ``rows`` and ``sights``."""
    rows = np.repeat(np.arange(len(found)), [len(one) for one in found])
    return {"rows": torch.from_numpy(rows), "sights": torch.from_numpy(np.concatenate(found))}
