"""The file of results: whole lines, once each, whatever happens in between."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.inference import complete_results, read_results

RUN = {"model": {"sha256": "abc"}, "settings": {"seed": 0, "window": (1.0, 2.0)}}


def ask(path, *names, run=RUN, failing="", opened=None, meanwhile=lambda: None):
    """Complete a file with replies to questions of these ids; gives those that were asked."""
    asked = []

    def lines_of(todo):
        for name in (one.id for one in todo):
            asked.append(name)
            meanwhile()
            yield {"id": name, "text": "é\ud800\n"} | ({"error": {}} if name in failing else {})

    questions = [SimpleNamespace(id=name) for name in names]
    complete_results(path, run, questions, lines_of, opened=opened, quiet=True)
    return asked


def ids(path):
    return [record["id"] for record in read_results(path)]


@pytest.fixture
def out(tmp_path):
    """A file with one result."""
    path = tmp_path / "deep" / "out.jsonl"
    assert ask(path, "a") == ["a"]
    return path


@pytest.mark.parametrize("torn", [b"", b'{"id": "b"}', b"\0\0\0\0", b"\xc3"])
def test_goes_on_where_it_was_without_a_torn_line_and_failed_ones(out, torn):
    assert ask(out, "b", "c", failing="b", opened={"name": "phantom"}) == ["b", "c"]
    with out.open("ab") as file:
        file.write(torn)
    assert ids(out) == ["a", "b", "c"] and next(read_results(out))["text"] == "é\ud800\n"
    note = json.loads((out.parent / "out.jsonl.run.json").read_text())
    assert note["opened"] == {"name": "phantom"}
    assert ask(out, "b", "c") == ["b"]  # what others asked stays
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "c", "b"]


def test_results_of_another_run_and_files_of_others_are_left_alone(out, tmp_path):
    other = {"model": {"sha256": "xyz"}, "settings": RUN["settings"]}
    (tmp_path / "notes.txt").write_text("mine\n")
    message = r'model\.sha256 was "abc" and is now "xyz"'
    taken = {out: message, tmp_path / "notes.txt": "results without", tmp_path: "a folder"}
    taken[os.devnull] = "a device"  # some devices give lines without end
    for path, message in taken.items():
        with pytest.raises(RequestError, match=message):
            ask(path, "a", run=other)
    assert ids(out) == ["a"] and (tmp_path / "notes.txt").read_text() == "mine\n"
    out.unlink()
    assert ask(out, "a", run=other) == ["a"]  # nothing to mix with


@pytest.mark.parametrize(("line", "message"), [("rubbish\n", "line 2"), ('{"id": "a"}\n', "twice")])
def test_a_damaged_file_is_not_made_worse(out, line, message):
    with out.open("a") as file:
        file.write(line + '{"id": "b"}\n')
    before = out.read_bytes()
    with pytest.raises(RequestError, match=message):
        ask(out, "c")
    assert out.read_bytes() == before


def test_one_writer_at_a_time(out):
    alias = out.with_name("alias.jsonl")
    alias.symlink_to(out)
    with pytest.raises(DatasetError, match="a running process"):
        ask(out, "b", meanwhile=lambda: ask(alias, "c"))
    assert ask(out, "b") == ["b"]  # the lock file that is left means nothing


def test_a_full_disk_is_named_with_its_file(out, monkeypatch):
    """(It was a bare "Errno 28" without a path.)"""
    before, plain = out.read_bytes(), os.fsync

    def full(file):
        if os.path.samestat(os.fstat(file), out.stat()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match=r"out\.jsonl: expected space on the disk.*free some"):
        ask(out, "b")
    assert out.read_bytes() == before  # whole lines only
