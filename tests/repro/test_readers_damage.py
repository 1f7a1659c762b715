"""Files in a bad state, in every format: what is wrong is named, what is sound is kept, strict refuses."""

import codecs
import gzip
import itertools
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]
import pytest
from released_samples import LOGS, MAE, MEGATRON, TIMM, TRANSFORMER_XL, Folder, accounted

from repro.logs import read, source
from repro.logs.log import LogError

every_log = pytest.mark.parametrize(("format", "content"), LOGS.values(), ids=LOGS)


def refuses(path: Path, match: str) -> None:
    with pytest.raises(LogError, match=match):
        read(path, strict=True)


@every_log
def test_encodings_and_line_ends(tmp_path: Path, format: str, content: str) -> None:
    folder = Folder(tmp_path)
    plain = read(folder.write(content), strict=True)
    assert plain.format == format
    assert accounted(plain)
    unix = content.replace("\r\n", "\n")
    for form in (
        unix,
        unix.replace("\n", "\r\n"),
        codecs.BOM_UTF8 + content.encode(),
        content.encode("utf-16"),
        gzip.compress(content.encode()),
        gzip.compress(content[:200].encode()) + gzip.compress(content[200:].encode()),
    ):
        log = read(folder.write(form), strict=True)
        assert log.table.equals(plain.table)
        assert (log.lines, log.config, log.events) == (plain.lines, plain.config, plain.events)


def table_of(folder: Folder, format: str, content: str) -> pd.DataFrame | None:
    try:
        log = folder.parse(format, content)
    except LogError:
        return None
    assert accounted(log)
    return log.table


@every_log
def test_truncated_anywhere(tmp_path: Path, format: str, content: str) -> None:
    """A line that is cut off gives no record, and takes no other with it."""
    for end in range(1, len(content), 1 + len(content) // 60):
        cut = content[:end]
        complete = cut if cut.endswith("}") else cut[: cut.rfind("\n") + 1]  # an object in JSON is whole, too
        found = table_of(Folder(tmp_path), format, cut)
        expected = table_of(Folder(tmp_path), format, complete)
        assert found is expected is None or (found is not None and found.equals(expected))


@every_log
def test_cut_off_in_a_record(tmp_path: Path, format: str, content: str) -> None:
    last = read(Folder(tmp_path).write(content)).table["line"].max()
    lines = content.splitlines(keepends=True)[:last]
    path = Folder(tmp_path).write("".join(lines).rstrip()[:-2])
    if len(lines) > 2:
        log = read(path)
        assert log.lines["fault"] == 1
        assert log.faults[0].startswith(f"{path}:{last}: ")
    refuses(path, f"log:{last}: ")


@every_log
def test_truncated_while_compressed(tmp_path: Path, format: str, content: str) -> None:
    many = content.encode() + b"\n" * 100_000
    path = Folder(tmp_path).write(gzip.compress(many, compresslevel=0)[:-60_000], "log.gz")
    log = read(path)
    assert len(log.table) == len(read(Folder(tmp_path).write(content)).table)
    assert log.faults == [f"{path}: the compressed file ends early or is damaged"]
    refuses(path, "1 faults: .*ends early")


def test_compressed_but_damaged(tmp_path: Path) -> None:
    folder, packed = Folder(tmp_path), bytearray(gzip.compress(MAE.encode()))
    packed[-6] ^= 255  # in the checksum: the content is there
    assert len(read(folder.write(bytes(packed))).table) == 4
    with pytest.raises(LogError, match="log: broken gzip file"):
        read(folder.write(bytes(packed[:5])))


@every_log
def test_bytes_that_are_not_text(tmp_path: Path, format: str, content: str) -> None:
    plain = read(Folder(tmp_path).write(content))
    place = int(plain.table["line"].iloc[0])
    lines = content.encode().splitlines(keepends=True)
    lines[place - 1] = lines[place - 1][:10] + b"\xff\xfe" + lines[place - 1][10:]
    path = Folder(tmp_path).write(b"".join(lines))
    log = read(path)
    assert log.faults == [f"{path}:{place}: bytes that are not text"]
    assert log.table["line"].tolist() == plain.table["line"].tolist()[1:]
    refuses(path, f":{place}: bytes that are not text")


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(LOGS, 2)))
def test_log_of_another_format_appended(tmp_path: Path, first: str, second: str) -> None:
    if LOGS[first][0] == LOGS[second][0]:
        return
    plain = read(Folder(tmp_path).write(LOGS[first][1]))
    records = read(Folder(tmp_path).write(LOGS[second][1])).lines["record"]
    path = Folder(tmp_path).write(LOGS[first][1] + LOGS[second][1])
    log = read(path)
    assert log.format == LOGS[first][0]
    assert log.table.equals(plain.table)
    assert log.lines["record"] == plain.lines["record"]
    assert log.lines["fault"] >= records
    after = sum(plain.lines.values())
    assert int(log.faults[0].removeprefix(f"{path}:").split(":")[0]) > after
    refuses(path, "faults: ")


