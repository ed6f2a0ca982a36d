"""The bill: what each stage of a profile takes on given GPUs in memory, hours and money, or why it cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from unireason_lib.errors import PlanError
from unireason_lib.planning.machines import Cluster, Range, assumptions
from unireason_lib.planning.memory import STRATEGIES, Memory, memory
from unireason_lib.planning.shapes import Shape
from unireason_lib.planning.work import Sample, Work

STAGES = ("sft", "rl", "test")

RANK = 16
"""Of adapters, where a strategy has some and the profile names no rank."""


_QUANTISED = ("qlora", "frozen 4-bit")


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
        cluster: On what.
        strategies: Stage -> how the model is spread; of the test, how its weights are kept.
        shape: Of the model.
        samples: Dimension -> a typical question with its reply.
        lines: Parts of the bill.
        memory: Stage -> what one GPU holds.
        records, questions: Dimension -> how many are learnt from, and asked.
        served: Whether rollouts come from a server.
    """

    cluster: Cluster
    strategies: Mapping[str, str]
    shape: Shape
    samples: Mapping[str, Sample]
    lines: tuple[Line, ...]
    memory: Mapping[str, Memory]
    records: Mapping[str, int]
    questions: Mapping[str, int]
    served: bool = False

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
            "strategies": dict(self.strategies),
            "records": dict(self.records),
            "questions": dict(self.questions),
            "parameters": self.shape.total,
            "samples": {d: {"prompt": s.prompt, "injected": s.injected, "written": s.written, "tokens": s.tokens}
                        for d, s in self.samples.items()},
            "stages": [asdict(line) for line in self.lines],
            "memory": {stage: {**one.parts, "total": one.total, "limit": one.limit}
                       for stage, one in self.memory.items()},
        }  # fmt: skip


