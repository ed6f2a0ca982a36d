"""The figures of README and guides that no notebook draws: ``python data/figures/draw.py``.

``hero.gif``: the reply of the shipped model to the question of notebook 00 about a volume;
``results.png``: three results of the study in ``data/results``; ``architecture.png``: which package
imports which. Nothing in them is typed. Each file keeps its text for screen readers, with all that
it shows, as its "Description" (PNG) or comment (GIF): the tests compare it with the present state.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill, wrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from unireason_lib.ablation import judge, load_grid
from unireason_lib.config import load_profile
from unireason_lib.display import SliceViewer
from unireason_lib.display.figures import ACTIVE, BOX_COLORS, INK, LINE_COLORS, MUTED, AltFigure
from unireason_lib.evaluation import open_benchmark
from unireason_lib.evaluation.statistics import Interval
from unireason_lib.evaluation.table import mean, read_pooled
from unireason_lib.grounding import GroundedGenerator, load_profile_model

ROOT = Path(__file__).resolve().parents[2]
STUDY = "first/claims"  # a grid in data/ablations, and its table in data/results

Rows = list[tuple[str, Interval]]
Tile = tuple[str, str, Rows, float]  # title, statement, values in %, reference


# -- hero ------------------------------------------------------------------------------------------


TEXT, LARGE = ImageFont.load_default(15), ImageFont.load_default(17)


class Animation:
    """One grounded reply about a volume: slices, the model's text word by word, each box with the
    crops that it fetches, and at last the true box."""

    def __init__(self) -> None:
        profile = load_profile("laptop")
        generator = GroundedGenerator(*load_profile_model(profile.model, ROOT))
        about = {"families": ("lesion analysis",), "prior_studies": 0, "a_patient": 1, "limit": 40}
        about |= {"config": {"shape": profile.dataset.shape}, "dimension": "3d", "seed": 0}
        asked = open_benchmark("phantom", frame=generator.frame, **about)
        self.item = next(one for one in asked if one.kind == "texture")
        request = self.item.request(self.item.load())
        self.slices = [generator.frame.aligned(image) for image in request.images]
        limits = {key: getattr(profile.generation, key) for key in ("max_new_tokens", "max_rounds")}
        (self.trace,) = generator.generate([request], batch_size=1, **limits)
        (_, self.lesion), *_ = self.item.truth_boxes
        options, truth = self.item.options, self.item.answer
        right = "right" if self.trace.choice == truth else "wrong"
        overlap = ", ".join(f"{box.iou(self.lesion):.2f}" for box in self.trace.boxes) or "none"
        self.verdict = f"Truth: {options[truth]}. The answer is {right}.\nIoU: {overlap}"
        self.alt = f"{self.item.question} {self.trace.text} {self.verdict}"

    def drawn(self, z: int, boxes: dict, text: str, crops=(), verdict: str = "") -> Image.Image:
        """A slice with its boxes; beside it the text so far, crops of the last box, the verdict."""
        viewer = SliceViewer(self.slices, boxes, width=400)
        viewer.slider.value = z
        canvas = Image.new("RGB", (860, 400), "white")
        canvas.paste(viewer.image(), (0, 0))
        color = BOX_COLORS[(len(boxes.keys() - {"truth"}) - 1) % 7]
        for n, crop in enumerate(crops[:5]):
            canvas.paste(ImageOps.expand(crop.resize((74, 74), 0), 3, color), (415 + 88 * n, 226))
        pen = ImageDraw.Draw(canvas)
        for x, side in ((6, "R"), (384, "L")):
            pen.text((x, 190), side, "white", TEXT)
        lines = [line for part in text.split("\n") for line in wrap(part, 60) or [""]]
        pen.multiline_text((415, 6), "\n".join(lines), INK, TEXT)
        pen.multiline_text((415, 394), verdict, INK, LARGE, anchor="ld")
        for n, name in enumerate(boxes):
            pen.text((8, 8 + 18 * n), name, BOX_COLORS[n % 7], TEXT)
        return canvas

    def frames(self) -> Iterator[tuple[Image.Image, int]]:
        """Images, and how long each is shown, in ms."""
        text = "\n".join([self.item.question, *map(". ".join, self.item.options.items()), "", ""])
        for z in range(len(self.slices)):
            yield self.drawn(z, {}, text), 150
        boxes, crops, pointings = {}, (), (*self.trace.pointings, None)
        parts = re.split(r"(?<=box_end\|>)", self.trace.text)
        for part, pointing in zip(parts, pointings, strict=False):
            for word in re.findall(r"\s*\S+", re.sub("<.*?>", "", part.replace("</think>", "\n"))):
                text += word
                yield self.drawn(z, boxes, text, crops), 90
            if pointing and pointing.crops:
                boxes[f"box {len(boxes) + 1}"] = pointing.box
                for n in range(len(pointing.crops) + 1):
                    z, crops = min(pointing.box.z1 + n, pointing.box.z2 - 1), pointing.crops[:n]
                    yield self.drawn(z, boxes, text, crops), 450
        yield self.drawn(z, boxes, text, crops, self.verdict), 2500
        boxes["truth"] = self.lesion
        yield self.drawn(int(self.lesion.z1), boxes, text, crops, self.verdict), 3500

    def savefig(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the animation, and beside it its last image but one as a PNG."""
        images, durations = zip(*self.frames(), strict=True)
        images[-2].save(path.with_suffix(".png"))
        palette = images[-1].quantize(160)
        images = [image.quantize(palette=palette, dither=0) for image in images]
        how = {"append_images": images[1:], "duration": durations, "loop": 0}
        images[0].save(path, save_all=True, comment=metadata["Description"], **how)


