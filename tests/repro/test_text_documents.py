"""Whole documents: what comes out of files, data sets and shards is what went in, to the last byte."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import tokenizers as library
from huggingface_hub.errors import GatedRepoError
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from repro.errors import UserError
from repro.text import corpus, documents, rows, shards, sources, tokenizers, writing
from repro.text.config import TextConfig, TokenizerConfig
from scripts import prepare_text as prepare

DATA = os.environ.get("ADAN_DATA")
real = pytest.mark.skipif(DATA is None, reason="ADAN_DATA, the folder with tokenizers/, is not set")
CODE = [
    "def f(x):\n\tif x:\n\t\treturn 'tab'\n\n\n    # blanks   \n",
    "#!/usr/bin/env python\r\n# -*- coding: utf-8 -*-\r\nprint('naïve 漢字 🐍👩‍👩‍👧')\r\n\r\n",
    "\ufeff# begins with a mark, ends without a line feed\nx = {  'a':1,\t}   ",
    "</s> <s> <|endoftext|> are text here\n\x0c\x0b\u2028\x00\n\n\n",
]
BYTES, BPE = TokenizerConfig("bytes"), TokenizerConfig("bpe", vocab_size=320)


def texts_of(config: TextConfig, size: int = sources.WHOLE) -> dict[str, list[str]]:
    """The documents of every split."""
    return {
        split: [text for piece in pieces for texts in piece.batches() for text in texts]
        for split, pieces in sources.find(config, size).items()
    }


def decoded(text: corpus.Corpus, split: str) -> list[str]:
    """The documents of a split, from their tokens."""
    made = text.split(split)
    return [
        text.tokenizer.decode(made.ids[begin:end])
        for begin, end in zip(made.lines[:-1], made.lines[1:], strict=True)
    ]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder of Python files, some of which are not read."""
    folder = tmp_path / "code"
    for number, text in enumerate(CODE * 8):
        path = folder / f"{'abcd'[number % 4]}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (folder / "top.py").write_text("top\n")
    (folder / "a" / "test").mkdir()
    (folder / "a" / "test" / "test_it.py").write_text("tested\n")
    (folder / "empty.py").touch()
    (folder / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    (folder / "notes.txt").write_text("no code\n")
    return folder


def python_source(root: Path | None = None, **keys: object) -> TextConfig:
    return TextConfig("python_source", None if root is None else str(root), unit="documents", **keys)  # type: ignore[arg-type]


def test_files_are_documents_as_they_are(code: Path) -> None:
    found = texts_of(python_source(code, valid_share=0.2))
    assert list(found) == ["train", "valid"]
    assert sorted(found["train"] + found["valid"]) == sorted([*CODE * 8, "top\n", "tested\n"])
    assert texts_of(python_source(code, valid_share=0.2), size=100) == found  # in many pieces
    pieces = sources.find(python_source(code, valid_share=0.2), size=100)["train"]
    assert len(pieces) > 10
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert pieces[-1].name.endswith(f"/file{31}.py:{len(pieces[-1].paths)}")  # type: ignore[attr-defined]
    assert len(texts_of(python_source(code, valid_share=0.6))["valid"]) > len(found["valid"]) > 1


def test_a_files_name_alone_chooses_its_split(code: Path) -> None:
    def valid() -> set[str]:
        pieces = sources.find(python_source(code, valid_share=0.3))["valid"]
        return {str(path.relative_to(code)) for piece in pieces for path in piece.paths}  # type: ignore[attr-defined]

    before = valid()
    for number in range(40):
        (code / f"new{number}.py").write_text("x\n")
    (code / "top.py").write_text("another\n")
    assert {name for name in valid() if not name.startswith("new")} == before
    assert 3 < len(valid() - before) < 25


def test_pythons_own_library() -> None:
    root, paths = documents.library()
    names = [path.relative_to(root).as_posix() for path in paths]
    assert names == [path.relative_to(root).as_posix() for path in documents.library()[1]]
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(names)
    unwanted = documents.NOT_READ | {"_sysconfigdata"}
    assert not [name for name in names if name.startswith("_sysconfigdata") or {*name.split("/")} & unwanted]
    found = texts_of(python_source())
    assert len(found["train"]) + len(found["valid"]) > 350
    assert (root / "os.py").read_bytes().decode() in found["train"]
    size = {split: sum(map(len, texts)) for split, texts in found.items()}
    assert size["train"] > 5_000_000
    assert 50_000 < texts_of_share(0.05) < size["train"] / 5


def texts_of_share(share: float) -> int:
    """Characters of the library's files that are held out."""
    return sum(map(len, texts_of(python_source(valid_share=share))["valid"]))


def test_text_files_can_be_documents(tmp_path: Path) -> None:
    def find(**keys: object) -> dict[str, list[str]]:
        return texts_of(TextConfig("text", str(tmp_path), unit="documents", **keys))  # type: ignore[arg-type]

    for number in range(30):
        (tmp_path / f"{number}.txt").write_bytes(f"  {number}\r\n\n".encode())
    found = find(valid_share=0.3)
    assert sorted(found["train"] + found["valid"]) == sorted(f"  {number}\r\n\n" for number in range(30))
    (tmp_path / "valid.txt").write_text("for validation")
    (tmp_path / "test.txt").write_text("for the test")
    found = find()
    assert (len(found["train"]), found["valid"], found["test"]) == (30, ["for validation"], ["for the test"])
    (tmp_path / "7.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"7.txt: is not UTF-8 \(byte 0xe9 at offset 3\); convert the file"):
        find()
    (tmp_path / "7.txt").write_text("seven", encoding="UTF-16")
    with pytest.raises(
        UserError, match=r"7.txt: is UTF-16, not UTF-8; convert it with iconv -f UTF-16 -t UTF-8"
    ):
        find()


def test_a_document_has_to_fit_into_memory(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", 20)
    with pytest.raises(UserError, match=r"file\d+.py: more than 0 MiB in one document; break it"):
        texts_of(python_source(code, valid_share=0.2))


# ---- tokens


@pytest.fixture(scope="module")
def byte_level() -> list[tokenizers.Tokenizer]:
    """Those that keep text as it is."""
    made = [tokenizers.build(config, lambda: [CODE]) for config in (BYTES, BPE)]
    names = [] if DATA is None else ["adan-gpt2-code", "gpt2"]
    return [*made, *(tokenizers.load(Path(str(DATA)) / "tokenizers" / name) for name in names), llama()]


def llama() -> tokenizers.Tokenizer:
    """One of Llama's kind: blanks are letters, unknown letters are bytes, a blank comes first."""
    letters = [*"▁\nabcdefghijklmnopqrstuvwxyz()=:'#", "▁▁", "▁▁▁▁", "re", "de"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *letters])}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("r", "e"), ("d", "e")]
    made = library.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizers.Tokenizer("file", made)


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(st.sampled_from("ab =:('#\t\n\r\x0c\\é漢🐍👧\u200d\ufeff\u00a0"), min_size=1)
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    | st.sampled_from(CODE)
)
def test_bytes_in_are_bytes_out(byte_level: list[tokenizers.Tokenizer], text: str) -> None:
    for tokenizer in byte_level:
        ids, counts = tokenizer.encode_flat([text], tokenizer.eos)
        assert tokenizer.decode(ids[:-1]).encode() == text.encode(), tokenizer.name
        assert ids[-1] == tokenizer.eos
        assert tokenizer.eos not in ids[:-1]  # not even where the text has its name
        assert counts.tolist() == [len(ids)]


