"""The file of results: whole lines, once each, whatever happens in between."""

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


def test_results_of_another_run_and_files_of_others_are_left_alone(out, tmp_path):
    other = {"model": {"sha256": "xyz"}, "settings": RUN["settings"]}
    (tmp_path / "notes.txt").write_text("mine\n")
    message = r'model\.sha256 was "abc" and is now "xyz"'
    taken = {out: message, tmp_path / "notes.txt": "results without", tmp_path: "a folder"}
    taken[os.devnull] = "a device"  # some devices give lines without end
    for path, message in taken.items():
        with pytest.raises(RequestError, match=message), ResultsFile(path, other):
            pass
    assert ids(out) == ["a"] and (tmp_path / "notes.txt").read_text() == "mine\n"
    out.unlink()
    with ResultsFile(out, other) as results:  # nothing to mix with
        results.append({"id": "a"})


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