# -- results ---------------------------------------------------------------------------------------


def tiles() -> list[Tile]:
    """Three results: does the first condition of the study use the images, does it use its crops,
    and do slices help with volumes."""
    grid = load_grid(ROOT / f"data/ablations/{STUDY}.yaml")
    table = read_pooled(ROOT / f"data/results/{STUDY}.csv.gz")
    first = next(iter(grid.conditions))

    def accuracy(condition: str, control: str, dimension: str = "") -> Interval:
        rows = table[(table["condition"] == condition) & (table["control"] == control)]
        return mean(rows[rows["dimension"] == dimension] if dimension else rows, "correct")

    images = [
        (f"{d.upper()}{name}", accuracy(first, control, d))
        for d in ("2d", "3d")
        for control, name in (("none", ""), ("blank", ", blank"))
    ]
    controls = {"none": "own crops", "random-crop": "random crops", "no-crop": "no crops"}
    crops = [(name, accuracy(f"{first}, textures", key)) for key, name in controls.items()]
    asked = table.loc[table["condition"] == f"{first}, textures", "id"].nunique()
    judged = [one for one in judge(grid, table) if one.claim.part == "mixture"]
    judged.sort(key=lambda one: "supported" not in one.verdict)  # the large figure is the first
    slices = [
        (f"{one.claim.worse}: {one.verdict.split()[0]}", one.comparison.difference)
        for one in judged
    ]
    return [
        (
            "Does the model use the image?",
            "right answers in 2D, with the image against a blank one",
            images,
            25,
        ),
        (
            "Does it use its crops?",
            f"right answers about textures, with own against random crops ({asked} questions)",
            crops,
            25,
        ),
        (
            "Do slices help with volumes?",
            f"right answers in 3D, {first} training minus each row",
            slices,
            0,
        ),
    ]


