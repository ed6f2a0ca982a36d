"""The file of results: whole lines, once each, whatever happens in between."""

import errno
import json
import os

import pytest

from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.inference import ResultsFile, read_results

RUN = {"model": {"sha256": "abc"}, "settings": {"seed": 0, "window": (1.0, 2.0)}}


def ids(path):
    return [record["id"] for record in read_results(path)]


@pytest.fixture
def out(tmp_path):
    """A file with one result."""
    path = tmp_path / "deep" / "out.jsonl"
    with ResultsFile(path, RUN) as results:
        assert results.done == set()
        results.append({"id": "a", "text": "é\ud800\n"})
    return path


@pytest.mark.parametrize("torn", [b"", b'{"id": "b"}', b"\0\0\0\0", b"\xc3"])
def test_goes_on_where_it_was_without_a_torn_line_and_failed_ones(out, torn):
    with ResultsFile(out, RUN, opened={"name": "phantom"}) as results:
        for record in ({"id": "b", "error": {}}, {"id": "c"}):
            results.append(record)
    with out.open("ab") as file:
        file.write(torn)
    assert ids(out) == ["a", "b", "c"] and next(read_results(out))["text"] == "é\ud800\n"
    note = json.loads((out.parent / "out.jsonl.run.json").read_text())
    assert note["opened"] == {"name": "phantom"}
    with ResultsFile(out, RUN) as results:
        assert results.done == {"a", "c"}
        results.append({"id": "b"})
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "c", "b"]


def test_another_run_is_refused_and_told_what_differs(out):
    other = {"model": {"sha256": "xyz"}, "settings": RUN["settings"]}
    message = r'model\.sha256 was "abc" and is now "xyz"'
    with pytest.raises(RequestError, match=message), ResultsFile(out, other):
        pass
    assert ids(out) == ["a"]
    out.unlink()
    with ResultsFile(out, other) as results:  # nothing to mix with
        results.append({"id": "a"})


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    for taken, message in ((path, "results without"), (tmp_path, "a folder")):
        with pytest.raises(RequestError, match=message), ResultsFile(taken, RUN):
            pass
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize(("line", "message"), [("rubbish\n", "line 2"), ('{"id": "a"}\n', "twice")])
def test_a_damaged_file_is_not_made_worse(out, line, message):
    with out.open("a") as file:
        file.write(line + '{"id": "b"}\n')
    before = out.read_bytes()
    with pytest.raises(RequestError, match=message), ResultsFile(out, RUN):
        pass
    assert out.read_bytes() == before


def test_one_writer_at_a_time(out):
    alias = out.with_name("alias.jsonl")
    alias.symlink_to(out)
    second = ResultsFile(alias, RUN)
    with ResultsFile(out, RUN), pytest.raises(DatasetError, match="a running process"), second:
        pass
    with ResultsFile(out, RUN) as results:  # the lock file that is left means nothing
        results.append({"id": "b"})


def test_a_full_disk_names_the_file_and_leaves_whole_lines(out, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with ResultsFile(out, RUN) as results:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(DatasetError, match=r"out\.jsonl: expected space on the disk"):
            results.append({"id": "b", "text": "x" * 100})
        monkeypatch.undo()
        assert results.done == {"a"} and ids(out) == ["a"]
        results.append({"id": "b"})
    assert ids(out) == ["a", "b"]
