"""What vLLM 0.31 accepts and answers on the two paths that rollouts use, as far as they use it.

Written after its request and response models (``vllm/entrypoints/scale_out/token_in_token_out/protocol.py`` and
``vllm/sampling_params.py`` of that version): names, types and what is refused. The stand-in of the tests checks every
request against them, and answers through them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """A body in which nothing unknown may stand: the server would pass over it, and the caller would not notice."""

    model_config = ConfigDict(extra="forbid")


class Placeholder(Strict):
    """Where the tokens of one picture are in the prompt."""

    offset: int = Field(ge=0)
    length: int = Field(gt=0)


class Features(Strict):
    """Pictures, as ``/v1/chat/completions/render`` processed them."""

    mm_hashes: dict[str, list[str]]
    mm_placeholders: dict[str, list[Placeholder]]
    kwargs_data: dict[str, list[str | None]] | None = None
    mm_metadata: dict[str, list[str | None]] | None = None

    @model_validator(mode="after")
    def _parallel(self) -> Features:
        for name in ("mm_placeholders", "kwargs_data", "mm_metadata"):
            part = getattr(self, name)
            assert part is None or {k: len(v) for k, v in part.items()} == {
                k: len(v) for k, v in self.mm_hashes.items()
            }, f"{name} must be as long as mm_hashes"
        ranges = sorted(
            (p.offset, p.offset + p.length) for found in self.mm_placeholders.values() for p in found
        )
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges)), "overlap"
        return self


class Sampling(Strict):
    """``SamplingParams``, the fields that TRL's client and ours send."""

    n: int = Field(default=1, ge=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=2)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    max_tokens: int = Field(default=16, ge=1)
    logprobs: int | None = None
    structured_outputs: Any = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    output_kind: int = 0
    logit_bias: dict[int, float] | None = None

    @model_validator(mode="after")
    def _greedy(self) -> Sampling:
        assert self.temperature > 0 or self.n == 1, "greedy sampling takes n = 1"
        return self


class GenerateRequest(Strict):
    """Body of ``/inference/v1/generate``."""

    request_id: str
    model: str | None = None
    token_ids: list[int] = Field(min_length=1)
    features: Features | None = None
    sampling_params: Sampling

    @field_validator("token_ids")
    @classmethod
    def _tokens(cls, ids: list[int]) -> list[int]:
        assert min(ids) >= 0, "token_ids must not be negative"
        return ids

    @model_validator(mode="after")
    def _inside(self) -> GenerateRequest:
        places = [
            p for found in (self.features.mm_placeholders.values() if self.features else ()) for p in found
        ]
        assert all(p.offset + p.length <= len(self.token_ids) for p in places), (
            "placeholders outside of the prompt"
        )
        return self


class LogProb(BaseModel):
    """Of one token."""

    token: str
    logprob: float = -9999.0
    bytes: list[int] | None = None
    top_logprobs: list[Any] = Field(default_factory=list)


class LogProbs(BaseModel):
    """Of all tokens of a choice."""

    content: list[LogProb] | None = None


class Choice(BaseModel):
    """One continuation."""

    index: int
    logprobs: LogProbs | None = None
    finish_reason: str | None = "stop"
    token_ids: list[int] | None = None


class GenerateResponse(BaseModel):
    """Answer of ``/inference/v1/generate``."""

    request_id: str
    choices: list[Choice]


class Rendered(BaseModel):
    """Answer of ``/v1/chat/completions/render``, of which the client takes ``features``."""

    request_id: str
    token_ids: list[int]
    features: Features | None = None