@real
def test_the_released_code_tokenizer() -> None:
    path = Path(str(DATA)) / "tokenizers" / "adan-gpt2-code"
    ours = tokenizers.build(TokenizerConfig("gpt2", str(path), 50_000), list)
    theirs = library.ByteLevelBPETokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
    assert (ours.vocab_size, ours.bos, ours.eos, ours.token(0)) == (50_000, 0, 0, "<|endoftext|>")
    for module in ("os.py", "textwrap.py", "json/decoder.py"):
        text = (documents.library()[0] / module).read_bytes().decode()
        (ids,) = ours.encode([text])
        assert ours.decode(ids) == text
        assert ids == theirs.encode(text).ids
    snippet = "class A:\n\tdef f(self):\n\t\tpass  # naïve 🐍\r\n"
    expected = [731, 392, 26, 199, 198, 609, 292, 8, 310, 360, 1102, 198, 2342, 221, 395, 42424, 24826, 239]
    assert ours.encode([snippet]) == [[*expected, 236, 961]]
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=50257: .* has 50,000 entries"):
        tokenizers.load(path, 50_257)


def test_special_tokens_that_a_folder_names(tmp_path: Path) -> None:
    made = llama()
    made.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "<0x00>", "pad_token": None})
    )
    config = TokenizerConfig("file", str(tmp_path), made.vocab_size)
    found = tokenizers.build(config, list)
    assert (found.bos, found.eos, found.unk, found.pad) == (1, 3, 0, None)  # without names: the usual ones
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizers.load(tmp_path).eos == 2
    config.vocab_size = 32_000
    with pytest.raises(UserError, match=r"tokenizer.vocab_size=32000: .* has 29\d entries"):
        tokenizers.build(config, list)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("tokenizer", [BYTES, BPE])
