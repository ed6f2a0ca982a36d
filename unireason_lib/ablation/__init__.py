"""The claims as experiments: a grid of conditions, the notebooks that run it, and what comes of it.

grid.yaml -> Grid -> plan (what several share is made once) -> notebooks -> ledger, one tidy table -> verdicts
"""
