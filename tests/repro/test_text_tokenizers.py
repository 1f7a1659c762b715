"""Tokenizers: round trips, ids, and agreement with those that others made."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.errors import UserError
from repro.text import tokenizers, vocabularies
from repro.text.config import TokenizerConfig
from repro.text.tokenizers import Tokenizer

LINES = [
    "the cat sat on the mat .",
    "",
    "a cat <unk> the naïve dog",
    "the dog sat <s> on <mask> Ä a cat .",
] * 3
DATA = os.environ.get("ADAN_DATA")
real = pytest.mark.skipif(DATA is None, reason="ADAN_DATA, the folder with tokenizers/, is not set")


def made(name: str, vocab_size: int | None = None, lines: list[str] = LINES) -> Tokenizer:
    """One trained on a few lines."""
    return tokenizers.build(TokenizerConfig(name, vocab_size=vocab_size), lambda: [lines])


def released(name: str, vocab_size: int | None = None) -> Tokenizer:
    """One of the shared data."""
    assert DATA is not None
    return tokenizers.load(Path(DATA) / "tokenizers" / name, vocab_size)


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Tokenizer]:
    """Those to which no text is unknown."""
    found = {"bytes": made("bytes"), "bpe": made("bpe", 300)}
    return found if DATA is None else {**found, "gpt2": released("gpt2"), "roberta": released("gpt2", 50265)}


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(LINES))
def test_byte_level_round_trip(byte_level: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in byte_level.items():
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text, name
        assert tokenizer.encode_flat([text, "", text])[1].tolist() == [len(ids), 0, len(ids)]


def test_bytes_are_bytes() -> None:
    tokenizer = made("bytes")
    assert tokenizer.vocab_size == 261
    text = "".join(map(chr, range(256))) + "€𝄞"
    assert tokenizer.encode([text]) == [[byte + 5 for byte in text.encode()]]


def test_special_tokens() -> None:
    for name in ("bytes", "bpe"):
        tokenizer = made(name, 300)
        ids = (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk, tokenizer.mask)
        assert ids == (0, 1, 2, 3, 4)
        assert set(range(5)).isdisjoint(tokenizer.encode(["<s> <mask> </s> <pad> <unk>"])[0])
        assert tokenizer.decode([4, 0]) == "<mask><s>"
    tokenizer = made("wordpiece", 100)
    ids = (tokenizer.pad, tokenizer.unk, tokenizer.bos, tokenizer.eos, tokenizer.mask)
    assert ids == (0, 1, 2, 3, 4)
    assert 4 not in tokenizer.encode(["cat [MASK]"])[0]


def test_words_are_in_transformer_xls_order() -> None:
    tokenizer = made("words", lines=["b a b <unk>", "", "c a b c"])
    assert [tokenizer.token(token) for token in range(5)] == ["<eos>", "b", "a", "c", "<unk>"]
    assert (tokenizer.eos, tokenizer.unk) == (0, 4)
    assert tokenizer.pad is tokenizer.bos is tokenizer.mask is None
    assert tokenizer.encode(["a  d b", ""]) == [[2, 4, 1, 0], [0]]
    assert tokenizer.decode([2, 4, 1, 0, 0, 3]) == "a <unk> b\n\nc"


def test_rare_words_are_unknown() -> None:
    few = made("words", 4, lines=["b a b <unk>", "", "c a b c"])
    assert [few.token(token) for token in range(4)] == ["<eos>", "b", "<unk>", "a"]  # c and <unk>: 3 times
    once = made("words", lines=["b a b a c"])
    assert [once.token(token) for token in range(once.vocab_size)] == ["<eos>", "b", "a", "<unk>"]
    with pytest.raises(UserError, match="the training text has the word <eos>"):
        made("words", lines=["a <eos> b"])


@pytest.mark.parametrize("name", ["words", "bytes", "bpe", "wordpiece"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    tokenizer = made(name, 300)
    tokenizer.save(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "saved" / "tokenizer.json"):
        again = tokenizers.load(path)
        assert (again.name, again.vocab_size, again.fingerprint) == (
            name,
            tokenizer.vocab_size,
            tokenizer.fingerprint,
        )
        assert again.encode(LINES) == tokenizer.encode(LINES)
    if name != "words":
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert (theirs.mask_token_id, theirs.pad_token_id) == (tokenizer.mask, tokenizer.pad)
        assert theirs("a cat sat", add_special_tokens=False).input_ids == tokenizer.encode(["a cat sat"])[0]


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_training_is_deterministic(name: str) -> None:
    lines = [f"{word} number{index} {word[::-1]}é" for index, word in enumerate(dir(np))]
    first, second = made(name, 600, lines), made(name, 600, lines)
    assert first.fingerprint == second.fingerprint
    assert first.vocab_size == 600
    assert made(name, 600, lines[::2]).fingerprint != first.fingerprint


def test_wordpiece_without_capitals_lowers_text(tmp_path: Path) -> None:
    for words, expected in ((["cat", "dog"], [[5, 6]]), (["cat", "Dog"], [[5, 6]])):
        (tmp_path / "vocab.txt").write_text("\n".join([*vocabularies.BERT, *words]) + "\n")
        tokenizer = tokenizers.load(tmp_path)
        assert tokenizer.encode([f"cat {words[1]}"]) == expected
        assert tokenizer.encode(["DOG"]) == ([[6]] if words[1] == "dog" else [[tokenizer.unk]])


def byte_pairs(folder: Path) -> Path:
    """A folder in GPT-2's layout: the letters and one merge."""
    vocab = {token: number for number, token in enumerate(["a", "b", "Ġ", "ab", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return folder


def test_fairseqs_dictionary(tmp_path: Path) -> None:
    plain = tokenizers.load(byte_pairs(tmp_path))
    assert (plain.vocab_size, plain.eos, plain.bos, plain.mask) == (5, 4, 4, None)
    assert plain.encode(["ab ba"]) == [[3, 2, 1, 0]]
    laid_out = tokenizers.load(tmp_path, 13)
    assert [laid_out.token(token) for token in range(13)] == [
        *("<s>", "<pad>", "</s>", "<unk>"),
        *("a", "b", "Ġ", "ab", "<|endoftext|>"),
        *vocabularies.FILLERS,
        "<mask>",
    ]
    assert laid_out.encode(["ab ba"]) == [[7, 6, 5, 4]]
    order = ["3", "2", "0", "1", "4", *vocabularies.FILLERS]
    (tmp_path / "dict.txt").write_text("".join(f"{name} {100 - i}\n" for i, name in enumerate(order)))
    assert tokenizers.load(tmp_path, 13).encode(["ab ba"]) == [[4, 5, 7, 6]]
    (tmp_path / "dict.txt").write_text("3 10\n2 5\n")
    with pytest.raises(UserError, match="not fairseq's dictionary of the 5 entries"):
        tokenizers.load(tmp_path, 13)


@real
def test_released_vocabularies() -> None:
    text = ["Hello world, the naïve tokenizer isn't <s> " + "x" * 30, ""]
    gpt2, roberta = released("gpt2"), released("gpt2", 50265)
    assert (gpt2.vocab_size, gpt2.eos, gpt2.encode(["Hello world"])) == (50257, 50256, [[15496, 995]])
    assert (roberta.vocab_size, roberta.mask, roberta.pad, roberta.bos, roberta.eos) == (
        50265,
        50264,
        1,
        0,
        2,
    )
    assert roberta.encode(text) == [[token + 4 for token in ids] for ids in gpt2.encode(text)]
    code = released("adan-gpt2-code")
    assert (code.vocab_size, code.eos) == (50000, 0)
    bert = released("bert-base-uncased", 30522)
    assert (bert.pad, bert.unk, bert.bos, bert.eos, bert.mask) == (0, 100, 101, 102, 103)
    assert bert.encode(["Hello, WÖRLD unaffable"]) == [[7592, 1010, 2088, 14477, 20961, 3468]]


@real
def test_wordpiece_is_transformers(tmp_path: Path) -> None:
    assert DATA is not None
    folder = Path(DATA) / "tokenizers" / "bert-base-uncased"
    theirs = transformers.BertTokenizer.from_pretrained(str(folder))
    for text in ("The naïve cat's 3.5 mats — 漢字, ünaffable", *LINES):
        assert released(folder.name).encode([text])[0] == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TokenizerConfig("sentencepiece"), "tokenizer.name=sentencepiece: must be one of words, bytes"),
        (TokenizerConfig("bpe", vocab_size=0), "tokenizer.vocab_size=0: must be at least 1"),
        (TokenizerConfig("gpt2"), "tokenizer.path is not set: tokenizer=gpt2 needs a folder with vocab.json"),
        (TokenizerConfig("gpt2", "nothing"), "tokenizer.path=nothing: no such file or folder"),
        (TokenizerConfig("gpt2", "empty"), "tokenizer.path=empty: no tokenizer.json, vocab.json with merges"),
        (TokenizerConfig("gpt2", "broken"), "tokenizer.path=broken: cannot be read: "),
        (TokenizerConfig("gpt2", "good", 50265), "tokenizer.vocab_size=50265: good has 5 entries"),
        (TokenizerConfig("bpe", "good"), "tokenizer.name=bpe: good is one of gpt2; say so"),
    ],
)
def test_wrong_tokenizers(
    config: TokenizerConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "good"):
        (tmp_path / name).mkdir()
    byte_pairs(tmp_path / "good")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=f"^{message}"):
        tokenizers.build(config, lambda: [LINES])
