"""What a training run takes in memory, hours and money, before a GPU is rented.

Parameters and floating-point operations (FLOPs) are counted on the model itself: on PyTorch's meta
device every tensor has its shape and no memory, and ``FlopCounterMode`` adds up what each operation
would cost. (It counts all of the attention square; kernels that skip the masked half save 7 % at
3,000 tokens.) Weights, gradients and optimizer are accelerate's estimate; activations, keys and
values, and sharding are estimated here. How well GPUs are used is not known before a run, so hours
are a range. All assumptions are in ``configs/planning.yaml``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from unireason_lib.backbones import BACKBONES, backbone_of
from unireason_lib.errors import ModelError, PlanError
from unireason_lib.imaging.frame import ProcessorFrame

KNOWN = yaml.safe_load((Path(__file__).parent / "configs/planning.yaml").read_text("utf-8"))
"""Published models, GPUs, and assumptions."""

STAGES = ("sft", "grpo")
SHARDING = ("ddp", "fsdp", "zero3")
"""Every GPU holds the model; or weights, gradients and optimizer are sharded, by PyTorch's FSDP2 or
by DeepSpeed (ZeRO-3, arXiv 1910.02054)."""


@cache
def shaped_model(path: str) -> Any:
    """A model of transformers on the meta device: every shape and no weights. ``path``: a folder
    with a ``config.json``; or ``3b``, ``7b`` or the hub id of a published model, whose
    configuration ships. A :class:`ModelError` for anything else."""
    import torch
    from transformers import AutoConfig

    if path in KNOWN["models"]:
        config = AutoConfig.for_model(**KNOWN["models"][path])
    elif (Path(path) / "config.json").is_file():
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    else:
        expected = f"a folder with a config.json, or one of {', '.join(KNOWN['models'])}"
        raise ModelError(path, expected, "neither", "download its config.json into a folder")
    backbone = backbone_of(config.model_type, path)
    with torch.device("meta"):
        return backbone.of_transformers("ForConditionalGeneration")(config)


def parameters(model: Any) -> tuple[int, int]:
    """Parameters of the language model, and of the vision tower with its merger."""
    vision = model.model.visual.num_parameters()
    return model.num_parameters() - vision, vision


def lora_parameters(model: Any, r: int) -> int:
    """Parameters of adapters of rank ``r`` on every matrix of the language layers."""
    return sum(r * sum(matrix.shape) for matrix in _matrices(model))


def _matrices(model: Any) -> list[Any]:
    return [p for p in model.model.language_model.layers.parameters() if p.dim() == 2]


@cache
def language_flops(model: Any, tokens: int, logits: int = 1, learns: str = "") -> float:
    """FLOPs of the language model over one sequence, with logits for ``logits`` of its tokens.
    ``learns``: "" (forward pass alone), "all" (and backward, with gradients of every matrix), or
    "adapters" (backward through frozen matrices). Layers are alike, so one is counted."""
    import torch

    language = model.model.language_model.requires_grad_(learns == "all")
    width, layers = language.config.hidden_size, language.config.num_hidden_layers
    hidden = torch.empty(1, tokens, width, device="meta", requires_grad=bool(learns))
    positions = torch.zeros(3, 1, tokens, dtype=torch.long, device="meta")

    def run() -> None:
        rotary = language.rotary_emb(hidden, positions)
        out = language.layers[0](hidden, position_embeddings=rotary)
        if learns:
            out.sum().backward()

    passes = {"": 1, "adapters": 2, "all": 3}[learns]  # backward: inputs, and matrices
    return layers * _count(run) + 2.0 * passes * model.lm_head.weight.numel() * logits


@cache
def image_flops(model: Any, rows: int, columns: int) -> float:
    """FLOPs of the vision tower over an image of ``rows`` x ``columns`` tokens."""
    import torch

    vision = model.config.vision_config
    high, wide = rows * vision.spatial_merge_size, columns * vision.spatial_merge_size
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.empty(high * wide, patch, device="meta")
    grid = torch.tensor([[1, high, wide]])
    positions = {"position_ids": torch.zeros(high * wide, 2, dtype=torch.long, device="meta")}
    if hasattr(vision, "num_position_embeddings"):  # four neighbours in the learnt grid
        places = torch.zeros(high * wide, 4, dtype=torch.long, device="meta")
        positions |= {"interp_indices": places, "interp_weights": places.float()}
    return _count(lambda: model.model.visual(pixels, grid_thw=grid, **positions))


def _count(run: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def samples_of(
    shape: Sequence[int], image: int | None = None, family: str = "qwen2_5_vl"
) -> pd.DataFrame:
    """A typical question with its reply, rows ``"2d"`` and ``"3d"``, for volumes of ``shape``
    (slices, rows, columns) and images of ``image`` x ``image`` pixels (None: as a slice), as the
    published models of a family show them: images and crops with their rows and columns in tokens,
    and tokens of prompt (with images), injected crops, generated text, and all of it."""
    assumed, found = KNOWN["sample"], {}
    frame = ProcessorFrame.published(BACKBONES[family])
    for name, count, spanned in (("2d", 1, 1), ("3d", shape[0], shape[0] * assumed["slices"])):
        size = frame.size(*((image, image) if image and name == "2d" else shape[1:]))
        crop = frame.size(*(max(4, round(side * assumed["region"] ** 0.5)) for side in size))
        sides = [side // frame.factor for side in (*size, *crop)]
        crops = assumed["boxes"] * max(1, round(spanned))
        prompt = assumed["question"] + count * (sides[0] * sides[1] + 2)  # two tokens around each
        injected, generated = crops * (sides[2] * sides[3] + 2), assumed["generated"][name]
        tokens = [prompt, injected, generated, prompt + injected + generated]
        found[name] = [count, *sides[:2], crops, *sides[2:], *tokens]
    columns = "images rows columns crops crop_rows crop_columns prompt injected generated tokens"
    return pd.DataFrame.from_dict(found, "index", columns=columns.split())


def _vision_flops(model: Any, sample: Any) -> tuple[float, float]:
    """FLOPs of the vision tower over the images of the prompt, and over the crops."""
    images = sample.images * image_flops(model, sample.rows, sample.columns)
    return images, sample.crops * image_flops(model, sample.crop_rows, sample.crop_columns)


def _widths(text: Any) -> tuple[int, int]:
    """Of the queries of a token in one layer, and of its keys."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return head * text.num_attention_heads, head * text.num_key_value_heads


