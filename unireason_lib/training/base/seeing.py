"""Seeing, shown: what every token of a picture should know, and where to look when a box is written.

A model that is only told the right box has to find three things at once: which marks on a picture make a form, that
a picture's tokens are worth attending to, and how a place becomes digits. Until it has all of them, the loss says
nothing, and the tiny model writes the same box for every picture. So in exercises with pictures, where the truth is
known for every pixel, each step is shown by itself (:class:`~unireason_lib.training.base.guidance.Guide`):

- **sights**: form, shade and texture of the shape that a picture token covers are read off that token, at the vision
  tower's output and behind layer 1; so are the edges of the shape's box: at the tower's output from the middle of the
  token (a tower cannot know where in the picture it is), behind layer 1 from the corner of the picture;
- **number**: where there are several pictures, the number of a token's picture is read off behind layer 1 as well;
- **look**: while a box, the number of a picture or the name of a shape is written, a head of layer 2 looks at the
  picture tokens of that shape, and what it brings, the edges of the box or the number, is read off behind layer 2;
- **named**: and while a box is written, a head of layer 1 looks at the name that was said before.

Reading along every location is from dense detectors (FCOS, Tian et al. 2019, arXiv 1904.01355).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


def picture_tokens(
    ids: np.ndarray, image_token: int, grids: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
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
        ``(picture tokens, 11) float32``: position, form, shade and texture as indices into :data:`WORDS`, the edges
        x1, y1, x2, y2 of the shape's box and the middle x, y of the token, in shares of the picture, and which picture
        it is, counted from 0.
    """
    found = []
    for number, (at, (rows, columns), picture) in enumerate(
        zip(places, grids, pictures, strict=True)
    ):
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
                found.append((position, len(FORMS), 0, 0, 0, 0, 0, 0, *middle, number))
                continue
            what = (
                WORDS[0].index(shape.form),
                SHADES.index(shape.shade),
                TEXTURES.index(shape.texture),
            )
            x1, y1, x2, y2 = shape.box.as_tuple()
            found.append(
                (position, *what, x1 / width, y1 / height, x2 / width, y2 / height, *middle, number)
            )
    return np.array(found, np.float32).reshape(-1, 11)


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
    """Where to look in a reply about pictures.

    Returns:
        Hop -> pairs (position that looks, position that is looked at). While a box is written: ``look`` at the shape,
        ``said`` at its name and ``phrase`` within that. ``number``: at the shape that was asked for, before the number
        of its picture. ``glance``: at the shape, before shade, texture and form are named.
    """
    hops: dict[str, list[tuple[int, int]]] = {
        hop: [] for hop in ("look", "number", "glance", "said", "phrase")
    }
    if not pictures:
        return hops
    bare = [word.strip().lower() for word in words]
    reply = next((k for k in range(len(words)) if own[k]), len(words))

    def find(numbers: Iterable[int], fits: Callable[[Shape], bool]) -> tuple[str, list[int]]:
        """Form and picture tokens of the shape that fits, in the first of some pictures where just one does."""
        for number in numbers:
            shapes = [shape for shape in pictures[number].shapes if fits(shape)]
            if len(shapes) == 1:
                mine = sights[np.isin(sights[:, 0], places[number])]
                return shapes[0].form, _tokens_of(shapes[0], pictures[number], mine)
        return "", []

    asked = next((int(bare[k + 2]) - 1 for k in range(reply) if _numbered(bare, k)), 0)
    wanted = next((word for word in bare[:reply] if word in FORMS), None)
    said: int | None = None  # the picture that the reply speaks of
    for k in range(reply, len(words)):
        if _numbered(bare, k) and 1 <= int(bare[k + 2]) <= len(pictures):
            if said is None:
                said = int(bare[k + 2]) - 1
                hops["number"] += [
                    (k + 1, at) for at in find([said], lambda shape: shape.form == wanted)[1]
                ]
        elif bare[k] in FORMS and BOX_START not in words[reply:] and 0 <= asked < len(pictures):
            first = next((j for j in range(k, reply - 1, -1) if bare[j] == "a"), k)
            named = bare[first:k]
            seen = find(
                [asked], lambda s, form=bare[k], named=named: s.form == form and s.shade in named
            )[1]
            hops["glance"] += [(j, at) for j in range(first, k) for at in seen]
        elif words[k] == BOX_START:
            end = next((j for j in range(k, len(words)) if words[j] == BOX_END), None)
            if end is None:
                break
            box = parse_boxes("".join(words[k : end + 1]))[0]
            form, seen = find(
                range(len(pictures)) if said is None else [said], lambda s, box=box: s.box == box
            )
            hops["look"] += [(j, at) for j in range(k, end) for at in seen]
            named = _name_before(bare, k, reply, form) if seen else None
            if named is not None:
                hops["said"] += [(j, named) for j in range(k, end)]
                first = named
                while bare[first - 1] in _ATTRIBUTES:
                    first -= 1
                hops["phrase"] += [(named, j) for j in range(first, named + 1)]
    return hops


