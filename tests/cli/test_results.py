"""The file of results: whole lines, once each, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os

import pytest

from unireason_lib.errors import RequestError
from unireason_lib.inference import ResultsFile, read_results

RUN = {"model": {"sha256": "abc"}, "settings": {"seed": 0, "window": (1.0, 2.0)}}


def ids(path):
    return [record["id"] for record in read_results(path)]


def test_goes_on_where_it_was(tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        assert results.done == set()
        results.append({"id": "a", "text": "é\ud800\n"})
        results.append({"id": "b"})
    with ResultsFile(path, RUN) as results:
        assert results.done == {"a", "b"}
        results.append({"id": "c"})
    assert ids(path) == ["a", "b", "c"] and next(read_results(path))["text"] == "é\ud800\n"


@pytest.mark.parametrize("torn", [b'{"id": "b", "te', b'{"id": "b"}', b"\0\0\0\0", b"\xc3"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        results.append({"id": "a"})
    with path.open("ab") as file:
        file.write(torn)
    assert ids(path) == ["a"]
    with ResultsFile(path, RUN) as results:
        assert results.done == {"a"}
        results.append({"id": "b"})
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_failed_lines_are_taken_out_when_they_are_tried_again(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        for record in ({"id": "a"}, {"id": "b", "error": {}}, {"id": "c", "error": {}}, {"id": "d"}):
            results.append(record)
    with path.open("ab") as file:
        file.write(b'{"id": "e"')
    with ResultsFile(path, RUN, retry=["a", "b"]) as results:
        assert results.done == {"a", "c", "d"}  # c is not part of this run: its error stays
        assert ids(path) == ["a", "c", "d"]
        results.append({"id": "b"})
    assert ids(path) == ["a", "c", "d", "b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "out.jsonl",
        "out.jsonl.lock",
        "out.jsonl.run.json",
    ]


def test_another_run_is_refused_and_told_what_differs(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        results.append({"id": "a"})
    other = {"model": {"sha256": "xyz"}, "settings": RUN["settings"]}
    with (
        pytest.raises(RequestError, match=r'model\.sha256 was "abc" and is now "xyz"'),
        ResultsFile(path, other),
    ):
        pass
    assert ids(path) == ["a"]
    path.unlink()
    with ResultsFile(path, other) as results:  # nothing to mix with
        results.append({"id": "a"})


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(RequestError, match="results without"), ResultsFile(path, RUN):
        pass
    assert path.read_text() == "mine\n"
    with pytest.raises(RequestError, match="a folder"), ResultsFile(tmp_path, RUN):
        pass


@pytest.mark.parametrize(("line", "says"), [("rubbish\n", "line 2"), ('{"id": "a"}\n', "'a' twice")])
def test_a_damaged_file_is_not_made_worse(tmp_path, line, says):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        results.append({"id": "a"})
    with path.open("a") as file:
        file.write(line + '{"id": "b"}\n')
    before = path.read_bytes()
    with pytest.raises(RequestError, match=says), ResultsFile(path, RUN):
        pass
    assert path.read_bytes() == before


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "out.jsonl"
    (tmp_path / "alias.jsonl").symlink_to(path)
    with ResultsFile(path, RUN):
        for name in ("out.jsonl", "alias.jsonl"):
            with pytest.raises(RequestError, match="another run"), ResultsFile(tmp_path / name, RUN):
                pass
    with ResultsFile(path, RUN) as results:  # the lock file that is left means nothing
        results.append({"id": "a"})


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        results.append({"id": "a"})
        write = os.write

        def half(handle, data):
            if len(data) < 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(handle, bytes(data[: len(data) // 2]))

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            results.append({"id": "b", "text": "x" * 100})
        monkeypatch.undo()
        assert results.done == {"a"}
        results.append({"id": "b"})
    assert ids(path) == ["a", "b"]
