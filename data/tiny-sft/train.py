"""How ``data/tiny-sft`` was trained: ``python data/tiny-sft/train.py``, three hours on two cores.

The vision tower of Qwen2.5-VL has seen a great many images before it is frozen for fine-tuning;
that of the tiny base has seen plain shapes. So, in this order,

1. phantoms are made, of which the label map of every slice is known;
2. the tower learns to say what the label map says, half an hour that cannot be resumed;
3. the tower is frozen, and the language model fine-tuned on grounded records, in two processes of
   7 GB each; a stopped run resumes from its last checkpoint;
4. tower and language model are fine-tuned together at half the rates, likewise.

What ships are RUN/all/model, RUN/tower-.../tower.json and the log.jsonl of both fine-tunings. No
stage learns from patients of the benchmark, or from those on which it is validated.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchvision.ops import box_iou, masks_to_boxes
from tqdm import tqdm, trange
from transformers import AttentionInterface, get_cosine_schedule_with_warmup

from unireason_lib.config import load_profile
from unireason_lib.dataset.build import phantom_set
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS, phantom, phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.errors import TrainingError
from unireason_lib.grounding import load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.io import whole_folder, write_json
from unireason_lib.tiny_base.guidance import edge_directions
from unireason_lib.tiny_base.shapes import draw
from unireason_lib.training.encoding import patches
from unireason_lib.training.optim import MuonWithAdamW, fast_bfloat16

ROOT = Path(__file__).resolve().parents[2]
FROZEN = "sft_data.mixing_temperature=1 grounding.free_running_steps=2500"
TOGETHER = """grounding.freeze_vision=false sft.learning_rate=4e-4 grounding.muon_learning_rate=1e-3
grounding.free_running_steps=1600"""
TRAINING, HELD_OUT = 100_000, 2_000_000  # first patients of the slices; volumes 500,000 further on
SIDE, CELL = 64, 4  # pixels: of an image, and of the cells whose class is read off an image token
CLASSES = [0, *sorted(LABELS)]  # values of a label map: air, body, organs, lesions
FIRST_ORGAN = 2
LESIONS = [k for k, value in enumerate(CLASSES) if LABELS.get(value, "").endswith(" lesion")]
HOSTS = [CLASSES.index(INSIDE[CLASSES[k]]) for k in LESIONS]
NOUNS = [LABELS.get(value, "").split(" ")[-1] for value in CLASSES]
WORDS = ["nothing" if k < FIRST_ORGAN else noun for k, noun in enumerate(NOUNS)]
SIDES = [LABELS.get(value, "").split(" ")[0] for value in CLASSES]
MIN_COVER = 1 / 32  # of a token, from which on the box of a structure is read off it

Pair = tuple[torch.Tensor, torch.Tensor]


# --- 1. slices and label maps


def make_slices(patients: int, first: int) -> Pair:
    """Pixels and classes, both ``(n, 64, 64) uint8``: one slice of each of ``patients``, from the
    ``first`` on, and the volumes of a fifth as many others."""
    jobs = [(phantom_slice, first + n) for n in range(patients)]
    jobs += [(phantom, first + 500_000 + n) for n in range(patients // 5)]
    with ProcessPoolExecutor() as pool:
        planes = pool.map(planes_of, *zip(*jobs, strict=True), chunksize=50)
        parts = list(tqdm(planes, "label maps", len(jobs), unit=" patients"))
    images, classes = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    return images, classes


def planes_of(make: Any, patient: int) -> tuple[np.ndarray, np.ndarray]:
    """All slices of a patient as they are shown, and their classes."""
    view = View(make(patient), (8, SIDE, SIDE))
    classes = np.searchsorted(CLASSES, view.study.labels).astype(np.uint8)
    return view.pixels.reshape(-1, SIDE, SIDE), classes.reshape(-1, SIDE, SIDE)


# --- 2. the vision tower


class TowerProbe(nn.Module):
    """A vision tower, and the loss of two readings of its image tokens. A linear layer, dropped
    afterwards, predicts the class of every cell, and the box of every structure in the token. And
    for one structure the token is pulled towards what the language model of the base reads off
    shapes (``tiny_base/guidance.py``): the embedding of its name, its edges along directions."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        language, self.image_processor = model.model.language_model, processor.image_processor
        self.tower, self.token = model.model.visual, ProcessorFrame.from_processor(processor).factor
        embedding, width = language.embed_tokens.weight.detach(), language.config.hidden_size
        self.cells = (self.token // CELL) ** 2
        self.head = nn.Linear(width, len(CLASSES) * (self.cells + 4))
        self.directions = edge_directions(width)
        self.scale, self.epsilon = language.norm.weight.detach(), language.config.rms_norm_eps
        self.length = embedding.norm(dim=-1).mean()
        self.groups = []  # embeddings of words, and which of them each class has, -1: none
        for of_class, words in ((WORDS, list(dict.fromkeys(WORDS))), (SIDES, ["left", "right"])):
            rows = [processor.tokenizer(f" {word}").input_ids[0] for word in words]
            indices = [words.index(word) if word in words else -1 for word in of_class]
            self.groups.append((embedding[rows], torch.tensor(indices)))

    def get_output_embeddings(self) -> nn.Module:
        """The layer that Muon leaves to AdamW."""
        return self.head

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Image tokens ``(n, tokens, width)`` of ``(n, height, width) uint8``."""
        arrays = [np.repeat(image[..., None], 3, axis=2) for image in images.numpy()]
        inputs = patches(self.image_processor, arrays)
        output = self.tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        return output.pooler_output.float().reshape(len(images), -1, self.head.in_features)

    def targets(self, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From classes of pixels ``(n, height, width)``: the proportion of a token that is of a
        class ``(n, tokens, classes)``; the box of a class, x1, y1, x2, y2 as proportions of the
        image ``(n, classes, 4)``; the classes of the cells of a token ``(n, tokens, cells)``."""
        (count, height, width), token = classes.shape, self.token
        grid = count, -1, height // token, token, width // token, token
        inside = functional.one_hot(classes.long(), len(CLASSES)).bool().permute(0, 3, 1, 2)
        inside[:, HOSTS] |= inside[:, LESIONS]  # a lesion is part of its organ
        cover = inside.reshape(grid).float().mean((3, 5)).flatten(2).transpose(1, 2)
        boxes = masks_to_boxes(inside.flatten(0, 1)) + torch.tensor([0, 0, 1, 1])  # half open
        boxes = boxes / torch.tensor([width, height, width, height])
        cells = classes[:, CELL // 2 :: CELL, CELL // 2 :: CELL].long()
        cells = cells.reshape(count, height // token, token // CELL, width // token, -1)
        cells = cells.transpose(2, 3).reshape(count, -1, self.cells)
        return cover, boxes.unflatten(0, (count, -1)), cells

    def forward(self, tokens: torch.Tensor) -> Pair:
        """What the linear layer reads: scores of the classes of cells ``(n, tokens, classes,
        cells)``, and boxes ``(n, tokens, classes, 4)``."""
        return self.head(tokens).unflatten(-1, (len(CLASSES), -1)).split((self.cells, 4), -1)

    def loss(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """The loss of both readings; images of one size, and the classes of their pixels. Weights
        bring the terms to one order of magnitude."""
        (cover, boxes, cells), tokens = self.targets(classes), self.tokens(images)
        scores, read = self(tokens)
        total = functional.cross_entropy(scores.transpose(2, 3).flatten(0, 2), cells.flatten())
        image, token, kind = (cover[..., FIRST_ORGAN:] > MIN_COVER).nonzero().T
        kind = kind + FIRST_ORGAN
        error = functional.smooth_l1_loss(read[image, token, kind], boxes[image, kind], beta=0.02)
        total = total + 10 * error

        kinds = class_of_token(cover)
        state = functional.rms_norm(tokens, self.scale.shape, self.scale, self.epsilon)
        total = total + 0.1 * (tokens.norm(dim=-1) / self.length - 1).square().mean()
        for vectors, indices in self.groups:
            index = indices[kinds]
            logits, index = state[index >= 0] @ vectors.T, index[index >= 0]
            error = functional.cross_entropy(logits, index, reduction="sum")
            total = total + error / max(1, len(index))
        y, x = ((torch.arange(n // self.token) + 0.5) * self.token / n for n in images.shape[1:])
        middle = torch.cartesian_prod(y, x).flip(-1).repeat(1, 2)
        image, token = (kinds > 0).nonzero().T
        edges = boxes[image, kinds[image, token]] - middle[token]
        read = state[image, token] @ self.directions
        return total + 3 * functional.smooth_l1_loss(read, 4 * edges, beta=0.1)

    @torch.no_grad()
    def measure(self, images: torch.Tensor, classes: torch.Tensor) -> dict[str, float]:
        """Mean IoU of the boxes of organs and lesions that the linear layer reads: of a structure
        on at least a twelfth of a token, the mean over its tokens."""
        overlaps: dict[str, list[torch.Tensor]] = {"organs": [], "lesions": []}
        for some in zip(images.split(100), classes.split(100), strict=True):
            cover, boxes, _ = self.targets(some[1])
            weights = cover * (cover > MIN_COVER)
            _, read = self(self.tokens(some[0]))
            total = weights.sum(1)
            read = (read * weights[..., None]).sum(1) / total[..., None].clamp(1e-6)
            overlap = box_iou(read[..., None, :], boxes[..., None, :])[..., 0, 0]
            for name, part in (("organs", range(FIRST_ORGAN, LESIONS[0])), ("lesions", LESIONS)):
                overlaps[name].append(overlap[:, part][total[:, part] > 1 / 12])
        return {f"IoU of {name}": torch.cat(part).mean().item() for name, part in overlaps.items()}


def class_of_token(cover: torch.Tensor) -> torch.Tensor:
    """The class ``(n, tokens)`` whose name a token gets: of which it has the largest part (of as
    much as fits into a token), at least a quarter; a lesion counts threefold."""
    part = cover / cover.sum(1, keepdim=True).clamp(1e-6, 1)
    part[..., :FIRST_ORGAN] = 0
    lesions = part[..., LESIONS]
    part[..., LESIONS] = 3 * lesions * (lesions > 0.25)
    most, kind = part.max(-1)
    return torch.where(most > 0.25, kind, 0)


def packed_attention(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention within many images, ``(1, heads, tokens of all, width)``, those of equal size
    together: on a CPU twice as fast as one after the other, which is what transformers does without
    flash attention. In float32, because its backward pass in bfloat16 is slow."""
    starts, lengths = options["cu_seq_lens_q"][:-1], options["cu_seq_lens_q"].diff()
    output = torch.empty_like(query[0], dtype=torch.float32)
    for length in lengths.unique().tolist():
        rows = starts[lengths == length][:, None] + torch.arange(length)
        states = (x[0, :, rows].transpose(0, 1).float() for x in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            output[:, rows] = functional.scaled_dot_product_attention(*states).transpose(0, 1)
    return output.transpose(0, 1)[None].to(query.dtype), None


PACKED = "flash_packed"  # transformers hands all images over at once where the name says flash
AttentionInterface.register(PACKED, packed_attention)


def speed_up(visual: nn.Module) -> None:
    """Make a vision tower fast on a CPU in bfloat16, with the same results: its attention packed,
    its convolution over patches, whose backward pass is slow, as a matrix product."""
    visual.config._attn_implementation, embed = PACKED, visual.patch_embed
    embed.forward = lambda patch: functional.linear(patch, embed.proj.weight.flatten(1))


def train_tower(
    model: Any, processor: Any, slices: Pair, steps: int, shapes: int, seed: int = 0
) -> TowerProbe:
    """Train the vision tower and merger of a model on slices and their classes; every fourth step
    sees small squares of them, enlarged as crops are. The tokens of images of plain shapes, this
    many of 32 pixels and of 64, are held near those of the base, so that its language model still
    knows them. A :class:`TrainingError` for a gradient that is not finite."""
    torch.manual_seed(seed)
    (images, classes), rng = slices, random.Random(seed)
    frame, batch = ProcessorFrame.from_processor(processor), 128
    speed_up(model.model.visual)
    probe = TowerProbe(model, processor).train()
    optimizer = MuonWithAdamW(probe, lr=1e-3, muon_lr=3e-3, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 2), steps)
    scenes = [
        [draw(rng, (side, side), rng.randint(1, side // 16)) for _ in range(shapes)]
        for side in (32, 64)
    ]
    drawn = [torch.from_numpy(np.stack([scene.pixels for scene in some])) for some in scenes]
    with torch.no_grad():
        before = [torch.cat([probe.tokens(part) for part in some.split(250)]) for some in drawn]
    length = [tokens.square().mean() for tokens in before]
    for step in (bar := trange(1, steps + 1, desc="vision tower")):
        rows, size = torch.randint(len(images), (batch,)), step % 2
        some = images[rows], classes[rows]
        if step % 4 == 0:
            some = tuple(squares(*some, rng.randrange(10, 40), frame))
        rows = torch.randint(shapes, (batch // 4 // (1 + size),))
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            loss = probe.loss(*some)
            moved = (probe.tokens(drawn[size][rows]) - before[size][rows]).square().mean()
        (loss + 2 * moved / length[size]).backward()
        norm = nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        if not norm.isfinite():
            raise TrainingError(f"step {step}", "a finite gradient", str(norm), "lower the rates")
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return probe


def squares(*planes: Any) -> Iterator[torch.Tensor]:
    """A random square of each image, resized as the processor resizes crops: from images, classes,
    side in pixels and frame."""
    images, classes, side, frame = planes
    corners = torch.randint(0, SIDE + 1 - side, (len(images), 2)).tolist()
    for array, mode in ((images, "bicubic"), (classes, "nearest-exact")):
        cut = [a[y : y + side, x : x + side] for a, (y, x) in zip(array, corners, strict=True)]
        cut = torch.stack(cut)[:, None].float()
        cut = functional.interpolate(cut, frame.size(side, side), mode=mode)
        yield cut[:, 0].clamp(0, 255).round().to(torch.uint8)


def main() -> None:
    """All stages."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # written for CPUs
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.replace("``", ""), formatter_class=how)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/tiny-sft", metavar="RUN")
    numbers = {"slices": 20_000, "shapes": 4_000, "tower-steps": 2_500, "patients-2d": 18_000}
    numbers |= {"patients-3d": 11_000, "steps": 7_500, "last-steps": 3_200}
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"default: {number}")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2, 4, 8, 16))
    given = parser.parse_args()
    out, cores = given.out.resolve(), os.cpu_count() or 1
    tower = out / f"tower-{given.tower_steps}-{given.slices}"
    model, processor = load_model(ROOT / "data/tiny-base", dtype="float32", device="cpu")
    frame = ProcessorFrame.from_processor(processor)
    patients, like = (given.patients_2d, given.patients_3d), load_profile("laptop").dataset
    phantom_set(out / "data", *patients, frame, like, workers=cores)
    if not tower.is_dir():
        slices = make_slices(given.slices, TRAINING)
        held_out = make_slices(-(-given.slices // 20), HELD_OUT)
        probe = train_tower(model, processor, slices, given.tower_steps, given.shapes)
        with whole_folder(tower) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            write_json(folder / "tower.json", probe.measure(*held_out))
    common, commands = f"sft.per_device_train_batch_size={16 // given.processes}", []
    run = f"-m torch.distributed.run --nproc_per_node={given.processes} -m unireason_lib sft"
    stages = [(tower, out / "sft", given.steps, (7, 4), FROZEN)]  # records of a step, of 16 in all
    stages += [(out / "sft/model", out / "all", given.last_steps, (8, 8), TOGETHER)]
    for start, to, steps, (flat, deep), settings in stages:
        settings += f" {common} sft.max_steps={steps} sft.save_steps=500"
        settings += f" sft_data.records_2d={flat * steps} sft_data.records_3d={deep * steps}"
        settings = [f"--set={one}" for one in settings.split()]
        where = ["--data", out / "data", "--model", start, "--out", to]
        commands.append(shlex.join(map(str, [sys.executable, *run.split(), *where, *settings])))
    threads = str(max(1, cores // given.processes))
    os.chdir(ROOT)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": threads}
    os.execve("/bin/sh", ["sh", "-c", " && ".join(commands)], environment)  # gets Ctrl-C as well


if __name__ == "__main__":
    main()
