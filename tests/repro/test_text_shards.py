"""Shards: what is written is what tokenising in memory gives, however often it was stopped."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from repro.errors import UserError
from repro.text import corpus, shards, writing
from repro.text.config import TextConfig, TokenizerConfig
from scripts import prepare_text as prepare

Run = Callable[..., tuple[int, str, str]]
SPLITS = ("train", "valid", "test")


@pytest.fixture
def run(runner: Callable[..., Run]) -> Run:
    """The command, in an empty folder."""
    return runner(prepare.main)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of text, 200 kB."""
    made = random.Random(0)
    words = ["".join(made.choices("abcdefghé", k=made.randint(1, 9))) for _ in range(500)]
    (tmp_path / "text").mkdir()
    for split, count in (("train", 3000), ("valid", 200), ("test", 100)):
        lines = [" ".join(made.choices(words, k=made.randint(0, 20))) for _ in range(count)]
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "text"


def content(folder: Path) -> dict[str, str]:
    """Digests of all files of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["bpe", "words", "bytes"])
def test_shards_are_the_text_in_memory(run: Run, text: Path, name: str) -> None:
    words = ["data=text", f"data.root={text}", f"tokenizer={name}", "tokenizer.vocab_size=400"]
    status, out, err = run("shards", "made", "--workers", "0", "--size", "20KB", *words)
    assert status == 0, err
    memory = corpus.load(TextConfig("text", str(text)), TokenizerConfig(name, vocab_size=400))
    mapped = corpus.load(TextConfig("shards", "made"), TokenizerConfig(name, vocab_size=400))
    assert mapped.tokenizer.fingerprint == memory.tokenizer.fingerprint
    assert mapped.splits == memory.splits == list(SPLITS)
    for split in SPLITS:
        ours, theirs = mapped.split(split), memory.split(split)
        assert isinstance(ours.ids, np.memmap)
        assert isinstance(ours.lines, np.memmap)
        assert ours.ids.dtype == theirs.ids.dtype == np.uint16
        assert ours.lines.dtype == theirs.lines.dtype == np.int64
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.lines, theirs.lines)
        assert f"  {split}: {len(theirs.ids):,} tokens, {len(theirs.lines) - 1:,} lines\n" in out
    size = mapped.tokenizer.vocab_size
    assert f"train with data=shards data.root=made tokenizer={name} tokenizer.vocab_size={size}\n" in out
    manifest = shards.read_manifest(Path("made"))
    assert len(manifest["shards"]) > 10
    assert run("check", "made")[:2] == (0, f"{len(manifest['shards'])} shards; nothing wrong was found\n")
    assert not Path("made", "parts").exists()


def test_large_vocabularies_have_four_bytes(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text(" ".join(f"<unk> {number}" for number in range(70_000)))
    writing.write(TextConfig("text", str(tmp_path)), TokenizerConfig("words"), tmp_path / "made", 10**6, 0)
    mapped = corpus.load(TextConfig("shards", str(tmp_path / "made")), TokenizerConfig("words"))
    ids = mapped.split("train").ids
    assert (mapped.tokenizer.vocab_size, ids.dtype, int(ids.max())) == (70_002, np.uint32, 70_001)


def test_the_number_of_processes_changes_nothing(text: Path, tmp_path: Path) -> None:
    config, tokenizer = TextConfig("text", str(text)), TokenizerConfig("bpe", vocab_size=400)
    for workers in (0, 1, 3):
        writing.write(config, tokenizer, tmp_path / f"made{workers}", 10_000, workers)
    assert content(tmp_path / "made0") == content(tmp_path / "made1") == content(tmp_path / "made3")


@pytest.mark.slow
def test_killed_work_ends_the_same(text: Path, tmp_path: Path) -> None:
    words = ["data=text", f"data.root={text}", "tokenizer=bpe", "tokenizer.vocab_size=400"]
    command = ["--workers", "2", "--size", "2KB", *words]
    assert prepare.main(["shards", str(tmp_path / "straight"), *command]) == 0
    out, kills, begun = tmp_path / "killed", 0, time.monotonic()
    counts = []
    while True:
        process = subprocess.Popen(
            [sys.executable, prepare.__file__, "shards", str(out), *command],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        before = counts[-1] if counts else -1
        goal = before + 8 if kills < 3 else 10**9
        while process.poll() is None and done(out) < goal:
            time.sleep(0.002)
            assert time.monotonic() - begun < 300
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        counts.append(done(out))
        with pytest.raises(UserError, match="killed: is not complete; run the command that began it again"):
            corpus.load(TextConfig("shards", str(out)), TokenizerConfig("bpe"))
    assert process.returncode == 0
    assert kills == 3
    assert counts == sorted(set(counts))  # each start went on where the one before it was
    assert content(out) == content(tmp_path / "straight")


def done(out: Path) -> int:
    """How many shards a folder's manifest has."""
    return len(shards.read_manifest(out)["shards"]) if (out / "manifest.json").exists() else -1


