"""Data files that are no data: pipes, devices, bombs, other encodings, JSON beyond reason."""

import gzip
import json
import os
import socket
import time

import pytest

from envs import files
from envs.base import EnvDataError


@pytest.fixture(autouse=True)
def in_two_seconds():
    start = time.thread_time()
    yield
    assert time.thread_time() - start < 4  # of this thread: others may be busy


def refused(call, *arguments) -> str:
    with pytest.raises(EnvDataError) as error:
        call(*arguments)
    text = str(error.value)
    assert text.isprintable(), text
    return text


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.json"))
        for name, kind in (("pipe", "a pipe"), ("folder", "a directory"), ("socket", "a socket")):
            path = tmp_path / f"{name}.json"
            for read in (files.read_json, files.read_text, lambda p: list(files.read_lines(p))):
                assert refused(read, path) == f"{path}: is {kind}; it must be a regular file"
    assert "a device" in refused(files.read_text, "/dev/zero")
    assert "No such file" in refused(files.read_text, tmp_path / "none")
    assert "null byte" in refused(files.read_text, "a\0b")
    (tmp_path / "link.json").symlink_to(tmp_path / "pipe.json")
    assert "a pipe" in refused(files.read_json, tmp_path / "link.json")


def test_size_is_bounded(tmp_path):
    sparse = tmp_path / "sparse.txt"
    with open(sparse, "wb") as file:
        file.truncate(1 << 40)
    assert "more than" in refused(files.read_text, sparse)
    assert "line 1" in refused(lambda: list(files.read_lines(sparse)))
    assert "more than 3 bytes" in refused(files.read_bytes, sparse, 3)


@pytest.mark.parametrize("line", [b"\n", b"\0"])
def test_a_gzip_bomb_is_not_expanded(tmp_path, line):
    bomb = tmp_path / "bomb.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(line * (1 << 20))
    assert str(bomb) in refused(lambda: list(files.read_lines(bomb)))
    assert str(bomb) in refused(files.read_bytes, bomb)


def test_compressed_text_is_read(tmp_path):
    path = tmp_path / "some.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for number in range(20_000):
            file.write(json.dumps({"number": number}) + "\r\n")
    lines = list(files.read_lines(path))
    assert len(lines) == 20_000 and json.loads(lines[-1]) == {"number": 19_999}
    data = path.read_bytes()
    for broken in (data[:-9], data[:100] + b"\xff" * 50 + data[150:], b"", b"plain text"):
        path.write_bytes(broken)
        if broken:
            assert str(path) in refused(lambda: list(files.read_lines(path)))


def test_text_of_another_encoding(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert files.read_text(path) == "a\nb\nc\n"
    path.write_bytes(b"caf\xe9")
    assert refused(files.read_text, path) == f"{path}: not UTF-8 text (byte 0xe9)"
    assert "not UTF-8 text" in refused(lambda: list(files.read_lines(path)))


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 200_000, '{"a":' * 200_000, "NaN", "[-Infinity]", "1e400", "1" * 5000]
)
def test_json_beyond_reason(text):
    assert refused(files.parse_json, text, "file.json").startswith("file.json: not JSON")


def test_half_characters_in_json_are_replaced():
    text = r'{"\ud800": ["\uDC80 x", {"y": "\ud83d\ude00", "z": 1}], "plain": "\u00e9"}'
    expected = {"\ufffd": ["\ufffd x", {"y": "\U0001f600", "z": 1}], "plain": "\u00e9"}
    assert files.parse_json(text, "x") == expected
    assert files.decode_at("[] " + text, 3) == (expected, len(text) + 3)


def test_an_error_is_one_safe_line():
    error = EnvDataError("file \x1b]0;title\x07: \udc80 first\r\n\tsecond \u202e" + "x" * 100_000)
    assert str(error).startswith(r"file \x1b]0;title\x07: \udc80 first second \u202e")
    assert str(error).isprintable() and len(str(error)) <= 2000
