"""Replies from a model behind a vLLM server: write to a box, crop here, send both, write on.

The server knows nothing of boxes: they are stop tokens to it. What is sent after a box begins with
what was sent before, so its prefix cache keeps slices and reply, and only the crop is new. The
client is TRL's, which also carries the weights of outcome RL to the server.

    export VLLM_SERVER_DEV_MODE=1
    vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs \\
        --limit-mm-per-prompt.image 256

``--enable-scale-out`` is asked for by vLLM 0.30 and later, and unknown to earlier versions.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from unireason_lib.errors import RequestError
from unireason_lib.grounding.replies import GroundedInterface, Row

Features = Mapping[str, Any]  # images of a prompt, processed: hashes, places in it, data
Client = Any  # TRL's ``VLLMClient``: ``image_features`` and ``generate`` are called


class ServedGenerator(GroundedInterface):
    """Generates through a server; called like :class:`~unireason_lib.grounding.GroundedGenerator`.
    The processor is that of the served model; ``ends`` are tokens that end a turn besides its own.
    Sampled replies cannot be repeated: a seed would give equal prompts equal continuations."""

    def __init__(self, client: Client, processor: Any, ends: Sequence[int] = ()) -> None:
        tokenizer = processor.tokenizer
        known = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>"), *ends}
        super().__init__(processor, processor.image_token_id, frozenset(known - {None}))
        self.client = client

    def _complete(self, rows: list[Row], samples: int) -> list[Row]:
        """Rounds of writing: all rows that still write are sent together."""
        if any(row.script is not None for row in rows):
            do = "use a model in this process: a server writes what it likes"
            raise RequestError("generate", "no scripts", "one", do)
        processed = self.client.image_features([list(row.request.images) for row in rows])
        features = dict(zip(rows, processed, strict=True))  # of a row's images and crops
        replies = self._continued(features, samples)
        features = {copy: features[row] for row in rows for copy in row.sampled(samples)}
        self._accept(features, replies)
        while alive := [row for row in features if row.stop is None]:
            if waiting := [row for row in alive if row.waiting]:
                crops = [list(row.pointings[-1].crops) for row in waiting]
                for row, more in zip(waiting, self.client.image_features(crops), strict=True):
                    features[row], row.waiting = _joined(features[row], more), False
            self._accept(alive, self._continued({row: features[row] for row in alive}, 1))
        return list(features)

    def _continued(
        self, features: Mapping[Row, Features | None], n: int
    ) -> list[tuple[list[int], list[float]]]:
        """``n`` continuations of each row: tokens and their log-probabilities."""
        settings = next(iter(features)).settings
        copies = n if settings.temperature == 0 else 1  # servers refuse greedy n > 1
        prompts = [[*row.prompt_ids, *row.ids] for row in features]
        answer = self.client.generate(
            prompts,
            features=[self._placed(*one) for one in zip(features.values(), prompts, strict=True)],
            n=n // copies,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=_budget(features),
            logprobs=0,
            generation_kwargs={
                "stop_token_ids": sorted({self.box_end, *self.ends}),
                "logit_bias": {str(token): -100 for token in self.never_written},
                "skip_special_tokens": False,
            },
        )
        logprobs = [[step[0] or 0.0 for step in steps] for steps in answer["logprobs"]]
        replies = zip(answer["completion_ids"], logprobs, strict=True)
        return [reply for reply in replies for _ in range(copies)]

    def _accept(
        self, rows: Collection[Row], replies: Sequence[tuple[list[int], list[float]]]
    ) -> None:
        budget = _budget(rows)
        for row, (ids, logprobs) in zip(rows, replies, strict=True):
            stopped = bool(ids) and ids[-1] in {self.box_end, *self.ends}
            if not ids or (len(ids) < budget and not stopped):
                expected = "tokens from the server, the one that stopped it included"
                do, found = "check the version of vLLM and its log", f"{len(ids)} of {budget}"
                raise RequestError(row.request.id or "a reply", expected, found, do)
            for token, logprob in zip(ids, logprobs, strict=True):
                if row.stop is None:  # the budget is that of the shortest row
                    row.accept(token, logprob)

    def _placed(self, features: Features | None, ids: Sequence[int]) -> Features | None:
        if features is None:
            return None
        places, place = [], 0
        for is_image, run in groupby(token == self.image_token for token in ids):
            length = len(list(run))
            places += [{"offset": place, "length": length}] if is_image else []
            place += length
        processed = len(features["mm_placeholders"]["image"])
        if len(places) != processed:
            do = "check that server and processor are of the same model"
            raise RequestError("a prompt", f"{processed} images, as processed", len(places), do)
        return {**features, "mm_placeholders": {**features["mm_placeholders"], "image": places}}


def _budget(rows: Iterable[Row]) -> int:
    """Tokens that the row with the shortest reply may still write."""
    return max(row.settings.max_new_tokens - row.written for row in rows)


def _joined(one: Features | None, other: Features | None) -> Features | None:
    """The images of both, in order; each part of the features lists them by kind."""
    if one is None or other is None:
        return one or other
    joined = dict(one)
    for part, lists in one.items():
        if isinstance(lists, Mapping):
            joined[part] = {kind: [*lists[kind], *other[part][kind]] for kind in lists}
    return joined


def connect(address: str, patience: float = 240.0) -> Client:
    """TRL's client of the vLLM server at ``http://host:port``. A :class:`RequestError` when none
    answers within ``patience`` seconds, or vLLM is not installed here."""
    from trl.generation.vllm_client import VLLMClient

    try:
        return VLLMClient(base_url=address, connection_timeout=patience)
    except (ImportError, OSError) as error:  # requests' errors are OSErrors
        flags = "--enable-scale-out --logprobs-mode processed_logprobs"
        do = f"install the extra vllm and start: vllm serve MODEL {flags}"
        raise RequestError(address, "a vLLM server", str(error), do) from error
