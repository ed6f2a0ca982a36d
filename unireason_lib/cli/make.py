"""``build sft rl merge base ablate plan tutorial``: commands that make data, models and studies."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import typer

from unireason_lib.errors import DatasetError

from .options import settings_of, values, with_options


@with_options(
    "source! out! limit families per_family prior_studies seed size window model images fractions "
    "writer writer_option workers ray dry_run override",
    size="32,256,256",
)
def build(given: Any) -> None:
    """Build a data set of grounded questions from scans with masks; with --model, boxes are written
    in the pixels of its processor.

    The same command resumes a build that was stopped or killed, and ends with the same rows.
    Exit code 1: finished, but some studies could not be read (see the configuration "refused").
    """
    from unireason_lib.dataset import build as building
    from unireason_lib.dataset.hub import load_set
    from unireason_lib.imaging import QWEN_FRAME
    from unireason_lib.inference import Checkpoint

    if len(given.fractions) != 3 or isinstance(given.fractions, str):
        found, do = repr(given.fractions), "write 0.9,0.05,0.05"
        raise DatasetError("--fractions", "three numbers, by commas", found, do)
    config = building.BuildConfig(
        sources=tuple(map(building.SourceSpec.parse, given.source)),
        families=tuple(name.strip() for name in given.families.split(",") if name.strip()) or None,
        frame=Checkpoint(given.model).frame() if given.model else QWEN_FRAME,
        writer_options=given.writer_option,
        fractions=dict(zip(("train", "val", "test"), given.fractions, strict=True)),
        **values(given, "limit per_family prior_studies seed size window writer images"),
    )
    if given.dry_run:
        guess = building.dry_run(config)
        counts = f"{guess.studies:,} studies; from {guess.sampled} of them: about {guess.records:,}"
        typer.echo(f"{counts} records; nothing was written")
        if guess.writer_cost is not None:
            typer.echo(f"writer: {guess.writer_cost}")
        return
    running = values(given, "workers ray override") | {"progress": sys.stderr.isatty()}
    report = building.build(config, given.out, **running)
    counts, studies = report.manifest["counts"]["split"], report.manifest["studies"]
    made = f"{report.built:,} studies processed now" if report.built else "was finished already"
    typer.echo(f"{report.folder}: {made}, {report.seconds:.1f} s")
    for split, patients in studies["patients_by_split"].items():
        typer.echo(f"{split:5}  {counts.get(split, 0):6,} records of {patients:,} patients")
    if config.prior_studies and sum(counts.values()) < 2 * studies["read"]:
        do = "--prior-studies 0 keeps them"
        typer.echo(f"questions whose answer can be guessed without the images are left out; {do}")
    typer.echo(f"{report.folder / 'manifest.json'}: counts by family, kind, source; warnings")
    if report.unreadable:
        refused = load_set(report.folder, "refused", "train").to_pandas()
        typer.echo(f"{report.unreadable} studies could not be read, first of them:", err=True)
        for row in refused[refused["reason"] == "unreadable"].head(3).itertuples():
            typer.echo(f"  {row.study}: {row.detail}", err=True)
        raise typer.Exit(1)


@with_options("data! out! model! profile set m3d_root volumes quiet")
def sft(given: Any) -> None:
    """Fine-tune a model on grounded records: loss on the tokens it generates, vision tower frozen.

    A run that was stopped or killed resumes from its last checkpoint. Losses and free-running
    accuracy are in log.jsonl; the finished model, or its adapter (grounding.sft_lora_r), in model/.
    """
    _train("sft", given)


@with_options("data! out! model! profile set m3d_root volumes quiet")
def rl(given: Any) -> None:
    """Train a fine-tuned model by GRPO: rewards for answer and format, none for boxes.

    A run that was stopped or killed resumes from its last checkpoint. Rewards, KL and lengths are
    in log.jsonl, every reply in rollouts.jsonl; the finished model, or its adapter
    (grounding.grpo_lora_r), in model/.
    """
    _train("grpo", given)


def _train(stage: str, given: Any) -> None:
    settings = settings_of(given)  # before the seconds of importing torch

    from unireason_lib.grounding import Settings, load_profile_model
    from unireason_lib.training.callbacks import FreeRunning, balanced, sharding
    from unireason_lib.training.checkpoints import whole_checkpoint
    from unireason_lib.training.data import images_from, training_records
    from unireason_lib.training.encoding import injects

    section, ours, limits = getattr(settings, stage), settings.grounding, settings.generation
    where = {"m3d_root": given.m3d_root, "volumes": given.volumes, "seed": section.seed}
    if stage == "sft":
        from unireason_lib.training.sft import train_sft as train

        wanted, where["form"] = settings.sft_data, "sft"
        mixing = {"temperature": wanted.mixing_temperature}
        limits = limits.max_new_tokens, limits.max_rounds
    else:
        from unireason_lib.training.grpo import train_grpo as train

        wanted, mixing = settings.grpo_data, {}
        where |= {"form": "rl", "kinds": wanted.kinds.split()}
        limits = section.max_completion_length, ours.rollout_max_rounds
    counts = {"2d": wanted.records_2d, "3d": wanted.records_3d}
    records = training_records(given.data, counts, **mixing, **where)
    try:
        held_out = training_records(given.data, split="val", **where)
    except DatasetError:  # a small data set, or one that keeps no patient apart
        held_out = []
    held_out = balanced(held_out, ours.free_running_questions)
    images = images_from(given.data, m3d_root=given.m3d_root)
    path = whole_checkpoint(given.model, settings.model.dtype)
    from_base = Path(path).resolve() == Path(settings.model.base).resolve()
    tower = stage == "sft" and from_base and bool(settings.model.tower)
    how = {"device": _device(), "tower": tower}
    loaded = load_profile_model(settings.model, Path.cwd(), path, **how)
    typer.echo(f"{len(records):,} training records, {len(held_out)} for validation while training")
    if tower:
        typer.echo(f"vision tower and merger of {settings.model.tower} (model.tower)")
    how = Settings(limits[0], limits[1] * injects(ours.components))
    best = ours.keep_best if stage == "sft" else None
    tests = FreeRunning(held_out, ours.free_running_steps, images, how, best)
    callbacks = [tests] if held_out and sharding() != "fsdp" else []
    more = {"callbacks": callbacks, "progress": not given.quiet}
    made = train(*loaded, records, images, given.out, settings, **more)
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"{made}: the model; {given.out / 'log.jsonl'}: how it went")


def _device() -> str | None:
    """Where a process of a launcher puts its model: on a GPU of its own; with FSDP, which shards it
    from there, on the CPU. None: as the profile says."""
    import torch

    from unireason_lib.training.callbacks import sharding

    local = "LOCAL_RANK" in os.environ and torch.cuda.is_available()
    return "cpu" if sharding() == "fsdp" else f"cuda:{os.environ['LOCAL_RANK']}" if local else None


@with_options("model! adapter! out! dtype")
def merge(given: Any) -> None:
    """Merge an adapter into its model: a folder in plain transformers form."""
    from unireason_lib.training.checkpoints import merge_adapter

    made = merge_adapter(given.model, given.adapter, given.out, given.dtype)
    typer.echo(f"{made}: the merged checkpoint")


@with_options("out steps seed measure exercises quiet", out=Path("runs/tiny-base"))
def base(given: Any) -> None:
    """Pre-train the tiny base on generic exercises: letters, boxes, choosing among images.

    A run that was stopped or killed resumes from its last checkpoint. The finished model is in
    model/, with its log and its skills on held-out exercises beside the weights.
    """
    from unireason_lib import tiny_base
    from unireason_lib.grounding import load_model
    from unireason_lib.io import read_json

    if given.measure:
        loaded = load_model(given.measure, dtype="float32", device="cpu")
        skills = tiny_base.measure(*loaded, given.exercises)
    else:
        plan = tiny_base.Plan(seed=given.seed, **({"steps": given.steps} if given.steps else {}))
        how = {"final_size": given.exercises, "progress": not given.quiet}
        made = tiny_base.pretrain(given.out, plan, **how)
        typer.echo(f"{made}: the tiny base; {given.out / 'log.jsonl'}: how it went")
        skills = read_json(made / "skills.json")
    for name, scores in skills.items():
        values = (f"{key} {value:.3f}" for key, value in scores.items() if key != "n")
        typer.echo(f"{name:18} {', '.join(values)} (n={scores['n']:.0f})")


@with_options("grid! profile set seeds only workers keep look dry_run", profile=None)
def ablate(given: Any) -> None:
    """Run the conditions of a grid with every seed; what several share is made once.

    Each run is a notebook in runs/ablation/NAME. A run that fails stops only what builds on it, and
    the same command resumes where it was stopped. Results are shown when all conditions and seeds
    are complete: a study that may be stopped once its numbers look good proves nothing.
    """
    from unireason_lib.ablation import load_grid, run_study
    from unireason_lib.notebooks import project_root

    grid = load_grid(given.grid).at(given.profile, "\n".join(given.set or ()))
    how = values(given, "seeds workers keep look dry_run") | {"only": given.only or ()}
    how["command"] = "python -m unireason_lib " + shlex.join(["ablate", *sys.argv[2:]])
    study = run_study(grid, project_root(), say=typer.echo, **how)
    if study.failed:
        raise typer.Exit(1)


@with_options("gpus! profile set model sharding stage price", profile="gpu")
def plan(given: Any) -> None:
    """What a profile takes in memory, hours and money, before anything is rented.

    Parameters and FLOPs are counted on the model's shapes (--model 3b, 7b, or a folder with a
    config.json); the rest is assumed in configs/planning.yaml, so hours are a range. A set-up that
    cannot fit is refused, with the nearest ones that can.
    """
    from unireason_lib.planning import STAGES, estimate

    how = values(given, "model sharding price") | {"stages": given.stage or STAGES}
    typer.echo(estimate(settings_of(given), given.gpus, **how).to_markdown())


@with_options("notebooks profile parameter out workers", out=Path("runs/tutorial"))
def tutorial(given: Any) -> None:
    """Run the notebooks headlessly; in a run of all, 04 and 05, which train long, run as smoke."""
    from unireason_lib.notebooks import run

    rows = run(given.notebooks or (), given.profile, given.parameter, given.out, given.workers)
    if any(row["status"] != "passed" for row in rows):
        raise typer.Exit(1)
