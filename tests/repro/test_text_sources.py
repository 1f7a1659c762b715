"""Where text comes from: the sets' own counts, splits, and what is said when something is wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from repro.errors import UserError
from repro.text import corpus, python_docs, rows, sources
from repro.text.config import TEXTS, TextConfig, TokenizerConfig
from repro.train.cli import CONFIGS
from scripts import prepare_text as prepare

DATA = os.environ.get("ADAN_DATA")
real = pytest.mark.skipif(DATA is None, reason="ADAN_DATA, the folder with wikitext-2/ and ptb/, is not set")


def lines_of(config: TextConfig) -> dict[str, list[str]]:
    """The lines of every split."""
    return {
        split: [line for piece in pieces for lines in piece.batches() for line in lines]
        for split, pieces in sources.find(config).items()
    }


@real
@pytest.mark.parametrize(
    ("name", "folder", "types", "tokens", "lines"),
    [
        ("wikitext2", "wikitext-2", 33_278, (2_088_628, 217_646, 245_569), (36_718, 3_760, 4_358)),
        ("ptb", "ptb", 10_000, (929_589, 73_760, 82_430), (42_068, 3_370, 3_761)),
    ],
)
def test_the_counts_of_the_sets(
    name: str, folder: str, types: int, tokens: tuple[int, ...], lines: tuple[int, ...]
) -> None:
    assert DATA is not None
    text = corpus.load(TextConfig(name, str(Path(DATA) / folder)), TokenizerConfig("words"))
    assert text.tokenizer.vocab_size == types
    splits = [text.split(split) for split in text.splits]
    assert text.splits == ["train", "valid", "test"]
    assert tuple(len(split.ids) for split in splits) == tokens
    assert tuple(len(split.lines) - 1 for split in splits) == lines
    for split in splits:
        assert (split.ids[split.lines[1:] - 1] == text.tokenizer.eos).all()
        assert np.count_nonzero(split.ids == text.tokenizer.eos) == len(split.lines) - 1
    counts = np.bincount(splits[0].ids, minlength=types)
    assert (np.diff(counts[1:]) <= 0).all()  # by falling frequency, after <eos>


def test_python_docs_is_deterministic_and_its_splits_are_disjoint() -> None:
    splits = python_docs.python_docs()  # of this process, or of an earlier one that left it in the cache
    documents = list(python_docs.documents())
    words = {split: sum(len(line.split()) for line in lines) for split, lines in splits.items()}
    assert words["train"] > 200_000
    assert min(words["valid"], words["test"]) > 5_000
    assert len({name for name, _ in documents}) == len(documents)
    for split, lines in splits.items():
        chosen = [lines for name, lines in documents if python_docs.split_of(name) == split]
        assert lines == [line for document in chosen for line in [*document, ""]]
        assert all(line == " ".join(line.split()) for line in lines)
    everything = {line for lines in splits.values() for line in lines}
    assert any(line.startswith("The binary arithmetic operations have the") for line in everything)


def test_python_docs_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = {"train": ["a"], "valid": ["b"], "test": ["c"]}
    monkeypatch.setattr(python_docs, "read_library", lambda: made)
    assert python_docs.python_docs.__wrapped__() == made
    (file,) = (tmp_path / "adan-text").iterdir()
    monkeypatch.setattr(python_docs, "read_library", dict)
    assert python_docs.python_docs.__wrapped__() == made
    file.write_bytes(file.read_bytes().replace(b"a", b"d"))  # damaged: it would be other text
    assert python_docs.python_docs.__wrapped__() == {}


def test_a_python_without_its_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="this Python has no source of its library"):
        python_docs.read_library()


def test_paragraphs_become_lines() -> None:
    text = 'The "x" statement\n*****************\n\nFirst  line,\n   second.\n \n---\nthird\n'
    assert python_docs.paragraphs(text) == ['The "x" statement', "First line, second.", "third"]


def test_a_folder_of_text(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name, text in {
        "train.txt": " one \ntwo\n",
        "more/train_02.txt": "three",
        "valid.txt": "four\n\n",
        "wiki.test.raw.txt": "five\n",
        "latest.txt": "six\n",
    }.items():
        (tmp_path / name).write_text(text)
    found = lines_of(TextConfig("text", str(tmp_path)))
    assert found == {
        "train": ["six", "three", "one", "two"],
        "valid": ["four", ""],
        "test": ["five"],
    }
    assert lines_of(TextConfig("text", str(tmp_path), strip=False))["train"][2] == " one "


@pytest.mark.parametrize("name", ["text", "books_wikipedia"])
def test_validation_text_is_held_out(tmp_path: Path, name: str) -> None:
    documents = [f"line {i}\nand {i}\n\n" for i in range(5000)]
    (tmp_path / "input.txt").write_text("".join(documents))
    config = TextConfig(name, str(tmp_path / "input.txt") if name == "text" else str(tmp_path))
    config.valid_share = 0.02
    found = lines_of(config)
    assert found == lines_of(config)
    assert sorted(found) == ["train", "valid"]
    assert sorted(found["train"] + found["valid"]) == sorted("".join(documents).split("\n")[:-1])
    assert set(found["train"]) & set(found["valid"]) == {""}
    assert len(found["valid"]) / 15_000 == pytest.approx(0.02, abs=0.003)
    config.valid_share = 0.00001
    with pytest.raises(
        UserError, match=r"data.valid_share=1e-05: leaves nothing of .* for validation; raise"
    ):
        sources.find(config)


ROWS = [{"text": f"row {i}\nof it ", "other": i} for i in range(400)]


def write_rows(folder: Path, kind: str, name: str, table: list[dict[str, object]]) -> None:
    """Write a file that `datasets` can load."""
    folder.mkdir(exist_ok=True)
    if kind == "jsonl":
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows._load.cache_clear()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_datasets(tmp_path: Path, kind: str, streaming: bool) -> None:
    for name, part in (("train-0", ROWS[:300]), ("train-1", ROWS[300:350]), ("test", ROWS[350:])):
        write_rows(tmp_path / "set", kind, name, part)
    config = TextConfig("hf", str(tmp_path / "set"), streaming=streaming, valid_share=0.1)
    found = lines_of(config)
    assert found["test"] == [line for i in range(350, 400) for line in (f"row {i}", "of it", "")]
    documents = {split: [line for line in found[split] if line.startswith("row")] for split in found}
    assert sorted(documents["train"] + documents["valid"]) == sorted(f"row {i}" for i in range(350))
    assert 15 < len(documents["valid"]) < 60
    config.rows, config.strip = "lines", False
    assert lines_of(config)["test"][:2] == ["row 350", "of it "]
    pieces = {split: len(pieces) for split, pieces in sources.find(config, 100).items()}
    assert pieces["train"] == (2 if streaming else 350 // max(1, 100 * 350 // size_of(config)) + 1)
    parts = sources.find(config, 100)["train"]
    lines = [line for piece in parts for lines in piece.batches() for line in lines]
    assert lines == lines_of(config)["train"]


def size_of(config: TextConfig) -> int:
    """Bytes of the training rows as Arrow has them; any number for a stream."""
    rows_of = rows._load(config.root, None, config.streaming)["train"]
    return 1 if config.streaming else int(rows_of.data.nbytes)


@pytest.mark.usefixtures("cache")
def test_books_and_wikipedia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "books", "parquet", "train", [{"text": f"sentence {i} ."} for i in range(300)])
    write_rows(
        tmp_path / "wikipedia", "parquet", "train", [{"text": f"title {i}\n\nbody"} for i in range(300)]
    )
    sets = ((str(tmp_path / "books"), None, "lines"), (str(tmp_path / "wikipedia"), None, "documents"))
    monkeypatch.setattr(sources, "BOOKS_WIKIPEDIA", sets)
    found = lines_of(TextConfig("books_wikipedia", valid_share=0.1))
    assert sorted(found) == ["train", "valid"]
    assert 0.05 < len(found["valid"]) / len(found["train"]) < 0.2
    lines = [line for split in found.values() for line in split]
    expected = [f"sentence {i} ." for i in range(300)]
    expected += [line for i in range(300) for line in (f"title {i}", "", "body", "")]
    assert sorted(lines) == sorted(expected)


@pytest.mark.parametrize("group", ["data", "tokenizer"])
def test_every_option_can_be_chosen(group: str) -> None:
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    ours = [name for name in options if group == "tokenizer" or name in TEXTS]
    released = {"roberta": "gpt2", "adan_gpt2_code": "gpt2", "llama": "file"}
    if group == "data":
        assert set(ours) == set(TEXTS)
    for name in ours:
        config = prepare.read_config([f"{group}={name}"])
        config.data.check()
        config.tokenizer.check()
        assert getattr(config, group).name == released.get(name, name)


@pytest.mark.usefixtures("cache")
def test_a_data_set_on_disk(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS[:20])
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "saved")
    found = lines_of(TextConfig("hf", str(tmp_path / "saved")))
    assert found["train"] == found["valid"]
    assert len(found["train"]) == 60
    with pytest.raises(UserError, match=r"data.train_split=unsupervised: .* has train, validation"):
        sources.find(TextConfig("hf", str(tmp_path / "saved"), train_split="unsupervised"))
    with pytest.raises(UserError, match=r"data.column=body: .* has text, other in train"):
        sources.find(TextConfig("hf", str(tmp_path / "saved"), column="body"))
    with pytest.raises(UserError, match=r"data.column=other: row 0 of .*saved:train:0-20:all holds int, not"):
        lines_of(TextConfig("hf", str(tmp_path / "saved"), column="other"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextConfig("nope"), "data.name=nope: must be one of python_docs, "),
        (TextConfig("text", valid_share=1.0), "data.valid_share=1.0: must lie between 0 and 1"),
        (TextConfig("hf", rows="tables"), "data.rows=tables: must be one of documents, lines"),
        (TextConfig("ptb"), "data.root is not set: data=ptb needs the folder of Mikolov's .*ptb.train.txt"),
        (TextConfig("wikitext103", "none"), "data.root=none: no such file or folder; data=wikitext103 needs"),
        (TextConfig("wikitext2", "empty"), "empty: no wiki.train.tokens or train.txt in it; data=wikitext2"),
        (TextConfig("text", "empty"), "empty: no .txt files in it; data=text needs train"),
        (TextConfig("text", "test_only"), "test_only: no text for training in it"),
        (TextConfig("text", "hollow"), "hollow/train.txt: empty file; get it again"),
        (TextConfig("text", "blank"), "data=text: the train split has no text in it"),
        (TextConfig("hf"), "data.root is not set: data=hf needs a name on the Hugging Face hub"),
        (TextConfig("hf", "empty"), "data.root=empty: datasets cannot load it: "),
        (TextConfig("shards"), "data.root is not set: data=shards needs a folder that"),
        (
            TextConfig("shards", "empty"),
            "empty: no manifest.json in it; `scripts/prepare_text.py shards",
        ),
        (TextConfig("books_wikipedia", "blank"), "data.root=blank: is no folder of shards, and this text is"),
    ],
)
def test_wrong_text(
    config: TextConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "test_only", "hollow", "blank"):
        (tmp_path / name).mkdir()
    (tmp_path / "test_only" / "test.txt").write_text("a\n")
    (tmp_path / "hollow" / "train.txt").touch()
    for split in ("train", "valid"):
        (tmp_path / "blank" / f"{split}.txt").write_text("\n \n")
    with pytest.raises(UserError, match=f"^{message}"):
        corpus.load(config, TokenizerConfig("bytes")).split("train")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("ab\n\nc\n")
    text = corpus.load(TextConfig("text", str(tmp_path)), TokenizerConfig("bytes"))
    assert text.split("train").lines.tolist() == [0, 2, 2, 3]
    assert text.split("train").ids.dtype == np.uint16
    with pytest.raises(UserError, match="data=text: has no test split, only train, valid"):
        text.split("test")
