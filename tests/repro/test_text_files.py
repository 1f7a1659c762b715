"""Text files: which lines they have, in whatever pieces they are read."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repro.errors import UserError
from repro.text import files

FIXTURES = [HealthCheck.function_scoped_fixture]
RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=FIXTURES)
TEXTS = st.text(st.sampled_from("ab é\n\n\r\u2028\x0b\x1c\u00a0𝄞"), max_size=60)


def lines_of(path: Path, size: int = 2**62, strip: bool = False) -> list[str]:
    """All lines of all pieces."""
    return [line for piece in files.pieces(path, size, strip) for lines in piece.batches() for line in lines]


@RELAXED
@given(text=TEXTS, size=st.integers(1, 40), chunk=st.integers(1, 16))
def test_lines_are_the_same_in_all_pieces(
    text: str, size: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    expected = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    expected = ["" if line.isspace() else line for line in expected]
    monkeypatch.setattr(files, "CHUNK", chunk)
    assert lines_of(path, size) == expected
    assert lines_of(path, size, strip=True) == [line.strip() for line in expected]


@RELAXED
@given(text=TEXTS, size=st.integers(1, 40))
def test_pieces_are_the_whole_file_and_end_with_lines(text: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    found = files.pieces(path, size, True)
    ranges = [place for piece in found for place in piece.ranges]
    ends = [0, *(end for _, end in ranges)]
    assert [begin for begin, _ in ranges] == ends[:-1]
    assert ends[-1] == len(text.encode())
    assert all(text.encode()[end - 1 : end] == b"\n" for end in ends[1:-1])
    assert len({piece.name for piece in found}) == len(found)


def test_the_mark_of_an_editor_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\ntwo \ufeff\n".encode())
    assert lines_of(path, size=1) == ["one", "two \ufeff"]


@pytest.mark.parametrize("chunk", [8, 2**20])
def test_bad_utf8_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(files, "CHUNK", chunk)
    path = tmp_path / "text.txt"
    path.write_bytes(b"good\n" * 6 + b"caf\xe9 au lait\nmore\n")
    with pytest.raises(UserError, match=r"text.txt: line 7 is not UTF-8 \(byte 0xe9 at offset 33\); convert"):
        lines_of(path, size=10)


def test_utf16_is_named_with_its_cure(tmp_path: Path) -> None:
    """Without a mark it is valid UTF-8, too, and would be learned with its zero bytes."""
    path = tmp_path / "text.txt"
    for encoding in ("UTF-16", "UTF-16LE"):
        path.write_text("one\ntwo\n", encoding=encoding)
        with pytest.raises(
            UserError, match=f"is {encoding}, not UTF-8; convert it with iconv -f {encoding} -t"
        ):
            lines_of(path)


def test_text_without_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 16)
    monkeypatch.setattr(files, "LONGEST", 100)
    path = tmp_path / "text.txt"
    path.write_bytes(b"short\n" + b"x" * 90 + b"\n")
    assert lines_of(path) == ["short", "x" * 90]
    path.write_bytes(b"short\n" + b"x" * 200)
    with pytest.raises(UserError, match=r"a line of more than 0 MiB, from byte 6 on; text is read by lines"):
        lines_of(path)


@RELAXED
@given(
    documents=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=9), min_size=1, max_size=80),
    share=st.floats(0.01, 0.5),
)
def test_held_out_text_is_part_of_the_file(documents: list[list[int]], share: float, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\n".join(b"".join(b"x" * n + b"\n" for n in lines) for lines in documents))
    content = path.read_bytes()
    train, valid = files.hold_out(path, share)
    assert sorted(train + valid) == [
        (begin, end)
        for begin, end in zip(
            sorted(begin for begin, _ in train + valid),
            [*sorted(begin for begin, _ in train + valid)[1:], len(content)],
            strict=True,
        )
    ]  # together they are all of it, without overlap
    assert all(content[end - 1 : end] == b"\n" for _, end in train + valid)


def test_held_out_text_is_spread_and_ends_with_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"a line\n" * 5 + b"\n" for _ in range(20_000)))
    train, valid = files.hold_out(path, 0.1)
    size = path.stat().st_size
    assert sum(end - begin for begin, end in valid) / size == pytest.approx(0.1, abs=0.002)
    assert len(train) == len(valid) == 100
    assert max(end - begin for begin, end in train) < 0.012 * size
    assert all(begin % 36 == end % 36 == 0 for begin, end in valid)  # a document has 36 bytes
    for ranges in (train, valid):
        found = files.pieces(path, 10_000, True, ranges)
        assert sum(piece.size for piece in found) == sum(end - begin for begin, end in ranges)
        assert all(10_000 <= piece.size < 10_007 for piece in found[:-1])
        lines = [line for begin, end in ranges for line in content_lines(path, begin, end)]
        assert [line for piece in found for lines in piece.batches() for line in lines] == lines


def content_lines(path: Path, begin: int, end: int) -> list[str]:
    """The lines of a range of bytes."""
    return path.read_bytes()[begin:end].decode().removesuffix("\n").split("\n")
