"""A made-up study in the form of the real one, to write the notebook with."""
import sys
import numpy as np
from pathlib import Path
from dataclasses import replace
from unireason_lib.ablation.grid import load_grid
from unireason_lib.ablation.plan import plan, last_jobs
from unireason_lib.ablation.ledger import Ledger
from unireason_lib.ablation.report import write_results
from unireason_lib.profiles import load_profile
from unireason_lib.evaluation import open_benchmark
from unireason_lib.inference import Checkpoint
here=Path('runs/drafts/made')
for name in ('claims','efficiency'):
    g=load_grid(f'data/ablations/{name}.yaml'); p=load_profile(g.profile,g.overrides)
    bm=open_benchmark("phantom", size=tuple(p.dataset.shape), seed=0, census=min(300,p.dataset.census), split="test", limit=p.evaluation.questions, frame=Checkpoint("data/tiny-base").frame())
    jobs=plan(g); rng=np.random.default_rng(7); rows=[]
    led=Ledger(here/f'{name}-ledger.jsonl'); led.path.unlink(missing_ok=True)
    for j in jobs: led.add(j,'passed',100.0,'','0'*16)
    base={c:rng.uniform(.35,.6) for c in g.conditions}
    for (c,s),j in last_jobs(jobs).items():
        for blind in (False,True):
            for i in bm.items:
                pr=.27 if blind else base[c]-(.1 if i.dimension=='3d' else 0)
                rows.append({'condition':c+(', blind' if blind else ''),'seed':s,'id':i.id,'patient':i.patient,'dimension':i.dimension,'family':i.family,'kind':i.kind,'correct':float(rng.random()<pr),'in_format':float(rng.random()<.97),'iou_first':float(rng.random()) if i.truth_boxes else None})
    write_results(g,jobs,rows,led,here,f'python -m unireason_lib ablate data/ablations/{name}.yaml','data/tiny-base')
