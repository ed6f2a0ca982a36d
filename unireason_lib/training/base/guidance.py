"""Looking up a letter, shown hop by hop: which attention head looks where, in exercises with options.

To answer with the letter of an option that was named, a transformer has to do four things. Left to
itself, the tiny model does not find them in the time that a laptop has, because each is useless without the others.
So while it learns the text exercises, four heads are shown where to look:

1. *phrase* (layer 0): the last token of an option, and of what was said, looks at all tokens of its phrase, so that
   it stands for the whole ("left and upper" and "right and upper" end alike);
2. *mark* (layer 1): every token of an option looks at the letter in front of it;
3. *said* (layer 1): where a letter is due, look at the end of the phrase that was said;
4. *option* (layer 2): and from there at the end of the option that says the same.

The first is what longer options need.

Looking is not enough, what is seen must be handed on. So the letter is also read off early: behind layer 1 at the end
of every option, behind layer 2 where the letter is due, both through the final norm and the output layer of the model.

Guided attention is from speech synthesis (Tachibana et al. 2018, arXiv 1710.08969), a loss on early readings from
deeply supervised nets (Lee et al. 2015, arXiv 1409.5185). Neither touches the architecture. Exercises with
pictures are shown more (:mod:`unireason_lib.training.base.seeing`); fine-tuning and RL are trained without any of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from unireason_lib.grounding.model import base_model
from unireason_lib.training.base.seeing import Sights

HEADS: Mapping[str, tuple[int, int]] = {
    "phrase": (0, 0),
    "mark": (1, 0),
    "said": (1, 1),
    "option": (2, 0),
    "look": (2, 1),
    "number": (2, 1),
    "glance": (2, 1),
}
"""Hop -> layer and head that are shown it; where several tokens are to be looked at, alike at all of them. The last
three are of :mod:`unireason_lib.training.base.seeing`."""

VISION = -1
"""Stands for the input of layer 0, which holds what the vision tower makes of the pictures."""

WEIGHT = 0.3
"""Of the guidance beside the cross entropy of the tokens."""

LETTERS = "ABCD"

Hops = dict[str, list[tuple[int, int]]]


def find_hops(words: Sequence[str], own: Sequence[bool]) -> Hops:
    """Where to look from where, in one example.

    Args:
        words: Its tokens as text, spaces included.
        own: Whether the assistant wrote a token.

    Returns:
        Hop -> pairs (position that looks, position that is looked at). Letters behind which no option's text was said
        before are left out.
    """
    bare = [word.strip() for word in words]
    marks: dict[str, int] = {}
    ends: dict[str, int] = {}
    for k in range(1, len(words) - 2):
        if (
            not own[k]
            and bare[k] in LETTERS
            and bare[k]
            and bare[k + 1] == "."
            and "\n" in words[k - 1]
        ):
            end = k + 2
            while (
                end + 1 < len(words)
                and "\n" not in words[end + 1]
                and not words[end + 1].startswith("<|im")
            ):
                end += 1
            marks[bare[k]], ends[bare[k]] = k, end
    hops: Hops = {name: [] for name in HEADS}
    if not marks:
        return hops
    for letter, end in ends.items():
        text = range(marks[letter] + 2, end + 1)
        hops["mark"] += [(k, marks[letter]) for k in text]
        hops["phrase"] += [(end, k) for k in text]
    behind = max(ends.values())
    for k in range(behind + 1, len(words) - 1):
        if not (own[k] and bare[k] in ends and bare[k + 1] == "." and "\n" in words[k - 1]):
            continue
        last = bare[ends[bare[k]]].lower()
        said = next((j for j in range(k - 1, behind, -1) if bare[j].lower() == last), None)
        if said is not None:
            length = ends[bare[k]] - marks[bare[k]] - 1
            hops["phrase"] += [(said, j) for j in range(max(0, said - length + 1), said + 1)]
            hops["said"].append((k - 1, said))
            hops["option"].append((k - 1, ends[bare[k]]))
    return hops


def collate_hops(hops: Sequence[Hops]) -> dict[str, torch.Tensor]:
    """The hops of a batch, each ``(hops, 3)``: row, position that looks, position that is looked at."""
    return {
        name: torch.tensor(
            [(row, *hop) for row, one in enumerate(hops) for hop in one[name]], dtype=torch.long
        ).reshape(-1, 3)
        for name in HEADS
    }


class Guide:
    """Watches the attention and the hidden states of a model, and turns them into a loss.

    Args:
        model: A ``Qwen2_5_VLForConditionalGeneration``. One with fewer than three layers is guided in its last one.
        tokenizer: Its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = base_model(model)
        self.sights = Sights(self.model, tokenizer)
        self.attention: dict[int, torch.Tensor] = {}
        self.hidden: dict[int, torch.Tensor] = {}
        layers = self.model.model.language_model.layers
        self.layer = {name: min(layer, len(layers) - 1) for name, (layer, _) in HEADS.items()}
        layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        for k in set(self.layer.values()):
            layers[k].self_attn.register_forward_hook(self._keep_attention(k))
            layers[k].register_forward_hook(self._keep_hidden(k))

    def _keep_attention(self, k: int) -> Any:
        return lambda module, given, found: self.attention.__setitem__(k, found[1])

    def _keep_hidden(self, k: int) -> Any:
        return lambda module, given, found: self.hidden.__setitem__(
            k, found[0] if isinstance(found, tuple) else found
        )

    def _keep_input(self, module: Any, given: tuple, named: Mapping[str, Any]) -> None:
        self.hidden[VISION] = given[0] if given else named["hidden_states"]

    def watch(self, on: bool) -> None:
        """Only the plain implementation of attention gives its weights; switch to it, or back to the fast one."""
        self.model.model.language_model.config._attn_implementation = "eager" if on else "sdpa"

    def loss(
        self,
        hops: Mapping[str, torch.Tensor],
        ids: torch.Tensor,
        sights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """What to add to the loss of the forward pass that was just made.

        Args:
            hops: From :func:`collate_hops`.
            ids: ``(rows, tokens)``, the batch's token ids.
            sights: From :func:`unireason_lib.training.base.seeing.collate_sights`, where there are pictures.
        """
        total = torch.zeros(())
        for name, (_, head) in HEADS.items():
            row, start, end = hops[name].unbind(1)
            if len(row):
                total = (
                    total
                    - (self.attention[self.layer[name]][row, head, start, end] + 1e-6).log().mean()
                )
        row, end, mark = hops["mark"].unbind(1)
        if len(row):
            total = total + self._read_early(self.layer["mark"], row, end, ids[row, mark])
        row, due, _ = hops["option"].unbind(1)
        if len(row):
            total = total + self._read_early(self.layer["option"], row, due, ids[row, due + 1])
        row, due, _ = hops["number"].unbind(1)
        if len(row):
            total = total + self._read_early(self.layer["number"], row, due, ids[row, due + 1])
        if sights is not None and len(hops["look"]):
            behind = self.hidden[self.layer["look"]]
            total = total + self.sights.read_edges(behind, hops["look"], **sights)
        if sights is not None:
            total = total + self.sights.loss(self.hidden[VISION], **sights, relative=True)
            total = total + self.sights.loss(
                self.hidden[self.layer["mark"]], **sights, relative=False
            )
        self.attention.clear()
        self.hidden.clear()
        return WEIGHT * total

    def _read_early(
        self, layer: int, row: torch.Tensor, position: torch.Tensor, letters: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.model.model.language_model.norm(self.hidden[layer][row, position])
        return functional.cross_entropy(self.model.lm_head(hidden).float(), letters)
