"""Files are written whole and read without trust; errors survive a process pool."""

import errno
import io
import os
import pickle
import subprocess
import sys

import pytest
from PIL import Image

from unireason_lib import io as files
from unireason_lib.errors import DatasetError, ScanError, UniReasonError


def test_errors_survive_a_process_pool():
    for kind in UniReasonError.__subclasses__():
        for parts in (("a.nii", "a volume", "3", "check it"), ("a whole message",)):
            again = pickle.loads(pickle.dumps(kind(*parts)))
            assert type(again) is kind and str(again) == str(kind(*parts))
            assert (again.subject, again.do) == (parts[0], parts[-1] if len(parts) > 1 else None)
    message = "a.nii: expected a volume, found 3. What to do: check it."
    assert str(ScanError("a.nii", "a volume", 3, "check it")) == message


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_whole(path, ["one ", "two \ud800"])
    assert path.read_text() == "one two \\ud800"
    with pytest.raises(RuntimeError, match="killed"), files.whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError("killed")
    assert path.read_text() == "one two \\ud800" and os.listdir(path.parent) == ["a.txt"]
    files.write_json(path, {"b": 1, "a": "ä"})
    assert files.read_json(path) == {"a": "ä", "b": 1}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "set"
    with pytest.raises(RuntimeError, match="killed"), files.whole_folder(folder) as part:
        (part / "a.txt").write_text("half")
        raise RuntimeError("killed")
    assert not os.listdir(folder.parent)
    for text in ("first", "second"):  # of two processes the first one counts
        with files.whole_folder(folder) as part:
            (part / "a.txt").write_text(text)
            assert (folder / "a.txt").exists() == (text == "second")
    assert (folder / "a.txt").read_text() == "first" and os.listdir(folder.parent) == ["set"]


def test_lines_are_read_as_they_were_written_and_torn_ones_passed_over_report_5(tmp_path):
    texts, path = ["a\u2028b", "c\x85d", "µ"], tmp_path / "a.jsonl"
    files.append_lines(path, [{"text": text} for text in texts])
    assert [line["text"] for line in files.read_lines(path)] == texts
    path.write_bytes(path.read_bytes() + '{"text": "µ'.encode()[:-1])
    assert [line["text"] for line in files.read_lines(path)] == texts


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DatasetError, match=r"pipe\.json: expected a file or nothing"):
        files.write_json(tmp_path / "pipe.json", {})
    assert os.listdir(tmp_path) == ["pipe.json"] and (tmp_path / "pipe.json").is_fifo()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, code):
    def full(handle):
        raise OSError(code, os.strerror(code))

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetError, match=r"a\.json.*free some space"):
        files.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    for path in (tmp_path / "a.json", tmp_path / "missing.json"):
        with pytest.raises(ScanError, match="What to do"):
            files.read_json(path, ScanError)


OUTSIDE = r"| |/etc/passwd|../a|b/../../a|.|out/a|C:/a|C:a|a\b|\\host\a"


@pytest.mark.parametrize("written", [*OUTSIDE.split("|"), "a\0b"])
def test_paths_that_lead_out_of_a_folder_are_refused(tmp_path, written):
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(ScanError, match=r"table.csv: expected a path inside root/"):
        files.safe_path(root, written, "table.csv", ScanError)
    assert files.safe_path(root, "./b/c.png") == root.resolve() / "b" / "c.png"
    inside = str(root.resolve() / "a")
    assert files.safe_path(root, inside, absolute=True) == root.resolve() / "a"
    with pytest.raises(DatasetError):
        files.safe_path(root, str(tmp_path / "a"), absolute=True)


def encoded(kind, size=(5, 4), **options):
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, kind, **options)
    return stream.getvalue()


def test_only_images_of_named_formats_and_sizes_are_decoded(tmp_path, monkeypatch):
    """B8: for an EPS Pillow starts Ghostscript."""
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM"):
        assert files.open_image(encoded(kind)).size == (5, 4)
    pages = encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (5, 4))])
    bad = [encoded("EPS"), encoded("ICO", (16, 16)), b"", b"text", encoded("PNG")[:40], pages]
    for content in bad:
        with pytest.raises(ScanError, match="What to do"):
            files.open_image(content, "a.png")
    monkeypatch.setattr(files, "MAX_IMAGE_PIXELS", 19)
    with pytest.raises(ScanError, match=r"at most 19 pixels, found 5 x 4"):
        files.open_image(encoded("PNG"))
    with pytest.raises(ScanError, match="No such file"):
        files.open_image(tmp_path / "missing.png")


def test_a_lock_refuses_a_second_process_and_is_free_afterwards(tmp_path):
    path = tmp_path / "sub" / "a.lock"
    code = "from unireason_lib.io import locked\n"
    second = [sys.executable, "-c", f"{code}with locked({str(path)!r}, 'the set'): print('in')"]
    with files.locked(path, "the set"):
        refused = subprocess.run(second, capture_output=True, text=True)
    assert refused.returncode and "the set: expected nobody else writing it" in refused.stderr
    assert subprocess.run(second, capture_output=True, text=True).stdout == "in\n"
    (tmp_path / "file").touch()
    file_as_folder = files.locked(tmp_path / "file" / "l", "x")
    with pytest.raises(DatasetError, match="a writable folder"), file_as_folder:
        pass