def results() -> AltFigure:
    """The three tiles, each with its values and 95 % intervals."""
    made, alt = tiles(), []
    figure = AltFigure(10, 3.5, "")
    rows = figure.subplots(2, len(made), height_ratios=(1, 1.5))
    for (title, statement, values, reference), text, axes in zip(made, *rows, strict=True):
        sign = "+" if reference == 0 else ""
        number = " against ".join(f"{100 * one.value:{sign}.0f} %" for _, one in values[:2])
        number = number if reference else f"{100 * values[0][1].value:+.1f} points"
        text.set_axis_off()
        text.set(xlim=(0, 1), ylim=(0, 1))
        text.text(-0.55, 0.9, title, fontsize=11.5, weight="bold", color=INK)
        text.text(-0.55, 0.5, number, fontsize=19, color=ACTIVE)
        text.text(-0.55, 0.36, fill(statement, 36), fontsize=9, color=MUTED, va="top")
        for artist in text.texts:  # may be wider than the axes below
            artist.set_in_layout(False)
        for y, (_, one) in enumerate(values):
            color = LINE_COLORS[0] if y == 0 else INK
            low, value, high = (100 * x for x in (one.low, one.value, one.high))
            axes.plot([low, high], [y, y], "|-", color=color)
            axes.plot(value, y, "o", color=color)
        axes.axvline(reference, color=MUTED, linestyle="--", linewidth=1)
        names = [f"{fill(name, 22)}\n{one.text(100, sign)}" for name, one in values]
        axes.set_yticks(range(len(values)), names)
        axes.set_xlabel("% right" if reference else "percentage points", fontsize=8.5)
        axes.set(ylim=(len(values) - 0.5, -0.5), xlim=(0, 100) if reference else None)
        axes.tick_params(labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        shown = "; ".join(f"{name} {one.text(100, sign)}" for name, one in values)
        alt.append(f"{title} {statement}: {shown}.")
    figure.alt = " ".join(alt)
    return figure


# -- architecture ----------------------------------------------------------------------------------


def imports() -> dict[str, set[str]]:
    """Package or root module -> those that it imports, inside functions too."""
    package, graph = ROOT / "unireason_lib", {}
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).with_suffix("").parts[0]
        if part.startswith("__"):
            continue
        found = graph.setdefault(part, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in getattr(node, "names", ()) if hasattr(one, "name")]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names if not node.level]
            words = [name.split(".") for name in names]
            found |= {w[1] for w in words if w[0] == "unireason_lib" and not w[1].startswith("__")}
        found.discard(part)
    return graph


def needed(graph: dict[str, set[str]]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The imports that follow from no others, and the level of each part: one above the highest
    that it imports."""

    @cache
    def below(part: str) -> frozenset[str]:
        return frozenset(graph[part]).union(*map(below, graph[part]))

    def level(part: str) -> int:
        return 1 + max(map(level, graph[part]), default=-1)

    arrows = {
        part: sorted(one for one in all_ if not any(one in below(other) for other in all_))
        for part, all_ in graph.items()
    }
    return arrows, {part: level(part) for part in graph}


def architecture() -> AltFigure:
    """Parts in columns by level, and an arrow from each to what it imports."""
    arrows, levels = needed(imports())
    columns = [
        [p for p in sorted(levels) if levels[p] == n] for n in range(max(levels.values()) + 1)
    ]
    alt = "; ".join(f"{part} imports {', '.join(to)}" for part, to in sorted(arrows.items()) if to)
    figure = AltFigure(11, 3.6, f"Imports, without those that follow from others: {alt}")
    axes, place = figure.subplots(), {}
    axes.set_axis_off()
    for x, parts in enumerate(columns):
        rank = {p: sum(place[to][1] for to in arrows[p]) / max(1, len(arrows[p])) for p in parts}
        for k, part in enumerate(sorted(parts, key=rank.get)):
            place[part] = (1.25 * x, k - (len(parts) - 1) / 2 + 0.12 * (x % 2))
    labels = {}
    for part, (x, y) in place.items():
        package = (ROOT / "unireason_lib" / part).is_dir()
        box = {
            "boxstyle": "round,pad=0.35",
            "ec": "#a9bccb",
            "fc": "#eaf2f8" if package else "white",
        }
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": INK, "zorder": 3}
        labels[part] = axes.text(x, y, part, bbox=box, **style)
    axes.set(xlim=(-0.7, 1.25 * (len(columns) - 1) + 0.5), ylim=(-2.6, 2.7))
    figure.draw_without_rendering()  # places the boxes, from which the arrows start
    figure.set_layout_engine("none")
    pairs = [(one, to) for one in place for to in arrows[one]]
    for one, to in pairs:
        ends = {"patchA": labels[one].get_bbox_patch(), "patchB": labels[to].get_bbox_patch()}
        arrow = {"arrowstyle": "-|>", "color": MUTED, "lw": 0.9, "shrinkA": 1, "shrinkB": 1, **ends}
        axes.annotate("", place[to], place[one], arrowprops=arrow, zorder=1)
    return figure


FIGURES = {"hero.gif": Animation, "results.png": results, "architecture.png": architecture}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(Path(__file__).parent / name, metadata={"Description": figure.alt})
        print(f"{name}: {figure.alt}")
