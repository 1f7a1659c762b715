"""Files that appear whole or not at all, and caches that know when they are damaged."""

import os
from pathlib import Path

import pytest

from repro.errors import UserError
from repro.publish import alone, clear, replacing, store, stored


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("table.csv", "old")]
    with replacing(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("table.csv", "new")]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_only_what_kills_left_of_the_named_files_is_cleared(tmp_path: Path) -> None:
    for name in (".tmp-0f-index", ".tmp-index", ".tmp-0f-other", ".tmp-mine-index", "index"):
        (tmp_path / name).write_text("")
    clear(tmp_path, "index")
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-0f-other", ".tmp-mine-index", "index"}


def test_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other, longer")
    assert path.read_text() == "one", "the last to finish"
    assert [*tmp_path.iterdir()] == [path]


def test_any_damage_to_a_cache_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "cache"
    store(path, b"content")
    assert stored(path) == b"content"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :],
        ):
            path.write_bytes(damaged)
            assert stored(path) is None
    path.unlink()
    assert stored(path) is None
    os.mkfifo(path)
    assert stored(path) is None


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    with alone(tmp_path):
        if (pid := os.fork()) == 0:  # a lock of this kind is a process's
            try:
                with alone(tmp_path):
                    os._exit(0)
            except UserError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with alone(tmp_path):
        pass