@dataclass(frozen=True)
class Stage:
    """A training stage of a profile on GPUs."""

    name: str  # of STAGES
    settings: Any  # the profile's section of that name
    profile: Any
    model: Any  # see shaped_model
    gpu: str  # of KNOWN
    count: int
    sharding: str  # of SHARDING
    lora_r: int | None  # None: the language model learns in full
    samples: pd.DataFrame  # see samples_of

    def batches(self) -> tuple[int, int, int, float]:
        """Samples or replies of an optimizer step; replies of one generation of GRPO on all GPUs;
        those generated together on one, and the bytes of their keys and values in 16 bits."""
        settings, text = self.settings, self.model.config.text_config
        batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        step = batch * self.count
        if self.name == "sft":
            return step, 0, 0, 0.0
        replies = settings.generation_batch_size or step
        each = -(-replies // self.count)
        prompts = self.profile.grounding.rollout_batch_size or each
        together = 0 if settings.use_vllm else min(each, prompts * settings.num_generations)
        layers = text.num_hidden_layers * _widths(text)[1]
        return step, replies, together, 4.0 * together * self.samples.tokens.max() * layers

    @property
    def tower_learns(self) -> bool:
        """Whether the vision tower is trained, too."""
        frozen = self.profile.grounding.freeze_vision
        return self.name == "sft" and self.lora_r is None and not frozen

    def memory(self) -> dict[str, float]:
        """Part -> bytes on one GPU, at most.

        A parameter that learns costs 16 bytes: weight, gradient and both moments of AdamW in
        float32. Activations are what a layer keeps for its backward pass (arXiv 2205.05198); with
        checkpointing that is its input alone. Logits exist for 1,024 tokens at once (TRL's chunks).
        """
        from accelerate.commands.estimate import estimate_training_usage

        text, settings, whole = self.model.config.text_config, self.settings, self.lora_r is None
        language, vision = parameters(self.model)
        learns = language if whole else lora_parameters(self.model, self.lora_r)
        learns += vision * self.tower_learns
        shards, cached = 1 if self.sharding == "ddp" else self.count, self.batches()[3]
        frozen = 4.0 * vision if whole else 2.0 * (language + vision)  # float32 as what learns
        frozen *= not self.tower_learns
        if self.profile.model.quantization == "4bit":
            frozen -= 1.5 * sum(matrix.numel() for matrix in _matrices(self.model))
        in_use = 2.0 * learns * whole  # autocast's copies in 16 bits
        layers = text.num_hidden_layers
        if shards > 1:  # two layers at a time; to generate in the same process, the whole model
            in_use = 2.0 * (language + vision) if cached else 4.0 * language / layers
        queries, keys = _widths(text)
        kept = 8 * text.hidden_size + 4 * queries + 4 * keys + 8 * text.intermediate_size
        inputs = 2 * layers * text.hidden_size  # bytes a token, as what a layer keeps
        kept = 2 * kept + inputs if settings.gradient_checkpointing else layers * kept
        tokens = settings.per_device_train_batch_size * self.samples.tokens.max()
        activations = tokens * kept
        if self.tower_learns:
            tower, n = self.model.config.vision_config, dict(self.samples.items())
            patches = n["images"] * n["rows"] * n["columns"]
            patches += n["crops"] * n["crop_rows"] * n["crop_columns"]
            patches = patches.max() * tower.spatial_merge_size**2 * tower.depth
            kept = 16 * tower.hidden_size + 8 * tower.intermediate_size
            activations += settings.per_device_train_batch_size * patches * kept
        reference = self.name == "grpo" and settings.beta and whole
        optimizer = max(estimate_training_usage(4 * learns, "float32").values())
        return {
            "frozen weights": frozen / shards,
            "weights, gradients, optimizer": optimizer / shards,
            "reference model": 2.0 * (language + vision) / shards if reference else 0.0,
            "weights in use": in_use,
            "activations": float(activations),
            "logits": 12.0 * min(tokens, 1024) * text.vocab_size,
            "keys and values": cached,
            "CUDA context": 1.5e9,
        }

    def fits(self) -> tuple[bool, float]:
        """Whether a GPU holds it, also before DeepSpeed has sharded what it loaded; usable GB."""
        loading = 2 * sum(parameters(self.model)) if self.sharding == "zero3" else 0
        usable = KNOWN["utilization"]["memory"] * KNOWN["gpus"][self.gpu]["memory"]
        return max(sum(self.memory().values()), loading) <= usable * 1e9, usable

    def refusal(self) -> PlanError:
        """What does not fit, and the nearest set-ups that do."""
        near = {f"--set grounding.{self.name}_lora_r=16": {"lora_r": 16, "sharding": "ddp"}}
        for count in (self.count * 2**k for k in range(7)):
            near[f"--gpus {count}x{self.gpu}"] = {"count": count, "sharding": "zero3"}
        near |= {f"--gpus {self.count}x{gpu}": {"gpu": gpu} for gpu in KNOWN["gpus"]}
        fitting = [text for text, change in near.items() if replace(self, **change).fits()[0]]
        parts, subject = self.memory(), f"{self.name}, {self.sharding} on {self.count}x{self.gpu}"
        found = f"{sum(parts.values()) / 1e9:.1f} GB, most of it {max(parts, key=parts.get)}"
        do = "; or ".join([*fitting[:3], "a smaller batch, or shorter samples"])
        return PlanError(subject, f"at most {self.fits()[1]:.1f} GB on a GPU", found, do)

    def work(self, counts: Mapping[str, int]) -> list[tuple[str, float, np.ndarray]]:
        """Parts with FLOPs and hours (low, high), for so many records or questions by dimension."""
        settings, model, total = self.settings, self.model, sum(counts.values())
        step, replies, together, cached = self.batches()
        if self.name == "sft":
            passes = settings.max_steps * step / total
            passes = passes if settings.max_steps > 0 else settings.num_train_epochs
            flops = sum(n * self._learning(self.samples.loc[d], passes) for d, n in counts.items())
            what = f"{passes:.3g} times {total:,} records"
            return [(what, flops, self._hours(flops, "training"))]
        group, steps = settings.num_generations, max(1, replies // step) * settings.num_iterations
        generations = settings.num_train_epochs * total * group / replies
        generations = settings.max_steps / steps if settings.max_steps > 0 else generations
        # log-probabilities: by the reference, and by the policy where it is not that of the step
        scorings = (settings.beta > 0) + (steps > 1 or settings.use_vllm)
        prefill = scored = learnt = 0.0
        for dimension, count in counts.items():
            sample = self.samples.loc[dimension]
            prompts = generations * replies / group * count / total
            images, crops = _vision_flops(model, sample)
            prompt = language_flops(model, sample.prompt)
            injected = language_flops(model, sample.prompt + sample.injected) - prompt
            prefill += prompts * (images + prompt + group * (crops + injected))
            read = language_flops(model, sample.tokens, sample.generated)
            scored += prompts * group * scorings * (images + crops + read)
            learnt += prompts * self._learning(sample, group * settings.num_iterations)
        # A step of generation reads weights and cache, or takes what launching it takes; the
        # longest reply of a batch is waited for.
        speed = KNOWN["gpus"][self.gpu]["bandwidth"] * 1e9 * self._reached("bandwidth")
        launch = KNOWN["token_step_vllm" if settings.use_vllm else "token_step"]
        token = np.maximum((2.0 * parameters(model)[0] + cached) / speed, launch)
        longest = 1.5 * self.samples.generated.max()
        batches = generations * replies / self.count / (together or replies / self.count)
        what = f"rollouts: {generations:,.0f} x {replies // group} questions x {group} replies"
        return [
            (what, prefill, self._hours(prefill, "forward") + batches * longest * token / 3600),
            ("log-probabilities", scored, self._hours(scored, "forward")),
            ("updates", learnt, self._hours(learnt, "training")),
        ]

    def _learning(self, sample: Any, passes: float) -> float:
        """FLOPs of learning from a sample; a frozen vision tower goes forward only."""
        learns = "all" if self.lora_r is None else "adapters"
        flops = language_flops(self.model, sample.tokens, sample.generated, learns)
        if self.settings.gradient_checkpointing:
            flops += language_flops(self.model, sample.tokens, sample.generated)
        cached = self.profile.grounding.feature_cache and not self.tower_learns
        seen = 1 if cached else passes * (1 + 2 * self.tower_learns)
        return passes * flops + seen * sum(_vision_flops(self.model, sample))

    def _hours(self, flops: float, kind: str) -> np.ndarray:
        peak = KNOWN["gpus"][self.gpu]["peak"] * 1e12 * self.count
        return flops / (peak * self._reached(kind)) / 3600

    def _reached(self, kind: str) -> np.ndarray:
        """Proportions of the peak, from good to bad use."""
        known = KNOWN["utilization"]
        kind = "adapters" if kind == "training" and self.lora_r is not None else kind
        slower = known["four_bit"] if self.profile.model.quantization == "4bit" else 1
        return np.array(known[kind]) * slower


@dataclass(frozen=True)
class Estimate:
    """What the stages of a profile take on GPUs, as tables."""

    tokens: pd.DataFrame  # of a sample: dimension -> prompt, injected, generated, tokens
    memory: pd.DataFrame  # GB on one GPU: part -> stage
    work: pd.DataFrame  # parts of stages: FLOPs, hours and US dollars, from good to bad use

    def to_markdown(self) -> str:
        """All tables, with sums."""
        memory, work = self.memory.copy(), self.work.copy()
        memory.loc["in all"] = memory.sum()
        work.loc["in all"] = work.drop(columns=["stage", "part"]).sum()
        tables = (self.tokens, memory, work.fillna(""))
        return "\n\n".join(table.to_markdown(floatfmt=".3g") for table in tables)


def estimate(
    profile: Any,
    gpus: str = "8xH100",
    *,
    model: str | None = None,
    sharding: str | None = None,
    stages: Sequence[str] = STAGES,
    price: float | None = None,
) -> Estimate:
    """Memory, hours and price of the training stages of a profile.

    Args:
        profile: All settings; ``grpo.use_vllm`` means a server on as many GPUs again.
        gpus, model: ``"8xH100"``; see :func:`shaped_model` (None: the profile's base).
        sharding: Of :data:`SHARDING`; None: ZeRO-3 for a whole model on several GPUs, else DDP.
        stages, price: Of :data:`STAGES`; US dollars for an hour of one GPU.

    Raises:
        PlanError: An unknown name, settings that do not run on these GPUs, or a stage that does not
            fit; the message names the nearest set-ups that do.
    """
    number, gpu = gpus.split("x", 1) if "x" in gpus else ("1", gpus)
    if gpu not in KNOWN["gpus"] or not re.fullmatch(r"[1-9]\d*", number):
        expected = "a number, x and one of " + ", ".join(KNOWN["gpus"])
        raise PlanError("--gpus", expected, repr(gpus), "write it like 8xH100")
    count, shapes = int(number), shaped_model(str(model or profile.model.base))
    image, family = 512 if profile.name == "gpu" else None, shapes.config.model_type
    samples = samples_of(profile.dataset.shape, image, family)
    memory, rows = {}, []
    for name in stages:
        if name not in STAGES or sharding not in (None, *SHARDING):
            expected = f"a stage of {STAGES}, sharding of {SHARDING}"
            raise PlanError("plan", expected, f"{name} and {sharding}", "choose from these")
        r = getattr(profile.grounding, f"{name}_lora_r")
        way = sharding or ("zero3" if r is None and count > 1 else "ddp")
        settings = getattr(profile, name)
        stage = Stage(name, settings, profile, shapes, gpu, count, way, r, samples)
        if settings.bf16 and not KNOWN["gpus"][gpu]["bf16"]:
            do = f"--profile t4, or --set {name}.bf16=false --set {name}.fp16=true"
            raise PlanError(f"{name} on {gpus}", "a GPU with bfloat16", f"{name}.bf16: true", do)
        if not stage.fits()[0]:
            raise stage.refusal()
        memory[f"{name}, {way}"] = {part: held / 1e9 for part, held in stage.memory().items()}
        paid = count * (2 if name == "grpo" and settings.use_vllm else 1)
        for part, flops, hours in stage.work(_counts(profile, name)):
            usd = hours * paid * np.array([price] * 2 if price else KNOWN["gpus"][gpu]["price"])
            rows.append([name, part, flops, *hours, *usd])
    return Estimate(
        samples[["prompt", "injected", "generated", "tokens"]],
        pd.DataFrame(memory).rename_axis(f"GB on each of {count}x{gpu}"),
        pd.DataFrame(rows, columns=["stage", "part", "FLOPs", "hours", "to", "USD", "to USD"]),
    )


def _counts(profile: Any, stage: str) -> dict[str, int]:
    """Records or questions by dimension: the paper's, or of the phantoms that a profile makes."""
    data, counts = getattr(profile, f"{stage}_data"), KNOWN[stage]
    if profile.name != "gpu":
        each = {d: n * profile.dataset.per_family / 2 for d, n in KNOWN["phantom"].items()}
        counts = {d: round(getattr(data, f"patients_{d}") * n) for d, n in each.items()}
    chosen = {d: getattr(data, f"records_{d}") for d in counts}
    return {d: n if chosen[d] is None else chosen[d] for d, n in counts.items()}
