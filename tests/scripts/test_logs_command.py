"""scripts/logs.py: logs shown, drawn and exported; files fetched from a server that misbehaves."""

import hashlib
import json
import re
import runpy
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pandas as pd  # type: ignore[import-untyped]
import pytest
from PIL import Image, ImageColor
from pyarrow import parquet  # type: ignore[import-untyped]

from repro.errors import UserError
from repro.ledger import rows
from repro.ledger.rows import File
from repro.logs import FORMATS, files, read
from repro.logs.files import fetch
from repro.plots import COLOURS, MOST

ROOT = Path(__file__).resolve().parents[2]
RELEASED = runpy.run_path(str(ROOT / "scripts" / "logs.py"))["main"]
HEADER = "epoch,train_loss,eval_loss,eval_top1,eval_top5"


def summary(path: Path, epochs: range, top1: float = 50.0) -> Path:
    """Write a timm summary whose accuracy is best two epochs before the end."""
    rows = [f"{e},{2 / (e + 1)},1.5,{top1 - abs(epochs[-1] - 2 - e)},90.0" for e in epochs]
    path.write_text("\n".join([HEADER, *rows, ""]))
    return path


# show, plot, export


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = summary(tmp_path / "summary.csv", range(10))
    path.write_text(path.read_text() + "broken\n" * 7 + HEADER + "\n9,0.1,1.0,49.0,nan\n")
    assert RELEASED(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        f"{path}\nformat    timm summary\nrecords   10: 10 epoch\nlines     11 record, 2 other, 7 fault\n"
    )
    assert "\nposition  epoch 0 to 9 (the first epoch is 0)\nresumes   1\nrepeated  1 replaced" in text
    line = next(line for line in text.splitlines() if line.startswith("eval_top1"))
    assert re.split(r"  +", line) == ["eval_top1", "10", "43 @0", "49 @9", "50 @7", "%"]
    assert "\nfaults    7\n" in text
    assert text.count("1 values under 5 columns") == 5
    assert "\n  and 2 more (--all shows them)\n" in text
    assert "eval_top5 is nan" in text
    assert RELEASED(["show", "--all", str(path)]) == 0
    assert capsys.readouterr().out.count("1 values under 5 columns") == 7
    assert RELEASED(["show", "--strict", str(path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: 7 .*: {path}:12: 1 values under 5 columns; ", error)


def test_show_parts_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [summary(tmp_path / "a.csv", range(6)), summary(tmp_path / "b.csv", range(4, 9))]
    assert RELEASED(["show", *map(str, parts)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{parts[0]}\n{parts[1]}\n")
    assert "records   9: 9 epoch\n" in text
    assert "resumes   1\nrepeated  2 replaced" in text


def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = summary(tmp_path / "one.csv", range(50))
    (tmp_path / "deeper").mkdir()
    two = summary(tmp_path / "deeper" / "two.csv", range(40), 60.0)
    out = tmp_path / "figures" / "out.png"
    assert RELEASED(["plot", str(one), str(two), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: train_loss, eval_loss, eval_top1, eval_top5\n"
    with Image.open(out) as image:
        drawn = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24) or []}
    first, second = map(ImageColor.getrgb, COLOURS[:2])
    assert {first, second} <= drawn  # a colour for each log
    svg = out.with_suffix(".svg").read_text()
    assert all(text in svg for text in ("best: 60", "deeper/two.csv", "epochs done", "higher is better"))
    assert RELEASED(["plot", "--parts", str(one), str(two), "--column", "eval_top1", "--out", str(out)]) == 0
    with Image.open(out) as image:
        drawn = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 24) or []}
    assert first in drawn
    assert second not in drawn
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.png", "out.svg"]


def test_plot_of_many_logs(tmp_path: Path) -> None:
    logs = [summary(tmp_path / f"log{number}.csv", range(5)) for number in range(MOST + 2)]
    assert RELEASED(["plot", *map(str, logs), "--out", str(tmp_path / "out.svg")]) == 0
    svg = (tmp_path / "out.svg").read_text()
    assert [f">log{number}.csv<" in svg for number in range(MOST + 2)] == [True] * MOST + [False] * 2
    assert f"In grey: the last 2 logs of {MOST + 2}" in svg


def test_plot_of_what_does_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = summary(tmp_path / "one.csv", range(5))
    state = tmp_path / "trainer_state.json"
    state.write_text('{"log_history": [{"loss": 1.0, "step": 5}]}')
    for arguments, message in (
        ([one, state], "trainer_state.json has no epoch"),
        ([one, "--column", "x"], "--column=x: no log has it; there are train_loss, eval_loss"),
        ([state], "no loss or metric with two values or more; choose with --column among train_loss"),
        ([one, one], "a file is named twice"),
        ([tmp_path / "none.csv"], "none.csv: no such file or folder"),
    ):
        assert RELEASED(["plot", *map(str, arguments), "--out", str(tmp_path / "x.png")]) == 2
        assert message in capsys.readouterr().err
    assert RELEASED(["plot", str(one), "--out", str(tmp_path / "x.tiff9")]) == 2
    assert "x.tiff9: a figure is written as .png and .svg" in capsys.readouterr().err
    assert not list(tmp_path.glob("*x.*"))


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = summary(tmp_path / "summary.csv", range(10))
    table = read(path).table
    for suffix, load in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        out = tmp_path / "out" / f"table{suffix}"
        assert RELEASED(["export", str(path), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}: 10 records, 0 faults left out\n"
        pd.testing.assert_frame_equal(load(out), table, check_dtype=False)
    metadata = parquet.read_schema(out).metadata
    assert json.loads(metadata[b"units"])["eval_top1"] == "%"
    assert json.loads(metadata[b"format"]) == "timm"
    assert json.loads(metadata[b"paths"]) == [str(path)]
    assert RELEASED(["export", str(path), "--out", str(tmp_path / "table.xlsx")]) == 2
    assert "can be written as .csv or .parquet" in capsys.readouterr().err
    (tmp_path / "out" / "folder.csv").mkdir()
    assert RELEASED(["export", str(path), "--out", str(tmp_path / "out" / "folder.csv")]) == 2
    assert "cannot write the table" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "folder.csv",
        "table.csv",
        "table.parquet",
    ]


def test_the_page_names_every_format() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    assert not [name for name in FORMATS if f"`{name}`" not in page]


# get, list


class Server(ThreadingHTTPServer):
    """Serve `content`, and break off the first `drops` answers after 1000 bytes."""

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.drops = 0
        self.status: int | None = None  # to answer with, whatever is asked for
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = unquote(self.path)
        self.server.asked.append(path)
        content = self.server.content.get(path)
        if self.server.status is not None or content is None:
            self.send_response(self.server.status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        dropped = self.server.drops > 0
        self.server.drops -= dropped
        self.wfile.write(content[:1000] if dropped else content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


CONTENT = {"/a/log one.csv": bytes(range(256)) * 20, "/a/b/args.yaml": b"model: x\n", "/c": b""}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(files, "PAUSE", 0)
    server = Server(dict(CONTENT))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def wanted() -> list[File]:
    return [File(path.removeprefix("/"), hashlib.sha256(data).hexdigest()) for path, data in CONTENT.items()]


def held(folder: Path) -> dict[str, bytes]:
    return {f"/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_get(server: Server, tmp_path: Path) -> None:
    fetched = fetch([*wanted(), *wanted()], tmp_path, url=server.url)
    assert fetched.summary == "3 files: 3 fetched (5,129 bytes), 0 already there, 0 missing, 0 wrong hash"
    assert held(tmp_path) == CONTENT
    assert server.asked == [*CONTENT]
    server.asked.clear()
    (tmp_path / "c").unlink()
    fetched = fetch(wanted(), tmp_path, url=server.url)
    assert fetched.summary == "3 files: 1 fetched (0 bytes), 2 already there, 0 missing, 0 wrong hash"
    assert server.asked == ["/c"]


def test_a_dropped_connection_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.drops = 2  # one less than there are attempts
    assert not fetch(wanted()[:1], tmp_path, url=server.url).problems
    assert held(tmp_path) == {"/a/log one.csv": CONTENT["/a/log one.csv"]}
    assert server.asked == ["/a/log one.csv"] * 3


def test_a_connection_that_is_always_dropped(server: Server, tmp_path: Path) -> None:
    server.drops = 3
    with pytest.raises(
        UserError, match=r"/a/log%20one.csv: failed 3 times \(Incomplete.*; try again later, or"
    ):
        fetch(wanted(), tmp_path, url=server.url)
    assert held(tmp_path) == {}


def test_processes_that_want_a_file_at_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        each = [*pool.map(lambda _: fetch(wanted(), tmp_path, url=server.url), range(4))]
    counts = sum((fetched.counts for fetched in each), Counter())
    assert set(counts) <= {"fetched", "already there"}  # whoever comes late finds them
    assert counts.total() == 12
    assert held(tmp_path) == CONTENT


def test_a_file_that_is_not_what_it_should_be(server: Server, tmp_path: Path) -> None:
    server.content["/a/b/args.yaml"] = b"model: y\n"
    del server.content["/c"]
    (tmp_path / "c").write_bytes(b"mine")
    fetched = fetch(wanted(), tmp_path, url=server.url)
    assert fetched.summary == "3 files: 1 fetched (5,120 bytes), 0 already there, 1 missing, 1 wrong hash"
    hashes = [hashlib.sha256(data).hexdigest() for data in (b"model: y\n", b"model: x\n")]
    assert fetched.problems == [
        f"wrong hash: {server.url}/a/b/args.yaml has {hashes[0]}, the ledger {hashes[1]}; not taken",
        f"missing: {server.url}/c",
        f"wrong hash: {tmp_path / 'c'} was there before, and stays as it is",
    ]
    assert held(tmp_path) == {"/a/log one.csv": CONTENT["/a/log one.csv"], "/c": b"mine"}


def test_a_wrong_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"mine")
    assert fetch(wanted()[2:], tmp_path, url=server.url).counts == {"fetched": 1}
    assert held(tmp_path) == {"/c": b""}


@pytest.mark.parametrize(
    ("status", "message", "asked"),
    [(503, "failed 3 times (HTTP Error 503", 3), (403, "Forbidden; take a local copy with", 1)],
)
def test_a_server_that_refuses(server: Server, tmp_path: Path, status: int, message: str, asked: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=re.escape(message)):
        fetch(wanted(), tmp_path, url=server.url)
    assert len(server.asked) == asked
    assert held(tmp_path) == {}


def test_offline(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(files: list[File], to: Path, source: Path | None) -> files.Fetched:
        return fetch(files, to, source, "http://127.0.0.1:1")

    monkeypatch.setattr(files, "fetch", nobody)
    assert RELEASED(["get", "imagenet/vit_s_150_i", "--to", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"error: cannot reach http://127.0.0.1:1/CV/.* \(.*refused\); "
        r"take a local copy with `python scripts/logs.py get --from DIR`",
        error,
    )


def test_get_from_a_local_copy(tmp_path: Path) -> None:
    for path, data in CONTENT.items():
        if path != "/c":
            (tmp_path / "copy" / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / path[1:]).write_bytes(data)
    fetched = fetch(wanted(), tmp_path / "to", tmp_path / "copy")
    assert fetched.summary == "3 files: 2 fetched (5,129 bytes), 0 already there, 1 missing, 0 wrong hash"
    assert fetched.problems == [f"missing: {tmp_path / 'copy' / 'c'}"]
    assert held(tmp_path / "to") == {path: data for path, data in CONTENT.items() if path != "/c"}
    with pytest.raises(UserError, match="no such folder; it should have the official repository's files"):
        fetch(wanted(), tmp_path / "to", tmp_path / "nowhere")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "c").write_bytes(b"")
    (tmp_path / "to").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(wanted()[2:], tmp_path / "to", tmp_path / "copy")


def test_a_released_log_that_was_changed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rows.load("imagenet/vit_s_150_i").row
    (path,) = (tmp_path / file.path for file in row.logs)
    path.parent.mkdir(parents=True)
    summary(path, range(3))
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    with pytest.raises(UserError, match=r"csv: is not what was released .*logs\.py get`"):
        files.read_log(row)


def test_two_hashes_of_one_file() -> None:
    with pytest.raises(UserError, match="x: two rows of the ledger give it different SHA-256: a and b"):
        files.unique([File("x", "a"), File("x", "a"), File("x", "b")])


def test_get_and_list_the_released_files(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = "imagenet/vit_s_150_i"
    paths = [file.path for file in rows.load(row).row.files]
    monkeypatch.setenv("ADAN_RELEASED", str(tmp_path))
    assert RELEASED(["list", row]) == 1
    assert capsys.readouterr().out.endswith(f"2 files in {tmp_path}: 0 present, 2 missing, 0 wrong hash\n")
    assert RELEASED(["get", row, "--from", str(released)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}: 2 files: 2 fetched (")
    assert RELEASED(["list", row]) == 0
    first, *listed, last = capsys.readouterr().out.splitlines()
    assert first == row
    assert [line.split() for line in listed] == [
        ["present", "log", paths[0]],
        ["present", "settings", paths[1]],
    ]
    assert last.endswith(": 2 present, 0 missing, 0 wrong hash")
    with (tmp_path / paths[0]).open("a") as file:
        file.write("\n")
    assert RELEASED(["list", row]) == 1
    assert f"  wrong hash  log       {paths[0]}\n" in capsys.readouterr().out
    assert RELEASED(["get", row, "--from", str(released)]) == 0
    assert "1 fetched" in capsys.readouterr().out
    assert RELEASED(["get", "imagenet/vit_x", "--to", str(tmp_path)]) == 2
    assert "imagenet/vit_x: no such row" in capsys.readouterr().err


def test_the_released_files_are_those_of_the_ledger(released: Path) -> None:
    states = {
        file.path: files.state(file, released / file.path)
        for file in files.unique([file for of_row in files.of_rows().values() for file in of_row])
    }
    assert files.PRESENT in states.values()
    assert [path for path, state in states.items() if state == files.WRONG] == []