@every_log
def test_two_processes_in_one_file(tmp_path: Path, format: str, content: str) -> None:
    if format == "timm":
        content = content.replace("epoch,train_loss,eval_loss,eval_top1,eval_top5\r\n2", "2")
    plain = read(Folder(tmp_path).write(content))
    records = set(plain.table["line"])
    if plain.repeated or len(records) < 3:
        return
    lines = content.splitlines(keepends=True)
    doubled = [line for n, text in enumerate(lines, 1) for line in [text] * (1 + (n in records))]
    log = read(Folder(tmp_path).write("".join(doubled)))
    assert log.table.drop(columns="line").equals(plain.table.drop(columns="line"))
    assert log.repeated == len(records)
    assert any("several processes wrote it" in oddity for oddity in log.oddities)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (b"\n \n", "not a log that this reads"),
        (b"\x89PNG\r\n\0\0\0", "a binary file"),
        (gzip.compress(b"PK\0\0", mtime=0), "a binary file"),
        (b"hello\n", "not a log that this reads .*timm summary, MAE.*; it begins with 'hello'"),
        (b"\xff\xff\xff", "not a log that this reads"),
        (b"time,loss\n1,2\n", "not a log that this reads"),
        (TIMM.split("\n")[0].encode() + b"\n", "no record in it that could be read"),
        (TRANSFORMER_XL[:500].encode(), "no record in it that could be read"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(LogError, match=f"log: {why}"):
        read(Folder(tmp_path).write(content))


def test_places_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(LogError, match="a folder, and not one that holds a log"):
        read(tmp_path)


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = Folder(tmp_path).write(MAE)
    monkeypatch.setattr(source, "read_bytes", refuse)
    with pytest.raises(LogError, match=r"log: cannot be read \(Permission denied\)"):
        read(path)


def test_parts_of_different_formats(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(LogError, match=r"b is a mae log, .*a a timm one"):
        read([folder.write(TIMM, "a"), folder.write(MAE, "b")])


def test_a_restart_is_no_second_process(tmp_path: Path) -> None:
    rows = [
        "epoch,train_loss\n",
        *(f"{epoch},1.5\n" for epoch in [*range(10), *range(8, 20), *range(15, 30)]),
    ]
    log = read(Folder(tmp_path).write("".join(rows)), strict=True)
    assert (log.resumes, log.repeated, len(log.table)) == (2, 7, 30)
    assert log.table.set_index("epoch")["segment"].to_dict() == {
        epoch: (epoch >= 8) + (epoch >= 15) for epoch in range(30)
    }


def test_shown_faults_are_few(tmp_path: Path) -> None:
    path = Folder(tmp_path).write(MEGATRON + "iteration 1/ 2 | x |\n" * 10)
    refuses(path, r"10 faults: .*log:16: .*; .*log:18: [^;]*; and 7 more$")
