from pathlib import Path
def sub(p, *pairs):
    t = Path(p).read_text()
    for a, b in pairs:
        assert t.count(a) == 1, (p, a, t.count(a))
        t = t.replace(a, b)
    Path(p).write_text(t)
sub("README.md",
('''| [08 Scaling up]''', '''| [07 Ablations](notebooks/07_ablations.ipynb) | a grid of runs, seeds and patients resampled by hand, nine claims with computed verdicts and where they come from | 1 min |
| [08 Scaling up]'''),
('''`make tutorial ONLY=04` trains in full.) The ablations (07)
follow when their study has ended; what it has so far is kept in `data/results/claims.json`, unjudged.
''', '''`make tutorial ONLY=04` trains in full.)
'''),
('''## Use it
''', '''## Do the claims hold at this size?

![Differences of right answers with intervals and verdicts, claim by claim](data/figures/claims.png)

*Made by notebook 07 from `data/results/claims.csv.gz`: nine conditions, five seeds each, 1,000 questions about phantom patients. Bars are
95 % intervals over seeds and patients; verdicts are computed, and count that nine claims were tested. They speak of a model of 2.9 M
parameters, not of the paper's. `make replicate` runs the study again (hours).*

## Use it
'''))
sub("CHANGELOG.md", ('''- Notebook 08 (scaling up).
''', '''- Notebook 07 (ablations): the paper's claims on two CPU cores, their study in `data/results/`.
- Notebook 08 (scaling up).
'''))
