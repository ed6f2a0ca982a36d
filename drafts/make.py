"""A made-up study in the form of the real one, to write the notebook with."""
import time
from pathlib import Path

import numpy as np

from unireason_lib.ablation.grid import load_grid
from unireason_lib.ablation.plan import last_jobs, plan
from unireason_lib.ablation.results import BESIDE, Results, write_results
from unireason_lib.evaluation import open_benchmark
from unireason_lib.inference import Checkpoint
from unireason_lib.profiles import load_profile

here = Path("runs/drafts/made")
for name in ("claims", "efficiency"):
    g = load_grid(f"data/ablations/{name}.yaml")
    p = load_profile(g.profile, g.overrides)
    bm = open_benchmark("phantom", size=tuple(p.dataset.shape), seed=0, census=min(300, p.dataset.census), split="test", limit=p.evaluation.questions, frame=Checkpoint("data/tiny-base").frame())
    jobs, rng, rows = plan(g), np.random.default_rng(7), []
    lines = {j.key: {"key": j.key, "stage": j.stage, "conditions": list(j.conditions), "seed": j.seed, "seconds": 100.0, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "code": "0" * 16, "base": "0" * 64, "parameters": dict(j.parameters)} for j in jobs}
    base = {c: rng.uniform(0.35, 0.6) for c in g.conditions}
    consistency = {}
    for (c, s), j in last_jobs(jobs).items():
        consistency[j.key] = {"overlap": {"value": float(rng.random())}, "boxed": 1.0, "cuboids": 20}
        shift = rng.normal(0, 0.02)
        few, tex = bm.items[:40], [i for i in bm.items if i.kind == "texture"][:27]
        for what in ("", *BESIDE):
            for i in tex if what.startswith("textures") else bm.items if what in ("", "blind") else few:
                pr = 0.27 if what == "blind" else base[c] + shift - (0.1 if i.dimension == "3d" else 0) - 0.1 * ("crops" in what)
                rows.append({"condition": c + (f", {what}" if what else ""), "seed": s, "id": i.id, "patient": i.patient, "dimension": i.dimension, "family": i.family, "kind": i.kind, "correct": float(rng.random() < pr), "in_format": float(rng.random() < 0.97), "iou_first": float(rng.random()) if i.truth_boxes else None})
    packages = {"torch": "0", "transformers": "0"}
    made = ({"command": f"python -m unireason_lib ablate data/ablations/{name}.yaml", "packages": packages},)
    write_results(g, Results(rows, lines, consistency, made), here)
