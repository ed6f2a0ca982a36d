"""The bill: what each stage of a profile takes on given GPUs in memory, hours and money, or why it cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unireason_lib.errors import PlanError, explain
from unireason_lib.planning.machines import Cluster, Range, assumptions
from unireason_lib.planning.memory import STRATEGIES, Memory, memory
from unireason_lib.planning.shapes import Shape
from unireason_lib.planning.work import Sample, Work

STAGES = ("sft", "rl", "test")


@dataclass(frozen=True)
class Line:
    """A part of the bill.

    Attributes:
        stage: Of :data:`STAGES`.
        what: In words.
        flops: Operations in all.
        hours: From the start to the end, from good to bad use of the GPUs.
        cost: US dollars.
    """

    stage: str
    what: str
    flops: float
    hours: Range
    cost: Range


@dataclass(frozen=True)
class Bill:
    """What a profile costs on given GPUs.

    Attributes:
        cluster, strategy: On what, and how the model is spread.
        shape: Of the model.
        samples: Dimension -> a typical question with its reply.
        lines: Parts of the bill.
        memory: Stage -> what one GPU holds.
    """

    cluster: Cluster
    strategy: str
    shape: Shape
    samples: Mapping[str, Sample]
    lines: tuple[Line, ...]
    memory: Mapping[str, Memory]

    def hours(self, stage: str) -> Range:
        """Of all parts of a stage."""
        total = Range(0.0, 0.0)
        for line in self.lines:
            if line.stage == stage:
                total = total + line.hours
        return total

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "cluster": asdict(self.cluster),
            "strategy": self.strategy,
            "parameters": self.shape.total,
            "samples": {d: {"prompt": s.prompt, "injected": s.injected, "written": s.written, "tokens": s.tokens}
                        for d, s in self.samples.items()},
            "stages": [asdict(line) for line in self.lines],
            "memory": {stage: {**one.parts, "total": one.total, "limit": one.limit}
                       for stage, one in self.memory.items()},
        }  # fmt: skip


def strategy_of(profile: Any, cluster: Cluster) -> str:
    """How a profile spreads a model over GPUs: adapters where it asks for them, else ZeRO-3 on several."""
    if profile.model.quantization == "4bit":
        return "qlora"
    if profile.sft.lora_rank is not None:
        return "lora"
    return "zero3" if cluster.count > 1 else "ddp"


def bill(
    profile: Any,
    shape: Shape,
    cluster: Cluster,
    samples: Mapping[str, Sample],
    *,
    strategy: str | None = None,
    records: Mapping[str, int] | None = None,
    questions: Mapping[str, int] | None = None,
    stages: tuple[str, ...] = STAGES,
    served: bool = False,
) -> Bill:
    """Add up what the stages of a profile cost.

    Args:
        profile: Its ``sft``, ``rl`` and ``evaluation`` say how much is done.
        shape: Of the model.
        cluster: The GPUs.
        samples: Dimension -> a typical question with its reply; see :func:`~unireason_lib.planning.work.samples_of`.
        strategy: One of :data:`~unireason_lib.planning.memory.STRATEGIES`; None: :func:`strategy_of`.
        records: Dimension -> records of fine-tuning; None: those of the paper.
        questions: Dimension -> questions of RL; None: what is assumed.
        stages: Which.
        served: Whether rollouts come from a vLLM server (on as many GPUs again, whose price is added).

    Raises:
        PlanError: It does not fit; the message names the nearest that does.
    """
    strategy = strategy or strategy_of(profile, cluster)
    if strategy not in STRATEGIES:
        raise PlanError(
            explain("--strategy", expected=" or ".join(STRATEGIES), found=repr(strategy), do="choose one")
        )
    held = {stage: _memory(stage, profile, shape, cluster, samples, strategy, served) for stage in stages}
    for stage, one in held.items():
        if not one.fits:
            raise PlanError(_refusal(stage, one, profile, shape, cluster, samples, strategy, served))
    assumed = assumptions()
    lines: list[Line] = []
    if "sft" in stages:
        lines += _sft(profile, shape, cluster, samples, strategy, records or assumed["records"])
    if "rl" in stages:
        lines += _rl(profile, shape, cluster, samples, strategy, questions or assumed["questions"], served)
    if "test" in stages:
        lines += _test(profile, shape, cluster, samples, strategy)
    return Bill(cluster, strategy, shape, samples, tuple(lines), held)


# -- memory -------------------------------------------------------------------------------------------------------


def _memory(
    stage: str,
    profile: Any,
    shape: Shape,
    cluster: Cluster,
    samples: Mapping[str, Sample],
    strategy: str,
    served: bool,
) -> Memory:
    longest = max(sample.tokens for sample in samples.values())
    settings = profile.rl if stage == "rl" else profile.sft
    rank = settings.lora_rank or 16
    if stage == "test":
        cached = profile.evaluation.batch_size * longest
        return memory(
            shape, cluster, "frozen 4-bit" if strategy == "qlora" else "frozen", longest, cache=cached
        )
    together, cache = settings.batch_size if stage == "sft" else settings.micro_batch, 0
    if stage == "rl" and not served:
        each = settings.generated_together or math.ceil(settings.prompts / cluster.count)
        cache = each * settings.rollouts * longest
    return memory(
        shape,
        cluster,
        strategy,
        together * longest,
        rank=rank,
        checkpointing=settings.gradient_checkpointing,
        reference=stage == "rl" and settings.kl > 0,
        cache=cache,
    )


def _refusal(
    stage: str,
    found: Memory,
    profile: Any,
    shape: Shape,
    cluster: Cluster,
    samples: Mapping[str, Sample],
    strategy: str,
    served: bool,
) -> str:
    def fits(other: Cluster, way: str) -> bool:
        return _memory(stage, profile, shape, other, samples, way, served).fits

    ways = [way for way in STRATEGIES if way != strategy and fits(cluster, way)]
    nearest = [f"--strategy {' or '.join(ways)} on {cluster.text}"] if ways else []
    more = [replace(cluster, count=cluster.count * 2**k) for k in range(1, 7)]
    nearest += [f"--gpus {other.text}" for other in more if fits(other, strategy)][:1]
    larger = sorted(assumptions()["gpus"].items(), key=lambda item: item[1]["memory"])
    for name, _ in larger:
        other = Cluster.named(f"{cluster.count}x{name}")
        if other.memory > cluster.memory and fits(other, strategy):
            nearest.append(f"--gpus {other.text}")
            break
    parts = ", ".join(
        f"{name} {value / 1e9:.1f}" for name, value in sorted(found.parts.items(), key=lambda p: -p[1])
    )
    return explain(
        f"{stage}, {strategy} on {cluster.text}",
        expected=f"at most {found.limit / 1e9:.1f} GB on a GPU",
        found=f"{found.total / 1e9:.1f} GB ({parts})",
        do="; or ".join(nearest) or "shorten the samples, or take a smaller model",
    )


# -- time ---------------------------------------------------------------------------------------------------------


def _reached(kind: str, strategy: str) -> Range:
    reached = assumptions()["reached"]
    if kind == "training" and strategy in ("lora", "qlora"):
        kind = "adapters"
    found = Range(*reached[kind])
    return found.times(0.5) if strategy == "qlora" else found


def _line(
    stage: str, what: str, flops: float, seconds: Range, cluster: Cluster, gpus: int | None = None
) -> Line:
    hours = seconds.times(1 / 3600)
    count = cluster.count if gpus is None else gpus
    cost = Range(hours.low * cluster.price.low * count, hours.high * cluster.price.high * count)
    return Line(stage, what, flops, hours, cost)


def _computed(stage: str, what: str, flops: float, cluster: Cluster, strategy: str, kind: str) -> Line:
    reached = _reached(kind, strategy)
    peak = cluster.peak * cluster.count
    return _line(
        stage, what, flops, Range(flops / (peak * reached.high), flops / (peak * reached.low)), cluster
    )


def _work(settings: Any, shape: Shape, strategy: str) -> Work:
    return Work(
        shape,
        adapters=strategy in ("lora", "qlora"),
        checkpointing=settings.gradient_checkpointing,
        features_kept=settings.keep_features,
    )


def _sft(
    profile: Any,
    shape: Shape,
    cluster: Cluster,
    samples: Mapping[str, Sample],
    strategy: str,
    records: Mapping[str, int],
) -> list[Line]:
    settings, work = profile.sft, _work(profile.sft, shape, strategy)
    total = sum(records.values())
    step = settings.batch_size * settings.accumulation * cluster.count
    passes = settings.steps * step / total if settings.steps else settings.epochs
    flops = sum(passes * count * work.learning(samples[d]) for d, count in records.items() if count)
    once = 0.0
    if settings.keep_features:
        tower = Work(shape)
        once = sum(count * tower.seeing(samples[d]) for d, count in records.items() if count)
    what = f"{passes:.3g} passes over {total:,} records"
    return [_computed("sft", what, flops + once, cluster, strategy, "training")]


def _rl(
    profile: Any,
    shape: Shape,
    cluster: Cluster,
    samples: Mapping[str, Sample],
    strategy: str,
    questions: Mapping[str, int],
    served: bool,
) -> list[Line]:
    settings, work = profile.rl, _work(profile.rl, shape, strategy)
    total = sum(questions.values())
    share = {d: count / total for d, count in questions.items()}
    each = settings.prompts // settings.mini_batch
    generations = (
        settings.steps / each if settings.steps else max(1.0, settings.epochs * total / settings.prompts)
    )
    parallel, words, learning, reading = 0.0, 0.0, 0.0, 0.0
    for d, part in share.items():
        once, one_by_one = work.writing(samples[d], settings.rollouts)
        asked = generations * settings.prompts * part
        parallel, words = parallel + asked * once, words + asked * one_by_one
        learning += asked * settings.rollouts * work.learning(samples[d])
        reading += asked * settings.rollouts * work.reading(samples[d])
    scored = reading * ((settings.kl > 0) + (each > 1))  # the reference; the policy before several steps
    written = max(sample.written for sample in samples.values()) * 1.5  # the longest of a batch is waited for
    replies = settings.prompts * settings.rollouts / cluster.count
    together = min(replies, (settings.generated_together or settings.prompts) * settings.rollouts)
    seconds = _writing_seconds(
        shape, cluster, strategy, samples, written, together, generations * replies / together, served
    )
    rollouts = _computed("rl", "", parallel, cluster, strategy, "scoring")
    hours = Range(seconds.low / 3600 + rollouts.hours.low, seconds.high / 3600 + rollouts.hours.high)
    gpus = cluster.count * (2 if served else 1)
    what = f"rollouts: {generations:,.0f} x {settings.prompts} questions x {settings.rollouts} replies"
    return [
        _line("rl", what, parallel + words, hours.times(3600), cluster, gpus),
        _computed("rl", "log-probabilities", scored, cluster, strategy, "scoring"),
        _computed("rl", "updates", learning, cluster, strategy, "training"),
    ]


def _writing_seconds(
    shape: Shape,
    cluster: Cluster,
    strategy: str,
    samples: Mapping[str, Sample],
    tokens: float,
    together: float,
    batches: float,
    served: bool,
) -> Range:
    """Token by token: what the weights and the cache take to be read, or what launching a step takes, whichever is
    longer."""
    assumed = assumptions()
    context = max(sample.tokens for sample in samples.values())
    weights = 2.0 * shape.language
    cache = 2.0 * 2 * together * context * shape.layers * shape.keys
    bandwidth, launch = (
        Range(*assumed["reached"]["bandwidth"]),
        assumed["token_step_served" if served else "token_step"],
    )
    slow = max((weights + cache) / (cluster.bandwidth * bandwidth.low), launch[0])
    fast = max((weights + cache) / (cluster.bandwidth * bandwidth.high), launch[1])
    again = 2 if strategy == "qlora" else 1  # unpacked in every step
    return Range(batches * tokens * fast, batches * tokens * slow * again)


def _test(
    profile: Any, shape: Shape, cluster: Cluster, samples: Mapping[str, Sample], strategy: str
) -> list[Line]:
    settings, work = profile.evaluation, Work(shape)
    asked = settings.questions + settings.control_questions
    flops, words = 0.0, 0.0
    for sample in samples.values():
        once, one_by_one = work.writing(sample, 1)
        flops, words = flops + asked / len(samples) * once, words + asked / len(samples) * one_by_one
    batches = math.ceil(asked / settings.batch_size)
    written = max(sample.written for sample in samples.values()) * 1.5
    single = replace(cluster, count=1)  # one process asks
    seconds = _writing_seconds(shape, single, strategy, samples, written, settings.batch_size, batches, False)
    read = _computed("test", "", flops, single, strategy, "scoring").hours.times(3600)
    return [_line("test", f"{asked:,} questions, on one GPU", flops + words, seconds + read, single)]