def test_documents_become_tokens_and_text_again(code: Path, tokenizer: TokenizerConfig, end: bool) -> None:
    config = python_source(code, valid_share=0.2, end_of_document=end)
    text, found = corpus.load(config, tokenizer), texts_of(config)
    for split, texts in found.items():
        ids, lines = text.split(split).ids, text.split(split).lines
        assert decoded(text, split) == [document + "</s>" * end for document in texts]
        assert np.count_nonzero(ids == text.tokenizer.eos) == end * len(texts)
        assert not end or (ids[lines[1:] - 1] == text.tokenizer.eos).all()


# ---- data sets

STACK = [
    {"hexsha": f"{i}", "content": text.replace("x", f"x{i}"), "size": i} for i, text in enumerate(CODE * 20)
]


def write_parquet(path: Path, table: list[dict[str, object]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(table), path)


def write_json_gz(path: Path, table: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local folders laid out as the data sets on the hub are, each with the rows STACK."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows._load.cache_clear()
    stack = tmp_path / "hub" / "the_stack_python"
    write_parquet(stack / "data" / "python" / "data-00000-of-00002.parquet", STACK[:50])
    write_parquet(stack / "data" / "python" / "data-00001-of-00002.parquet", STACK[50:])
    write_parquet(stack / "data" / "rust" / "data-00000-of-00001.parquet", [{"content": "fn main() {}"}])
    sample = tmp_path / "hub" / "redpajama_v2" / "sample"
    raw = [{"url": "u", "raw_content": row["content"], "nlines": 3} for row in STACK]
    write_json_gz(sample / "documents" / "2023-06" / "0000" / "en_head.json.gz", raw[:40])
    write_json_gz(sample / "documents" / "2022-49" / "0001" / "en_middle.json.gz", raw[40:])
    write_json_gz(sample / "quality_signals" / "2023-06" / "0000" / "en_head.signals.json.gz", [{"id": "a"}])
    web = tmp_path / "hub" / "openwebtext" / "plain_text"
    write_parquet(web / "train-00000-of-00001.parquet", [{"text": row["content"]} for row in STACK])
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["the_stack_python", "redpajama_v2", "openwebtext"])
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_data_sets_of_the_hub(hub: Path, name: str, streaming: str) -> None:
    words = [f"data={name}", f"data.root={hub / name}", f"data.streaming={streaming}", "data.valid_share=0.2"]
    config = prepare.read_config(words).data
    found = texts_of(config)
    assert list(found) == ["train", "valid"]
    assert sorted(found["train"] + found["valid"]) == sorted(str(row["content"]) for row in STACK)
    assert 5 < len(found["valid"]) < 35
    assert not set(found["train"]) & set(found["valid"])
    config.unit, config.strip = "lines", False
    with pytest.raises(
        UserError, match=r"data.end_of_document=true: needs data.unit=documents, not data.unit"
    ):
        sources.find(config)
    config.end_of_document = False
    lines = [line for texts in texts_of(config).values() for line in texts]
    assert len(lines) > 3 * len(STACK)
    with pytest.raises(
        UserError, match=rf"is no folder of shards, and this text .* shards FOLDER data={name} "
    ):
        corpus.load(config, BYTES)


def gated() -> GatedRepoError:
    request = httpx.Request("GET", "https://huggingface.co/datasets/bigcode/the-stack-dedup")
    return GatedRepoError("401 Client Error", response=httpx.Response(401, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            gated(),
            "401 Client Error; accept its terms at https://huggingface.co/datasets/bigcode/the-stack-dedup "
            "and log in with `hf auth login`, or set data.root to a folder with a copy",
        ),
        (
            ValueError("it is a gated dataset on the Hub."),
            "it is a gated dataset on the Hub; accept its terms",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "Dataset scripts are no longer supported, but found x.py; set data.files to a pattern of its",
        ),
        (ConnectionError("Couldn't reach it\nmore"), "Couldn't reach it$"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_the_hub_refuses(
    error: Exception, message: str, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or, with streaming, also when the first row is read."""
    import datasets

    asked = []

    def refuse() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError(str(error)) from cause

    class Table:
        column_names, num_shards = None, 1

        def shard(self, **_: int) -> list[object]:
            refuse()
            return []

    def load_dataset(*words: object, **keys: object) -> object:
        asked.append((*words, keys))
        if not streaming:
            refuse()
        return {"train": Table()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows._load.cache_clear()
    root = "bigcode/the-stack-dedup"
    config = TextConfig("the_stack_python", root, files="data/python/*.parquet", streaming=streaming)
    with pytest.raises(UserError) as raised:
        texts_of(config)
    assert str(raised.value).startswith("data.root=bigcode/the-stack-dedup: datasets cannot load it: ")
    assert message.rstrip("$") in str(raised.value)
    assert not message.endswith("$") or str(raised.value).endswith(message[:-1])
    place = "hf://datasets/bigcode/the-stack-dedup/data/python/*.parquet"
    assert asked == [("parquet", {"data_files": place, "streaming": streaming})]
    rows._load.cache_clear()


# ---- shards

Run = Callable[..., tuple[int, str, str]]


def test_shards_of_documents(runner: Callable[..., Run], code: Path) -> None:
    run = runner(prepare.main)
    words = ["data=python_source", f"data.root={code}", "data.valid_share=0.2", "tokenizer=bpe"]
    command = ["shards", "made", "--size=1KB", *words]
    status, out, err = run(*command, "--workers=0", "tokenizer.vocab_size=320")
    assert status == 0, err
    config = python_source(code, valid_share=0.2, end_of_document=True)
    memory, mapped = corpus.load(config, BPE), corpus.load(TextConfig("shards", "made"), BPE)
    for split in ("train", "valid"):
        assert isinstance(mapped.split(split).ids, np.memmap)
        np.testing.assert_array_equal(mapped.split(split).ids, memory.split(split).ids)
        np.testing.assert_array_equal(mapped.split(split).lines, memory.split(split).lines)
        counts = len(memory.split(split).ids), len(memory.split(split).lines) - 1
        assert f"  {split}: {counts[0]:,} tokens, {counts[1]:,} documents\n" in out
    manifest = shards.read_manifest(Path("made"))
    assert (manifest["unit"], manifest["end_of_document"]) == ("documents", True)
    assert len(manifest["shards"]) == sum(map(len, sources.find(config, 1000).values())) > 2
    assert run("check", "made")[0] == 0
    whole = {path.name: path.read_bytes() for path in Path("made").iterdir() if path.is_file()}
    manifest["shards"], manifest["complete"], manifest["splits"] = manifest["shards"][:1], False, {}
    Path("made", "manifest.json").write_text(json.dumps(manifest))  # as if it had been killed
    status, out, err = run(*command, "--workers=2", "tokenizer.vocab_size=320")
    assert status == 0, err
    assert {path.name: path.read_bytes() for path in Path("made").iterdir() if path.is_file()} == whole
    status, _, err = run(*command, "data.end_of_document=false")
    assert (status, "made: was begun with another tokenizer or text" in err) == (2, True)


def test_shards_are_of_the_unit_that_is_asked_for(code: Path, tmp_path: Path) -> None:
    made, lines = tmp_path / "made", tmp_path / "lines"
    writing.write(python_source(code, valid_share=0.2), BYTES, made, 10**6, 0)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("a\nb\n")
    writing.write(TextConfig("text", str(tmp_path)), BYTES, lines, 10**6, 0)
    assert not {"unit", "end_of_document"} & shards.read_manifest(lines).keys()  # as before there were any

    def load(folder: Path, name: str, unit: str, end: bool = False) -> None:
        corpus.load(TextConfig(name, str(folder), unit=unit, end_of_document=end), BYTES)

    load(made, "python_source", "documents")
    load(made, "shards", "lines")  # whatever they are
    load(lines, "shards", "lines")
    with pytest.raises(
        UserError, match=r"data.end_of_document=true: .*made was made with data.end_of_document=f"
    ):
        load(made, "python_source", "documents", True)
    with pytest.raises(
        UserError, match=r"data.end_of_document=true: .* was made with data.end_of_document=false"
    ):
        load(made, "shards", "documents", True)
    with pytest.raises(
        UserError, match=r"data.unit=lines: .*made was made with data.unit=documents; say so, or"
    ):
        load(made, "text", "lines")
    with pytest.raises(
        UserError, match=r"data.unit=documents: .*lines was made with data.unit=lines; say so, or"
    ):
        load(lines, "shards", "documents")


# ---- what is wrong


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextConfig("text", unit="words"), "data.unit=words: must be one of lines, documents"),
        (TextConfig("python_source"), "data.unit=lines: data=python_source has documents; set data.unit=doc"),
        (
            TextConfig("ptb", unit="documents"),
            "data.unit=documents: data=ptb has lines; data=text reads files",
        ),
        (
            TextConfig("hf", unit="documents", rows="lines"),
            "data.rows=lines: with data.unit=documents a row is",
        ),
        (
            TextConfig("text", end_of_document=True),
            "data.end_of_document=true: needs data.unit=documents, not",
        ),
        (
            TextConfig("hf", "x", files="*.parquet", dataset_config="en"),
            r"data.files=\*.parquet: leave out data.dataset_config=en",
        ),
        (
            TextConfig("hf", "x", files="data/*.csv"),
            r"data.files=data/\*.csv: must end in one of .parquet, .js",
        ),
        (TextConfig("hf", "x", files="data/*"), r"data.files=data/\*: must end in one of .parquet, .js"),
        (TextConfig("hf", ".", files="*.parquet"), "data.root=.: datasets cannot load it: "),
        (
            python_source(Path("nothing")),
            "data.root=nothing: no such file or folder; data=python_source needs",
        ),
        (
            python_source(Path("empty")),
            "empty: no .py files in it; data=python_source needs a folder with some",
        ),
        (python_source(Path("one")), "data.valid_share=0.01: leaves nothing of one for validation; raise it"),
        (
            TextConfig("openwebtext"),
            "data.root is not set: data=openwebtext needs a name on the Hugging Face",
        ),
    ],
)
def test_wrong_documents(
    config: TextConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "one"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a.py").write_text("a\n")
    rows._load.cache_clear()
    with pytest.raises(UserError, match=rf"^{message}"):
        sources.find(config)


def test_a_python_without_its_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"this Python has no source of its library \(no os.py\)"):
        documents.library()


def test_tokenizers_that_cannot_keep_documents(code: Path, tmp_path: Path) -> None:
    config = python_source(code, valid_share=0.2, end_of_document=True)
    for name in ("words", "wordpiece"):
        with pytest.raises(
            UserError, match=rf"tokenizer.name={name}: keeps no line ends; data.unit=documents"
        ):
            corpus.load(config, TokenizerConfig(name, vocab_size=100))
    made = library.Tokenizer(models.BPE({"a": 0}, []))
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TokenizerConfig("file", str(tmp_path))
    with pytest.raises(
        UserError, match=r"data.end_of_document=true: the tokenizer has no token for it, such as"
    ):
        corpus.load(config, tokenizer)
    with pytest.raises(
        UserError, match=r"data.end_of_document=true: the tokenizer has no token for it, such as"
    ):
        writing.write(config, tokenizer, tmp_path / "made", 10**6, 0)
    config.end_of_document = False
    assert corpus.load(config, tokenizer).tokenizer.eos is None
