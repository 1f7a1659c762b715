"""Reading tab-separated files: what is handled, and what is refused with FILE:LINE and a cure."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import glue_folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp.config.glue import GlueDataConfig
from nlp.glue import data, tsv
from nlp.glue.data import TaskData
from repro.errors import UserError


def read(folder: Path, name: str | None = None, **options: object) -> TaskData:
    return data.read(name or folder.name, GlueDataConfig(root=str(folder), **options))  # type: ignore[arg-type]


def refused(folder: Path, name: str | None = None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, name, **options)
    return str(caught.value)


def spoil(path: Path, change: Callable[[list[bytes]], None]) -> Path:
    """Change the lines of a file."""
    lines = path.read_bytes().split(b"\n")
    change(lines)
    path.write_bytes(b"\n".join(lines))
    return path


def put(line: int, content: bytes) -> Callable[[list[bytes]], None]:
    """Return the change that replaces a line, counted from 1."""

    def change(lines: list[bytes]) -> None:
        lines[line - 1] = content

    return change


def test_a_pipe(tmp_path: Path) -> None:
    folder = glue_folders.sst2(tmp_path)
    (folder / "train.tsv").unlink()
    os.mkfifo(folder / "train.tsv")
    with pytest.raises(UserError, match=r"train\.tsv: cannot be read \(a pipe or a device"):
        tsv.read(folder / "train.tsv", ["label"])
    assert "train.tsv missing" in refused(folder)


# ---- handled


def test_a_sound_folder(tmp_path: Path) -> None:
    found = read(glue_folders.sst2(tmp_path))
    assert (len(found.train), len(found.dev[""]), len(found.test["SST-2"])) == (64, 24, 10)
    assert found.train.texts[1] == ('film 0 is "good , and the cast good too',)  # the lone quote stays
    assert found.train.labels is not None
    assert found.train.labels[:4].tolist() == [0, 1, 0, 1]
    assert found.test["SST-2"].labels is None
    assert found.test["SST-2"].index == [str(n) for n in range(10)]


def test_mark_crlf_and_empty_lines_at_the_end(tmp_path: Path) -> None:
    plain = read(glue_folders.sst2(tmp_path / "plain"))
    folder = glue_folders.sst2(tmp_path / "other")
    path = folder / "train.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\n\r\n")
    found = read(folder)
    assert found.train.texts == plain.train.texts
    assert found.train.labels is not None
    assert found.train.labels.tolist() == plain.train.labels.tolist()  # type: ignore[union-attr]


def test_a_last_line_without_its_end(tmp_path: Path) -> None:
    folder = glue_folders.sst2(tmp_path)
    (folder / "dev.tsv").write_bytes((folder / "dev.tsv").read_bytes().rstrip(b"\n"))
    assert len(read(folder).dev[""]) == 24


def test_a_header_where_none_is_expected(tmp_path: Path) -> None:
    plain = read(glue_folders.cola(tmp_path / "plain"))
    folder = glue_folders.cola(tmp_path / "other")
    path = folder / "train.tsv"
    path.write_bytes(b"source\tlabel\tlabel_notes\tsentence\n" + path.read_bytes())
    assert read(folder).train.texts == plain.train.texts


def test_other_line_breaks_of_unicode_are_text(tmp_path: Path) -> None:
    """str.splitlines would cut at each of these, and tokens of others' files would be off by a line."""
    folder = glue_folders.sst2(tmp_path)
    text = "a\x0bb\x0cc\x85d\u2028e\u2029f\x1cg"
    spoil(folder / "train.tsv", put(3, f"{text}\t1".encode()))
    assert read(folder).train.texts[1] == (text,)


def test_columns_of_mnli_go_by_name(tmp_path: Path) -> None:
    """The label is column 11 for training and column 15, from 0, in the development sets."""
    found = read(glue_folders.mnli(tmp_path))
    assert found.train.texts[4] == ("x 4", "maybe")
    assert found.dev["_matched"].labels is not None
    assert found.dev["_mismatched"].labels is not None
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [n % 3 for n in range(60)]
    assert found.dev["_matched"].labels.tolist() == [n % 3 for n in range(100, 112)]
    assert found.dev["_mismatched"].labels.tolist() == [n % 3 for n in range(200, 215)]
    assert {name: len(part) for name, part in found.test.items()} == {"MNLI-m": 6, "MNLI-mm": 6}


