"""The benchmark still runs: the names that its cases use are there, and both ways give the same."""

import json

from . import cases, run


def test_small_work_gets_its_rows(monkeypatch, tmp_path, capsys, tiny_checkpoint):
    sizes = {"SCAN": (48, 48, 12), "SIZE": (4, 64, 64), "STUDIES": 4, "STEPS": 1, "BATCH": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(cases, name, value)
    monkeypatch.setattr(cases, "tiny", lambda folder, **sizes: tiny_checkpoint)

    def here(case, checkout, folder):  # in this process
        folder.mkdir(parents=True, exist_ok=True)
        return cases.CASES[case](folder)

    monkeypatch.setattr(run, "measure", here)
    wanted = ["serialize .nii", "boxes", "build", "3 boxes", "SFT step"]
    run.main([*wanted, "--repeats", "1", "--out", str(tmp_path / "bench.json")])
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["case"] for row in rows] == wanted and all(row["ours"] > 0 for row in rows)
    assert "| SFT step" in capsys.readouterr().out
