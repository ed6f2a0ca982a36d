"""Auxiliary targets: where some attention heads look, and what can be read off hidden states.

Left to itself a model of this size finds neither how a letter is looked up among options nor how
a place becomes digits in the time that two cores have: each takes several steps that are useless
alone. Where the truth is known these steps can be shown one by one, beside the cross entropy of the
reply (``Plan.guidance`` turns all of it off; fine-tuning and RL never have it):

- *phrase*: the last token of an option, and of its text in the conclusion, looks at all of it;
- *mark*: every token of an option looks at the letter before it;
- *answer*, *option*: where a letter is due, look at the conclusion, and at the option that says so;
- *look*: while a box, the number of an image or a shape's name is written, look at that shape;
- the letter, the number and the edges of the box are read off behind the layer that looked;
- what an image token covers (name, shade, texture and edges of the shape) is read off it, behind
  the vision tower (edges from the token's middle) and behind layer 1 (from the image's corner).

Guided attention is from speech synthesis (Tachibana et al. 2018, arXiv 1710.08969), reading early
from deeply supervised nets (Lee et al. 2015, arXiv 1409.5185), reading along every location from
dense detectors (FCOS, Tian et al. 2019, arXiv 1904.01355). Nothing is added to the architecture.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy, smooth_l1_loss

from unireason_lib.boxes import Box2D

from .exercises import Exercise
from .shapes import NAMES, SHADES, TEXTURES, Scene, Shape

HEADS = {"phrase": (0, 0), "mark": (1, 0), "answer": (1, 1), "option": (2, 0), "look": (2, 1)}
"""What is shown -> layer and head that are shown it."""

WEIGHT = 0.3  # of all of this beside the cross entropy
COVERED = 0.25  # of the smaller one's area: then an image token is of that shape
GROUPS = ([*NAMES, "nothing"], list(SHADES), [texture.split()[0] for texture in TEXTURES])
"""Words that are read off an image token, one of each group."""

_OPTION = re.compile(r"(?:^|<\|vision_end\|>)([A-D])\. (.+?)(?=<\|im_end\|>|$)", re.MULTILINE)
_NOUN = re.compile(rf"\b(?:(?:{'|'.join((*SHADES, *TEXTURES))}) )*(?:{'|'.join(NAMES)}|shape)\b")
_SHOWN = re.compile(
    r"[Ii]mages? (?P<number>\d)\b|<\|box_start\|>\[(?P<box>[\d,]+)\]<\|box_end\|>"
    rf"|\b[Aa] (?P<shade>{'|'.join(SHADES)}) [a-z ]*?(?P<name>{'|'.join(NAMES)})\b"
)


class Targets(NamedTuple):
    """Targets of one exercise; those of a batch are tensors with a first column for the row.

    Attributes:
        attention: ``(n, 3)``: index into :data:`HEADS`, position that looks, position looked at.
        letters: ``(n, 3)``: layer, position, and the position whose token is read off there.
        edges: ``(n, 5)``: position, and x1, y1, x2, y2 of a box as proportions of its image.
        tokens: ``(image tokens, 11)``: position; indices into :data:`GROUPS`; edges of the shape
            and middle x, y of the token as proportions of the image; index of the image.
    """

    attention: Any
    letters: Any
    edges: Any
    tokens: Any


def find_targets(one: Exercise, words: Sequence[str], grids: Sequence[Sequence[int]]) -> Targets:
    """The targets of an exercise, from its tokens as text (those of images included) and the rows
    and columns of tokens of each image."""
    text, starts = "".join(words), np.cumsum([0, *map(len, words)])
    heads, attention, letters, edges = list(HEADS), [], [], []

    def at(start: int, end: int) -> list[int]:
        """The tokens that hold some characters."""
        first, last = np.searchsorted(starts, (start, end - 1), side="right") - 1
        return list(range(first, last + 1))

    def look(head: str, sources: Sequence[int], targets: Sequence[int]) -> None:
        attention.extend((heads.index(head), a, b) for a in sources for b in targets)

    reply, lines = text.rindex("<|im_start|>assistant"), list(_OPTION.finditer(text))
    plain = re.sub(r"<\|\w+\|>", lambda mark: " " * len(mark[0]), text.lower())
    options = {line[1]: line for line in lines if line.start() < reply}
    behind = max((line.end() for line in options.values()), default=reply)
    for line in options.values():
        phrase, mark = at(*line.span(2)), at(*line.span(1))
        look("phrase", phrase[-1:], phrase)
        look("mark", phrase, mark)
        letters.extend((1, k, mark[0]) for k in phrase)
    for line in (line for line in lines if line.start() > reply and line[1] in options):
        if (place := plain.rfind(line[2].lower(), behind, line.start())) >= 0:
            phrase, due = at(place, place + len(line[2])), at(*line.span(1))[0] - 1
            look("phrase", phrase[-1:], phrase)
            look("answer", [due], phrase[-1:])
            look("option", [due], at(*options[line[1]].span(2))[-1:])
            letters.append((2, due, due + 1))

    positions = np.array([k for k, word in enumerate(words) if word == "<|image_pad|>"], int)
    ends = np.cumsum([rows * columns for rows, columns in grids])[:-1]
    places = np.split(positions, ends) if len(grids) else []
    owners, tokens = [], [np.zeros((0, 11), np.float32)]
    for k, (scene, grid, place) in enumerate(zip(one.images, grids, places, strict=True)):
        owner, covered = _covered(scene, *grid)
        owners.append([place[owner == n] for n in range(len(scene.shapes))])
        tokens.append(np.column_stack([place, covered, np.full(len(place), k)]))

    asked = re.search(r"image (\d) show", one.question)
    about = int(asked[1]) - 1 if asked else None  # the image that the reply is about
    for m in _SHOWN.finditer(text, reply) if one.images else ():
        due = at(*m.span())[:-1]
        about = int(m["number"]) - 1 if m["number"] and about is None else about
        fits = [
            (k, n, shape)
            for k, scene in enumerate(one.images)
            for n, shape in enumerate(scene.shapes)
            if about in (k, None) and _is_shown(shape, m, one.question)
        ]
        for k, n, shape in fits[:1]:
            look("look", due[-1:] if m["number"] else due, owners[k][n])
            if m["number"]:
                letters.append((2, due[-1], due[-1] + 1))
            if m["box"]:
                (height, width), box = one.images[k].pixels.shape, shape.box.as_tuple()
                box = np.array(box) / (width, height, width, height)
                edges.extend((position, *box) for position in due)
                nouns = [*_NOUN.finditer(text, reply if options else 0, m.start())]
                for noun in nouns[-1:]:  # its name in the reply, or in a question without options
                    phrase = at(*noun.span())
                    look("phrase", phrase[-1:], phrase)
                    look("answer", due, phrase[-1:])
    sizes = zip((attention, letters, edges), (3, 3, 5), strict=True)
    rows = [np.array(part, float).reshape(-1, size) for part, size in sizes]
    return Targets(*rows, np.concatenate(tokens))


def _is_shown(shape: Shape, m: re.Match[str], question: str) -> bool:
    """Whether a part of a reply (see :data:`_SHOWN`) is about a shape."""
    if m["box"]:
        return shape.box == Box2D(*map(int, m["box"].split(",")))
    if m["number"]:
        return shape.name in question
    return (shape.name, shape.shade) == (m["name"], m["shade"])


def _covered(scene: Scene, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """For every image token, which shape it is of (-1: none), and columns 1 to 9 of its target."""
    (height, width), n = scene.pixels.shape, rows * columns
    high, wide = height / rows, width / columns
    y, x = np.divmod(np.arange(n), columns) * np.array([[high], [wide]])
    owner, best, covered = np.full(n, -1), np.full(n, COVERED), np.zeros((n, 9))
    covered[:, 0] = len(NAMES)
    covered[:, 7], covered[:, 8] = (x + wide / 2) / width, (y + high / 2) / height
    for k, shape in enumerate(scene.shapes):
        x1, y1, x2, y2 = shape.box.as_tuple()
        across = (np.minimum(x + wide, x2) - np.maximum(x, x1)).clip(0)
        down = (np.minimum(y + high, y2) - np.maximum(y, y1)).clip(0)
        part = across * down / min(shape.box.area, wide * high)
        words = shape.name, shape.shade, shape.texture.split()[0]
        what = [group.index(word) for group, word in zip(GROUPS, words, strict=True)]
        more = part > best
        covered[more, :7] = *what, x1 / width, y1 / height, x2 / width, y2 / height
        owner[more], best[more] = k, part[more]
    return owner, covered


def collate_targets(several: Sequence[Targets]) -> Targets:
    """The targets of a batch."""
    columns = [
        [np.insert(part, 0, row, axis=1) for row, part in enumerate(parts)]
        for parts in zip(*several, strict=True)
    ]
    return Targets(*(torch.from_numpy(np.concatenate(parts)).float() for parts in columns))


def edge_directions(width: int) -> torch.Tensor:
    """The directions ``(width, 4)`` along which a hidden state says x1, y1, x2, y2 of a box:
    random, orthogonal, of length 1, and always the same."""
    normal = torch.randn(width, 4, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(normal)[0]


class Guide:
    """Turns attention and hidden states into a loss, with nothing to be learnt beside the model:
    words are read off by its embeddings, edges along four fixed random directions. The ``model``, a
    ``Qwen2_5_VLForConditionalGeneration`` of four layers or more, is switched to eager attention,
    which alone gives its weights; every word of :data:`GROUPS` is one token of the ``tokenizer``.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        model.set_attn_implementation("eager")
        words = [[f" {word}" for word in group] for group in GROUPS] + ["123456789"]
        self.groups = [torch.tensor([tokenizer(w).input_ids[0] for w in group]) for group in words]
        self.directions = edge_directions(model.config.text_config.hidden_size).to(model.device)

    def tower_loss(self, batch: dict[str, torch.Tensor], targets: Targets) -> torch.Tensor:
        """The loss of images alone: the vision tower learns, and the layers are not run."""
        seen = self.model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
        return WEIGHT * self._covered(seen.pooler_output, targets.tokens, tower=True)

    def loss(self, output: Any, ids: torch.Tensor, targets: Targets) -> torch.Tensor:
        """The loss of a forward pass over ``ids`` ``(rows, tokens)``: the ``output`` of
        ``model.model`` with ``output_attentions`` and ``output_hidden_states``."""
        hidden, total = output.hidden_states, torch.zeros((), device=ids.device)
        for index, (layer, head) in enumerate(HEADS.values()):
            row, _, source, target = targets.attention[targets.attention[:, 1] == index].long().T
            if len(row):
                weights = output.attentions[layer][row, head, source, target].float()
                total = total - (weights + 1e-6).log().mean()
        for layer in (1, 2):
            row, _, position, token = targets.letters[targets.letters[:, 1] == layer].long().T
            if len(row):
                logits = self.model.lm_head(self._normed(hidden[layer + 1][row, position]))
                total = total + cross_entropy(logits.float(), ids[row, token])
        if len(targets.edges):
            row, position = targets.edges[:, :2].long().T
            state = self._normed(hidden[3][row, position])
            total = total + self._off(state, targets.edges[:, 2:] - 0.5)
        if len(targets.tokens):
            row, position = targets.tokens[:, :2].long().T
            total = total + self._covered(hidden[0][row, position], targets.tokens, tower=True)
            total = total + self._covered(hidden[2][row, position], targets.tokens, tower=False)
        return WEIGHT * total

    def _covered(self, states: torch.Tensor, tokens: torch.Tensor, tower: bool) -> torch.Tensor:
        """What the states ``(n, hidden)`` of image tokens say of the shapes that they are of. Those
        of the tower are kept as long as words, the others also say which image they are of."""
        state, embedding = self._normed(states), self.model.get_input_embeddings().weight
        there = tokens[:, 2] < len(NAMES)
        several = torch.isin(tokens[:, 0], tokens[tokens[:, 11] > 0, 0])
        origin, total = tokens[:, [9, 10, 9, 10]] if tower else 0.5, states.new_zeros(())
        if tower:
            length = embedding.detach().norm(dim=-1).mean()
            total = 0.1 * (states.float().norm(dim=-1) / length - 1).square().mean()
        masks = (torch.ones_like(there), there, there, several & (not tower))
        for words, mask, index in zip(self.groups, masks, tokens[:, [2, 3, 4, 11]].T, strict=True):
            if mask.any():
                logits = state[mask] @ embedding[words].T
                total = total + cross_entropy(logits, index[mask].long().clamp(max=len(words) - 1))
        if there.any():
            total = total + self._off(state[there], (tokens[:, 5:9] - origin)[there])
        return total

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.model.language_model.norm(hidden.float())

    def _off(self, state: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return smooth_l1_loss(state @ self.directions, 4 * edges, beta=0.2)