def test_mrpc_with_its_mark_and_its_other_name_for_the_first_column(tmp_path: Path) -> None:
    found = read(glue_folders.mrpc(tmp_path))
    assert found.train.texts[0] == ('film 0 is "bad , and the cast bad too', "no")
    assert found.test["MRPC"].labels is None
    assert found.test["MRPC"].index == [str(n) for n in range(8)]


def test_lines_with_other_columns_are_left_out_of_qqp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As everybody does: the official file has three."""
    names = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    rows = [[n, n, n, f"why {n}", f"how {n}", n % 2] for n in range(20)]
    glue_folders.write(tmp_path / "QQP" / "train.tsv", [names, *rows[:7], [1, 2], *rows[7:]])
    glue_folders.write(tmp_path / "QQP" / "dev.tsv", [names, *rows[:5]])
    glue_folders.write(tmp_path / "QQP" / "test.tsv", [["id", "question1", "question2"], [7, "a", "b"]])
    found = read(tmp_path / "QQP")
    assert len(found.train) == 20
    assert (
        "left out 1 line(s) with the wrong number of columns, the first of them line 9"
        in capsys.readouterr().out
    )
    assert found.test["QQP"].index == ["7"]
    assert ":9: has 2 columns, not 6" in refused(tmp_path / "QQP", bad_lines="refuse")


# ---- refused, with the line and the cure


CASES: list[tuple[str, str, Callable[[list[bytes]], None], str, str]] = [
    ("sst2", "train", put(1, b"text\tlabel"), ":1: has no column 'sentence'", "the first line has to name"),
    ("sst2", "train", put(1, b"sentence"), ":1: has no column 'label'", "the first line has to name"),
    ("sst2", "dev", put(1, b"a film\t1"), ":1: has no column 'sentence'", "the first line has to name"),
    ("sst2", "train", put(1, b"sentence\tlabel\tlabel"), ":1: has two columns 'label'", "differently"),
    ("sst2", "train", put(5, b"fine\t2"), ":5: label '2' is none of '0', '1'", "correct or drop the line"),
    ("sst2", "dev", put(7, b"fine\t"), ":7: label '' is none of '0', '1'", "correct or drop the line"),
    ("sst2", "train", put(9, b"fine\t1\t1"), ":9: has 3 columns, not 2", "data.bad_lines=skip"),
    ("sst2", "train", put(9, b"fine"), ":9: has 1 column, not 2: 'fine'", "one tab between columns"),
    ("sst2", "train", put(9, b""), ":9: is empty", "correct the line"),
    ("sst2", "train", put(4, b"caf\xe9\t1"), ":4: byte 0xe9 is not UTF-8", "iconv -f latin1 -t UTF-8"),
    ("sst2", "test", put(1, b"0\ta film"), ":1: has no column 'sentence'", "the first line has to name"),
    ("cola", "train", put(6, b"s\tyes\t\tfine"), ":6: label 'yes' is none of '0', '1'", "correct or drop"),
    ("cola", "train", put(1, b"s\tacceptable\tn\tt"), ":1: label 'acceptable' is none of", "drop the line"),
    ("cola", "train", put(1, b"fine\t1"), ":1: has 2 columns, not the 4 of source", "names with sentence"),
    ("cola", "test", put(1, b"0\tfine"), ":1: has 2 columns, not the 4", "names with sentence"),
    ("stsb", "train", put(3, b"1\tg\tf\ty\t1\tn\tn\ta\tb\tfour"), ":3: score 'four' is no number", "0 to 5"),
    ("stsb", "train", put(3, b"1\tg\tf\ty\t1\tn\tn\ta\tb\t5.2"), ":3: score '5.2' is out of range", "0 to 5"),
    ("stsb", "dev", put(2, b"1\tg\tf\ty\t1\tn\tn\ta\tb\t-0.1"), ":2: score '-0.1' is out of range", "0 to 5"),
    ("stsb", "train", put(3, b"1\tg\tf\ty\t1\tn\tn\ta\tb\tnan"), ":3: score 'nan' is no number", "0 to 5"),
    ("stsb", "train", put(3, b"1\tg\tf\ty\t1\tn\tn\ta\tb\tinf"), ":3: score 'inf' is out of range", "0 to 5"),
    ("mnli", "dev_mismatched", put(3, b"\t".join([b"x"] * 15 + [b"-"])), ":3: gold_label '-'", "correct"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "split", "change", "says", "cure"), CASES)
def test_what_is_refused(
    tmp_path: Path, task: str, split: str, change: Callable[[list[bytes]], None], says: str, cure: str
) -> None:
    folder: Path = getattr(glue_folders, task)(tmp_path)
    path = spoil(folder / f"{split}.tsv", change)
    message = refused(folder)
    assert message.startswith(f"{path}{says}")
    assert cure in message
    assert "\n" not in message


def test_empty_files(tmp_path: Path) -> None:
    folder = glue_folders.sst2(tmp_path)
    for content in (b"", b"\n\n", b"\xef\xbb\xbf\r\n"):
        (folder / "dev.tsv").write_bytes(content)
        assert refused(folder) == f"{folder / 'dev.tsv'}: is empty; get the file again"
    (folder / "dev.tsv").write_bytes(b"sentence\tlabel\n")
    assert "dev.tsv: has no examples, only a line of names" in refused(folder)


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32"])
def test_utf16(tmp_path: Path, encoding: str) -> None:
    """It is called what iconv, as Python, reads it as."""
    folder = glue_folders.sst2(tmp_path)
    path = folder / "train.tsv"
    text = path.read_text()
    path.write_text(text, encoding=encoding)
    cure = f"convert it with iconv -f {encoding} -t UTF-8"
    assert refused(folder) == f"{path}: is {encoding}, not UTF-8; {cure}"
    assert path.read_text(encoding=encoding) == text


def test_missing_and_copied_splits(tmp_path: Path) -> None:
    folder = glue_folders.sst2(tmp_path)
    (folder / "dev.tsv").write_bytes((folder / "train.tsv").read_bytes())
    assert "the dev split is a copy of the training split" in refused(folder)
    (folder / "train.tsv").unlink()
    assert refused(folder) == f"{folder}: train.tsv missing; there is dev.tsv, test.tsv. Get the whole task"
    (folder / "dev.tsv").unlink()
    (folder / "test.tsv").unlink()
    assert "has no folder SST-2 and no tsv files" in refused(folder)
    mnli = glue_folders.mnli(tmp_path)
    (mnli / "dev_mismatched.tsv").unlink()
    assert "dev_mismatched.tsv missing; there is dev_matched.tsv, test_matched.tsv" in refused(mnli)


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    folder = glue_folders.sst2(tmp_path)
    (folder / "test.tsv").unlink()
    (folder / "test.tsv").mkdir()
    assert "test.tsv: cannot be read (Is a directory)" in refused(folder)


# ---- anything at all


CELL = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], end: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.tsv"
    written = [("a", "b", "c"), *rows]
    path.write_bytes("".join("\t".join(row) + end for row in written).encode())
    found = tsv.read(path, ["c", "a"])
    assert [tuple(row) for row in found.rows] == rows
    assert found.column("b") == [row[1] for row in rows]
    assert found.lines == list(range(2, len(rows) + 2))


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / "x.tsv"
    path.write_bytes(b"sentence\tlabel\n" + content)
    for columns in ((), ("sentence", "label")):
        table = None
        with contextlib.suppress(UserError):  # and no other error
            table = tsv.read(path, ["sentence", "label"], columns)
        if table is not None:
            assert all(len(row) == 2 for row in table.rows)
            assert len(table.rows) == len(table.lines)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20))
def test_a_label_is_one_of_the_classes_or_refused(
    tmp_path_factory: pytest.TempPathFactory, label: str
) -> None:
    folder = glue_folders.sst2(tmp_path_factory.mktemp("any"), train=4, dev=2)
    with (folder / "train.tsv").open("ab") as file:
        file.write(f"fine\t{label}\n".encode("utf-8", "replace"))
    if label in ("0", "1", "0\r", "1\r", "0\n", "1\n"):
        assert len(read(folder).train) == 5
    else:
        assert refused(folder).startswith(f"{folder / 'train.tsv'}:6: ") or "\n" in label