def strategy_of(profile: Any, cluster: Cluster, stage: str) -> str:
    """How a profile spreads a model over GPUs in a stage: adapters where it asks for them, else ZeRO-3 on several."""
    if stage == "test":
        return "frozen 4-bit" if profile.model.quantization == "4bit" else "frozen"
    if profile[stage].lora_rank is not None:
        return "qlora" if profile.model.quantization == "4bit" else "lora"
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
        strategy: One of :data:`~unireason_lib.planning.memory.STRATEGIES`; None: what the profile asks for, stage by
            stage (:func:`strategy_of`).
        records: Dimension -> records of fine-tuning; None: those of the paper.
        questions: Dimension -> questions of RL; None: what is assumed.
        stages: Which.
        served: Whether rollouts come from a vLLM server on as many GPUs again, which are rented for all of RL.

    Raises:
        PlanError: An unknown stage or strategy, settings that the trainer would refuse on these GPUs, or something that
            does not fit; the message names the nearest that does.
    """
    for name, known, found in (
        ("--stage", STAGES, stages),
        ("--strategy", STRATEGIES, [strategy] if strategy else []),
    ):
        if unknown := [one for one in found if one not in known]:
            raise PlanError(name, " or ".join(known), repr(unknown[0]), "choose one")
    ways = {
        stage: strategy if strategy and stage != "test" else strategy_of(profile, cluster, stage)
        for stage in stages
    }
    if strategy == "qlora" and "test" in ways:
        ways["test"] = "frozen 4-bit"
    _check_settings(profile, cluster, ways)
    held = {
        stage: _memory(stage, profile, shape, cluster, samples, way, served)
        for stage, way in ways.items()
    }
    for stage, one in held.items():
        if not one.fits:
            raise _refusal(stage, one, profile, shape, cluster, samples, ways[stage], served)
    records, questions = (
        records or assumptions()["records"],
        questions or assumptions()["questions"],
    )
    lines: list[Line] = []
    if "sft" in ways:
        lines += _sft(profile, shape, cluster, samples, ways["sft"], records)
    if "rl" in ways:
        lines += _rl(profile, shape, cluster, samples, ways["rl"], questions, served)
    if "test" in ways:
        lines += _test(profile, shape, cluster, samples, ways["test"])
    return Bill(cluster, ways, shape, samples, tuple(lines), held, records, questions, served)


def _check_settings(profile: Any, cluster: Cluster, ways: Mapping[str, str]) -> None:
    """What the trainers refuse on these GPUs, said before they are rented."""
    for stage in ways:
        if stage != "test" and profile[stage].bf16 and not cluster.bf16:
            raise PlanError(
                f"{stage} on {cluster.text}",
                "a GPU that multiplies in bfloat16",
                f"{stage}.bf16: true",
                f"--profile t4, or --set {stage}.bf16=false --set {stage}.fp16=true",
            )
    if "rl" not in ways:
        return
    replies, micro = profile.rl.mini_batch * profile.rl.rollouts, profile.rl.micro_batch
    if replies % (micro * cluster.count):
        fitting = [n for n in range(1, 2 * cluster.count + 1) if replies % (micro * n) == 0]
        near = min(fitting, key=lambda n: abs(n - cluster.count)) if fitting else 1
        raise PlanError(
            f"rl on {cluster.text}",
            "mini_batch x rollouts a multiple of micro_batch x GPUs",
            f"{profile.rl.mini_batch} x {profile.rl.rollouts} and {micro} x {cluster.count}",
            f"--gpus {near}x{cluster.gpu}, or change rl.micro_batch",
        )


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
    if stage == "test":
        cached = profile.evaluation.batch_size * longest
        kept = "frozen 4-bit" if strategy in _QUANTISED else "frozen"
        return memory(shape, cluster, kept, longest, cache=cached)
    settings = profile[stage]
    rank = settings.lora_rank or RANK
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
) -> PlanError:
    def fits(other: Cluster, way: str) -> bool:
        return _memory(stage, profile, shape, other, samples, way, served).fits

    ways = [way for way in STRATEGIES if stage != "test" and way != strategy and fits(cluster, way)]
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
        f"{name} {value / 1e9:.1f}"
        for name, value in sorted(found.parts.items(), key=lambda p: -p[1])
    )
    smaller = {
        "sft": "sft.batch_size",
        "rl": "rl.micro_batch or rl.generated_together",
        "test": "evaluation.batch_size",
    }
    nearest.append(f"a smaller {smaller[stage]}, or shorter samples")
    said = f"{found.total / 1e9:.1f} GB ({parts})"
    if found.loading > found.total:
        said = f"{found.loading / 1e9:.1f} GB while it is loaded, before it is spread"
    return PlanError(
        f"{stage}, {strategy} on {cluster.text}",
        expected=f"at most {found.limit / 1e9:.1f} GB on a GPU",
        found=said,
        do="; or ".join(nearest),
    )


# -- time ---------------------------------------------------------------------------------------------------------


def _reached(kind: str, strategy: str) -> Range:
    reached = assumptions()["reached"]
    if kind == "training" and strategy in ("lora", "qlora"):
        kind = "adapters"
    found = Range(*reached[kind])
    return found.times(0.5) if strategy in _QUANTISED else found


def _line(
    stage: str, what: str, flops: float, seconds: Range, cluster: Cluster, gpus: int | None = None
) -> Line:
    hours = seconds.times(1 / 3600)
    count = cluster.count if gpus is None else gpus
    cost = Range(hours.low * cluster.price.low * count, hours.high * cluster.price.high * count)
    return Line(stage, what, flops, hours, cost)


def _computed(
    stage: str,
    what: str,
    flops: float,
    cluster: Cluster,
    strategy: str,
    kind: str,
    gpus: int | None = None,
) -> Line:
    reached = _reached(kind, strategy)
    peak = cluster.peak * cluster.count
    seconds = Range(flops / (peak * reached.high), flops / (peak * reached.low))
    return _line(stage, what, flops, seconds, cluster, gpus)


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
        settings.steps / each
        if settings.steps
        else max(1.0, settings.epochs * total / settings.prompts)
    )
    parallel, words, learning, reading = 0.0, 0.0, 0.0, 0.0
    for d, part in share.items():
        once, one_by_one = work.writing(samples[d], settings.rollouts)
        asked = generations * settings.prompts * part
        parallel, words = parallel + asked * once, words + asked * one_by_one
        learning += asked * settings.rollouts * work.learning(samples[d])
        reading += asked * settings.rollouts * work.reading(samples[d])
    # the reference; the policy, before several steps, or since a server's numbers are a little others
    scored = reading * ((settings.kl > 0) + (each > 1 or served))
    written = (
        max(sample.written for sample in samples.values()) * 1.5
    )  # the longest of a batch is waited for
    replies = settings.prompts * settings.rollouts / cluster.count
    together = min(replies, (settings.generated_together or settings.prompts) * settings.rollouts)
    seconds = _writing_seconds(
        shape,
        cluster,
        strategy,
        samples,
        written,
        together,
        generations * replies / together,
        served,
    )
    rollouts = _computed("rl", "", parallel, cluster, strategy, "scoring")
    hours = Range(
        seconds.low / 3600 + rollouts.hours.low, seconds.high / 3600 + rollouts.hours.high
    )
    gpus = cluster.count * (2 if served else 1)  # rented for all of RL
    what = (
        f"rollouts: {generations:,.0f} x {settings.prompts} questions x {settings.rollouts} replies"
    )
    return [
        _line("rl", what, parallel + words, hours.times(3600), cluster, gpus),
        _computed("rl", "log-probabilities", scored, cluster, strategy, "scoring", gpus),
        _computed("rl", "updates", learning, cluster, strategy, "training", gpus),
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
    again = 2 if strategy in _QUANTISED else 1  # unpacked in every step
    return Range(batches * tokens * fast, batches * tokens * slow * again)


def _test(
    profile: Any, shape: Shape, cluster: Cluster, samples: Mapping[str, Sample], strategy: str
) -> list[Line]:
    settings, work = profile.evaluation, Work(shape)
    # notebook 06: all with pictures and without; three controls; twice as many about textures, looked at in three ways
    asked = 2 * settings.questions + (3 + 2 * 3) * settings.control_questions
    flops, words = 0.0, 0.0
    for sample in samples.values():
        once, one_by_one = work.writing(sample, 1)
        flops, words = (
            flops + asked / len(samples) * once,
            words + asked / len(samples) * one_by_one,
        )
    batches = math.ceil(asked / settings.batch_size)
    written = max(sample.written for sample in samples.values()) * 1.5
    single = replace(cluster, count=1)  # one process asks
    seconds = _writing_seconds(
        shape, single, strategy, samples, written, settings.batch_size, batches, False
    )
    read = _computed("test", "", flops, single, strategy, "scoring").hours.times(3600)
    return [
        _line(
            "test",
            f"{asked:,} questions and controls, on one GPU",
            flops + words,
            seconds + read,
            single,
        )
    ]