def _numbered(bare: Sequence[str], k: int) -> bool:
    """Whether a picture is named by its number here: "picture", a space, and one digit."""
    return (
        bare[k] == "picture" and k + 2 < len(bare) and bare[k + 1] == "" and bare[k + 2].isdigit()
    )


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
        self.words = [
            torch.tensor([tokenizer(f" {word}").input_ids[0] for word in group]) for group in WORDS
        ]
        self.digits = torch.tensor([tokenizer(digit).input_ids[0] for digit in "123456789"])
        draw = torch.Generator().manual_seed(0)
        directions = torch.randn(model.config.text_config.hidden_size, 4, generator=draw)
        self.directions = torch.linalg.qr(directions)[0]

    def loss(
        self, hidden: torch.Tensor, rows: torch.Tensor, sights: torch.Tensor, relative: bool
    ) -> torch.Tensor:
        """Cross entropies of the words, and how far the edges are off.

        Args:
            hidden: ``(rows, tokens, width)`` hidden states.
            rows, sights: ``(n,)`` and ``(n, 11)``: row of the batch, and what :func:`find_sights` gives.
            relative: Edges are counted from the middle of the token, otherwise from the corner of the picture.
        """
        size = hidden[rows, sights[:, 0].long()].float().norm(dim=-1)
        state = self.model.model.language_model.norm(hidden[rows, sights[:, 0].long()].float())
        embedding = self.model.get_input_embeddings().weight
        there = sights[:, 1] != len(FORMS)
        total = functional.cross_entropy(state @ embedding[self.words[0]].T, sights[:, 1].long())
        several = sights[:, 10] > 0
        if not relative and several.any():
            several = torch.isin(rows, rows[several])
            logits = state[several] @ embedding[self.digits].T
            total = total + functional.cross_entropy(
                logits, sights[several, 10].long().clamp(max=8)
            )
        if relative:
            total = (
                total + 0.1 * (size / embedding.detach().norm(dim=-1).mean() - 1).square().mean()
            )
        if not there.any():
            return total
        for k in (1, 2):
            logits = state[there] @ embedding[self.words[k]].T
            total = total + functional.cross_entropy(logits, sights[there, 1 + k].long())
        edges = sights[there, 4:8] - (sights[there, 8:10].repeat(1, 2) if relative else 0.5)
        return total + self._off(state[there], edges)

    def read_edges(
        self, hidden: torch.Tensor, look: torch.Tensor, rows: torch.Tensor, sights: torch.Tensor
    ) -> torch.Tensor:
        """How far off the edges are where a box is written.

        Args:
            hidden: ``(rows, tokens, width)`` hidden states.
            look: ``(n, 3)``: row, position in the box, a picture token of its shape.
            rows, sights: As for :meth:`loss`.
        """
        edges = torch.zeros(*hidden.shape[:2], 4)
        edges[rows, sights[:, 0].long()] = sights[:, 4:8] - 0.5
        row, position, token = look.unbind(1)
        state = self.model.model.language_model.norm(hidden[row, position].float())
        return self._off(state, edges[row, token])

    def _off(self, state: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return functional.smooth_l1_loss(state @ self.directions, 4 * edges, beta=0.2)


def collate_sights(found: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """The sights of a batch: ``rows`` and ``sights``."""
    rows = np.repeat(np.arange(len(found)), [len(one) for one in found])
    return {"rows": torch.from_numpy(rows), "sights": torch.from_numpy(np.concatenate(found))}