def test_what_the_files_have_beyond_the_manifest_is_cut_off(text: Path, tmp_path: Path) -> None:
    config, tokenizer, out = TextConfig("text", str(text)), TokenizerConfig("bytes"), tmp_path / "made"
    writing.write(config, tokenizer, out, 10_000, 0)
    whole = content(out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"], manifest["complete"] = manifest["shards"][:5], False
    manifest["splits"] = {}
    (out / "manifest.json").write_text(json.dumps(manifest))
    (out / "valid.tokens").write_bytes(b"torn")
    writing.write(config, tokenizer, out, 10_000, 0)
    assert content(out) == whole


@pytest.fixture
def made(text: Path, tmp_path: Path) -> Path:
    """A folder of shards, bytes."""
    writing.write(TextConfig("text", str(text)), TokenizerConfig("bytes"), tmp_path / "made", 50_000, 0)
    return tmp_path / "made"


@pytest.mark.parametrize("name", ["train.tokens", "train.lines"])
def test_a_damaged_shard_is_named(run: Run, made: Path, name: str) -> None:
    path = made / name
    data = bytearray(path.read_bytes())
    place = len(data) // 2 // 8 * 8
    data[place] ^= 1
    path.write_bytes(data)
    status, out, _ = run("check", str(made))
    assert status == 1
    first, _ = out.splitlines()
    assert first.startswith("problem: shard ")
    assert "(train, train.txt:" in first
    begin, end = map(int, first.split("train.txt:")[1].split(")")[0].split("-"))
    share = place / len(data)
    total = (made.parent / "text" / "train.txt").stat().st_size
    assert begin / total - 0.05 < share < end / total + 0.05
    path.write_bytes(data[:-8])
    message = rf"{name}: has [\d,]+ bytes, manifest.json says [\d,]+; copy the folder again, or delete it"
    with pytest.raises(UserError, match=message):
        corpus.load(TextConfig("shards", str(made)), TokenizerConfig("bytes"))


def test_other_tokenizers_and_texts_are_refused(text: Path, made: Path, tmp_path: Path) -> None:
    def load(*tokenizer: object) -> None:
        corpus.load(TextConfig("text", str(made)), TokenizerConfig(*tokenizer))  # type: ignore[arg-type]

    load("bytes")
    load("bytes", str(made / "tokenizer"), 261)
    load("file")
    with pytest.raises(UserError, match=r"tokenizer.name=bpe: .*made was made with tokenizer=bytes"):
        load("bpe")
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=300: .* was made with one of 261 entries"):
        load("file", None, 300)
    config = TextConfig("text", str(text))
    for name in ("one", "two"):
        writing.write(config, TokenizerConfig("bpe", vocab_size=300), tmp_path / name, 10**6, 0)
        with (text / "train.txt").open("a") as file:
            file.write("other words\n" * 500)
    here = TextConfig("shards", str(tmp_path / "one"))
    assert corpus.load(here, TokenizerConfig("bpe", vocab_size=8192)).tokenizer.vocab_size == 300  # at most
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=280: .* was made with one of 300 entries"):
        corpus.load(here, TokenizerConfig("bpe", vocab_size=280))
    with pytest.raises(UserError, match=r"tokenizer.path=.*two.*: is not the tokenizer with which .*one was"):
        corpus.load(here, TokenizerConfig("bpe", str(tmp_path / "two" / "tokenizer")))
    with pytest.raises(UserError, match="two: was begun with another tokenizer or text; take an empty"):
        writing.write(config, TokenizerConfig("bpe", vocab_size=300), tmp_path / "two", 10**6, 0)
    with pytest.raises(UserError, match="made: was begun with another tokenizer or text; take an empty"):
        writing.write(config, TokenizerConfig("bytes"), made, 50_000, 0)
    path = str(tmp_path / "one" / "tokenizer")
    with pytest.raises(UserError, match="made: holds shards of another tokenizer; take an empty folder"):
        writing.write(config, TokenizerConfig("bpe", path), made, 50_000, 0)
    (made / "tokenizer" / "tokenizer.json").write_bytes(Path(path, "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="tokenizer: is not the tokenizer of these shards; write them again"):
        load("bytes")


def test_bad_text_is_named_by_the_process_that_reads_it(run: Run, text: Path) -> None:
    with (text / "train.txt").open("ab") as file:
        file.write(b"\xff\n")
    status, _, err = run(
        "shards", "made", "--workers", "2", "data=text", f"data.root={text}", "tokenizer=bytes"
    )
    assert status == 2
    assert "train.txt: line 3001 is not UTF-8 (byte 0xff at offset" in err


def test_train_tokenizer(run: Run, text: Path) -> None:
    words = ["data=text", f"data.root={text}", "tokenizer=bpe", "tokenizer.vocab_size=350"]
    status, out, err = run("train-tokenizer", "made", *words)
    assert status == 0, err
    assert out == "made: bpe, 350 types; use it with tokenizer=bpe tokenizer.path=made\n"
    path = ["tokenizer.path=made", "tokenizer.vocab_size=null"]
    assert run("shards", "shards", "data=text", f"data.root={text}", "--workers=0", *path)[0] == 0
    mapped = corpus.load(TextConfig("shards", "shards"), TokenizerConfig("bpe", "made"))
    memory = corpus.load(TextConfig("text", str(text)), TokenizerConfig("bpe", vocab_size=350))
    np.testing.assert_array_equal(mapped.split("valid").ids, memory.split("valid").ids)
    assert "made: has a tokenizer; take another folder" in run("train-tokenizer", "made", *words)[2]
    assert "this tokenizer exists already" in run("train-tokenizer", "new", *words, "tokenizer.path=made")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shards", "made", "data=nope"], "error: data=nope: no such option"),
        (["shards", "made", "data=ptb"], "error: data.root is not set: data=ptb needs the folder of"),
        (["shards", "made", "data.rot=x"], "error: data.rot: no such key; did you mean root?"),
        (["check", "made"], "error: made: no manifest.json in it; `scripts/prepare_text.py shards"),
    ],
)
def test_wrong_words(run: Run, arguments: list[str], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert message in err


def test_words_that_are_no_settings(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["shards", "made", "wikitext2"], ["shards", "made", "--wokers", "2"], ["check", "a", "b"]):
        with pytest.raises(SystemExit):
            run(*words)
        assert "unrecognized argument: " in capfd.readouterr().err


def test_two_commands_on_one_folder(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    out.mkdir()
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{holder}; input()", str(out / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match="made: another process is writing there; wait for it"):
            writing.write(TextConfig("text", str(text)), TokenizerConfig("bytes"), out, 10**6, 0)
        process.kill()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see which processes there are")
def test_killed_work_leaves_no_process(text: Path, tmp_path: Path) -> None:
    words = ["data=text", f"data.root={text}", "tokenizer=bytes", "--size=1KB", "--workers=2"]
    command = [sys.executable, prepare.__file__, "shards", str(tmp_path / "made"), *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        children: list[str] = []
        while len(children) < 2 and process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if running(child)]


def running(process: str) -> bool:
    """Tell whether a process is there and not only waits to be buried."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_shards_go_into_no_folder_of_others(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "mine").touch()
    with pytest.raises(
        UserError, match="out: has parts in it, and is no folder of shards; take an empty folder"
    ):
        writing.write(TextConfig("text", str(text)), TokenizerConfig("bytes"), out, 10**6, 0)
    assert content(out).keys() == {"parts/mine"}
