"""A frozen vision tower that sees no picture twice.

In outcome RL every picture comes up many times: in the prompts of a whole group of replies, in the policy's forward
pass, in that of the reference, and again an epoch later. As long as tower and merger are frozen, what they make of a
picture never changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import torch


class SeenImages:
    """What a frozen tower made of the pictures it saw; the one used longest ago is forgotten first.

    Args:
        most: Images that are remembered.
    """

    def __init__(self, most: int = 30_000) -> None:
        self.most, self.asked, self.encoded = most, 0, 0
        self.known: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def attach(self, model: Any) -> None:
        """Make a ``Qwen2_5_VLForConditionalGeneration`` look here first. Several models may share one memory when their
        towers are equal, as those of a policy and its reference are.

        Raises:
            ValueError: Its vision tower learns.
        """
        inner = model.model
        if any(parameter.requires_grad for parameter in inner.visual.parameters()):
            raise ValueError("only what a frozen vision tower makes of a picture can be remembered")
        encode = inner.get_image_features

        def remembered(
            pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **options: Any
        ) -> Any:
            return SimpleNamespace(
                pooler_output=self._find(encode, pixel_values, image_grid_thw, options)
            )

        inner.get_image_features = remembered

    def _find(
        self, encode: Any, pixels: torch.Tensor, grids: torch.Tensor, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        patches = torch.split(pixels, grids.prod(-1).tolist())
        keys = [_key(*picture) for picture in zip(patches, grids, strict=True)]
        new = {key: k for k, key in enumerate(keys) if key not in self.known}
        self.asked, self.encoded = self.asked + len(keys), self.encoded + len(new)
        found: dict[bytes, torch.Tensor] = {}
        if new:
            rows = list(new.values())
            with torch.no_grad():
                made = encode(
                    torch.cat([patches[k] for k in rows]), grids[rows], **options
                ).pooler_output
            # a slice of a batch's tensor would keep all of it in memory
            found = {key: tokens.detach().clone() for key, tokens in zip(new, made, strict=True)}
        for key in keys:
            found.setdefault(key, self.known.get(key))
            self.known[key] = found[key]
            self.known.move_to_end(key)
        while len(self.known) > self.most:
            self.known.popitem(last=False)
        return tuple(found[key] for key in keys)


def _key(patches: torch.Tensor, grid: torch.Tensor) -> bytes:
    content = patches.detach().cpu().contiguous().view(torch.uint8).numpy()
    return blake2b(content, digest_size=16, person=str(grid.tolist()).encode()[:16]).digest()
