"""The same replies from a model behind a vLLM server: write up to a box, crop here, send the longer prompt, write on.

The server sees token ids and pictures only and knows nothing of boxes: they are stop tokens to it. What is sent after a
box begins with what was sent before, so its prefix cache keeps the slices and the reply so far, and only the crop is
new. The client is TRL's (``trl.generation.vllm_client.VLLMClient``), which also carries the weights of outcome RL to
the server; anything with its two methods ``image_features`` and ``generate`` will do.

    export VLLM_SERVER_DEV_MODE=1
    vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs --limit-mm-per-prompt.image 256

``--enable-scale-out`` is asked for by vLLM 0.30 and later, and unknown to earlier versions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from unireason_lib.errors import RequestError, explain
from unireason_lib.grounding.replies import GroundedInterface, Replies, Row, Script, Settings
from unireason_lib.grounding.trace import GroundedRequest, Trace


class Client(Protocol):
    """What is needed of a server's client; see TRL's ``VLLMClient`` for the arguments."""

    def image_features(self, images: list[list | None]) -> list[dict | None]:
        """Pictures as the server processed them, for each prompt."""
        ...

    def generate(self, prompts: list[list[int]], **arguments: Any) -> dict[str, list]:
        """``completion_ids`` and ``logprobs`` of ``n`` continuations of each prompt."""
        ...


class ServedGenerator(GroundedInterface):
    """Generates grounded replies through a server; called like
    :class:`~unireason_lib.grounding.GroundedGenerator`.

    Sampled replies are not repeatable: a seed would give equal prompts equal continuations. Scripts are for models in
    this process.

    Args:
        client: Of the server.
        processor: Of the model that the server serves: boxes are read, and crops cut, in its scale.
        ends: Ids of tokens that end a turn, besides the tokenizer's own.
    """

    def __init__(self, client: Client, processor: Any, ends: Sequence[int] = ()) -> None:
        tokenizer = processor.tokenizer
        known = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), *ends}
        super().__init__(processor, processor.image_token_id, frozenset(t for t in known if t is not None))
        self.client = client

    def _replies(
        self,
        requests: Sequence[GroundedRequest],
        first: int,
        settings: Settings,
        samples: int,
        scripts: Sequence[Script | None],
    ) -> list[Trace]:
        if any(script is not None for script in scripts):
            raise RequestError(
                explain(
                    "generate",
                    expected="no scripts",
                    found="one",
                    do="use a model in this process: a server writes what it likes",
                )
            )
        return _ServedBatch(self, requests, first, settings, samples).run()


class _ServedBatch(Replies):
    """Rounds of writing: all rows that still write are sent together."""

    gen: ServedGenerator

    def run(self) -> list[Trace]:
        """Generate until every reply is complete."""
        shown = self.gen.client.image_features([_rgb(row.request.images) for row in self.rows])
        prompts = [row.prompt_ids for row in self.rows]
        self.rows = self._sampled()
        self.pictures = [features for features in shown for _ in range(self.samples)]
        self._write(self.rows, self._ask(prompts, shown, self.settings.max_new_tokens, self.samples))
        while alive := [k for k, row in enumerate(self.rows) if row.running]:
            self._fetch_features(alive)
            rows = [self.rows[k] for k in alive]
            left = self.settings.max_new_tokens - min(row.written for row in rows)
            told = [[*row.prompt_ids, *row.ids] for row in rows]
            self._write(rows, self._ask(told, [self.pictures[k] for k in alive], left, 1))
        return [self._trace(row) for row in self.rows]

    def _ask(
        self, prompts: list[list[int]], features: Sequence[Mapping[str, Any] | None], tokens: int, n: int
    ) -> list[tuple[list[int], list[float], int]]:
        """The continuations of some prompts: tokens, their log-probabilities, and how many tokens were allowed."""
        placed = [self._placed(one, prompt) for one, prompt in zip(features, prompts, strict=True)]
        alike = (
            n if self.settings.temperature == 0 else 1
        )  # a server refuses to write greedily more than once
        found = self.gen.client.generate(
            prompts,
            features=placed,
            n=n // alike,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            max_tokens=tokens,
            logprobs=0,
            generation_kwargs={
                "stop_token_ids": sorted({self.gen.box_end, *self.gen.ends}),
                "logit_bias": {str(token): -100 for token in self.gen.never_written},
                "skip_special_tokens": False,
            },
        )
        told = [[first if first is not None else 0.0 for first, *_ in one] for one in found["logprobs"]]
        replies = [(ids, one, tokens) for ids, one in zip(found["completion_ids"], told, strict=True)]
        return [reply for reply in replies for _ in range(alike)]

    def _write(self, rows: Sequence[Row], found: Sequence[tuple[list[int], list[float], int]]) -> None:
        for row, (ids, logprobs, allowed) in zip(rows, found, strict=True):
            stopped = bool(ids) and (ids[-1] in self.gen.ends or ids[-1] == self.gen.box_end)
            if not ids or (len(ids) < allowed and not stopped):
                raise RequestError(
                    explain(
                        row.request.id or "a reply",
                        expected="tokens from the server, the one that stopped it included",
                        found=f"{len(ids)} tokens of {allowed}",
                        do="check the version of vLLM (the extras name the one that is meant) and its log",
                    )
                )
            for token, logprob in zip(ids, logprobs, strict=True):
                if not row.running:  # more was asked for than this row may write
                    break
                self._accept(row, token, logprob)

    def _fetch_features(self, alive: Sequence[int]) -> None:
        """Have the server process the crops that were fetched in this round."""
        new = [k for k in alive if self.rows[k].waiting]
        if not new:
            return
        crops = [_rgb(self.rows[k].pointings[-1].crops) for k in new]
        for k, features in zip(new, self.gen.client.image_features(crops), strict=True):
            self.pictures[k] = _joined(self.pictures[k], features)
            self.rows[k].waiting = False

    def _placed(self, features: Mapping[str, Any] | None, ids: Sequence[int]) -> dict[str, Any] | None:
        """Pictures with the places of their tokens in a prompt."""
        if features is None:
            return None
        places, start = [], None
        for place, token in enumerate([*ids, -1]):
            if token == self.gen.image_token:
                start = place if start is None else start
            elif start is not None:
                places.append({"offset": start, "length": place - start})
                start = None
        known = len(features["mm_placeholders"]["image"])
        if len(places) != known:
            raise RequestError(
                explain(
                    "a prompt",
                    expected=f"{known} pictures, as the server processed",
                    found=f"{len(places)} in its tokens",
                    do="check that server and processor are of the same model",
                )
            )
        return {**features, "mm_placeholders": {**features["mm_placeholders"], "image": places}}


def _joined(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The pictures of both, in order; each part of the features lists them by kind."""
    if one is None or other is None:
        return None if one is other else dict(one or other or {})
    return {
        part: {kind: [*one[part][kind], *other[part][kind]] for kind in one[part]}
        if isinstance(one[part], Mapping)
        else one[part]
        for part in one
    }


def _rgb(pictures: Sequence[Any]) -> list[Any]:
    return [picture if picture.mode == "RGB" else picture.convert("RGB") for picture in pictures]


def connect(address: str, patience: float = 240.0) -> Client:
    """TRL's client of a vLLM server.

    Args:
        address: ``http://host:port``.
        patience: Seconds to wait for the server.

    Raises:
        RequestError: No server answers there, or vLLM is not installed here.
    """
    from trl.generation.vllm_client import VLLMClient

    began = time.monotonic()
    try:
        return VLLMClient(base_url=address, connection_timeout=patience)
    except (ImportError, OSError) as error:  # requests' errors are OSErrors
        raise RequestError(
            explain(
                address,
                expected="a vLLM server",
                found=f"{error} ({time.monotonic() - began:.0f} s)",
                do="install the extra vllm and start: vllm serve MODEL --enable-scale-out --logprobs-mode "
                "processed_logprobs",
            )
        ) from error
