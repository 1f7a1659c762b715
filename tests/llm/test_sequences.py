"""Packed sequences: every token is a target once, and a mapped text stays in its file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.sequences import Sequences, sequences
from repro.errors import UserError
from repro.text import corpus, writing
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.corpus import Corpus

WORDS = TokenizerConfig("bytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of ten bytes for training, one for validation."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        (folder / f"train{number:02}.txt").write_text(f"{number:02} abcdef\n")
    (folder / "valid.txt").write_text("0123456789")
    return folder


def of_files(folder: Path) -> TextConfig:
    return TextConfig("text", str(folder), unit="documents", end_of_document=True)


@pytest.fixture(scope="module", params=["memory", "shards"])
def text(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The corpus of the folder: 440 and 11 tokens."""
    if request.param == "memory":
        return corpus.load(of_files(folder), WORDS)
    made = tmp_path_factory.mktemp("made")
    writing.write(of_files(folder), WORDS, made, 100, 0)
    return corpus.load(TextConfig("shards", str(made)), WORDS)


@given(size=st.integers(2, 60), length=st.integers(1, 20))
def test_every_token_but_the_first_is_a_target_once(size: int, length: int) -> None:
    ids = np.arange(size, dtype=np.uint16)
    if size <= length:
        with pytest.raises(
            UserError, match=rf"^data.sequence_length={length}: the text has {size} tokens, a"
        ):
            Sequences(ids, length)
        return
    data = Sequences(ids, length)
    samples = [data[index] for index in range(len(data))]
    assert {(sample.dtype, len(sample)) for sample in samples} == {(torch.int64, length + 1)}
    targets = torch.cat([sample[1:] for sample in samples]).tolist()
    assert targets == list(range(1, 1 + (size - 1) // length * length))  # the rest is shorter than a sequence
    assert torch.cat([sample[:-1] for sample in samples]).tolist() == [token - 1 for token in targets]
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[index]


def test_documents_follow_each_other(text: Corpus) -> None:
    data = sequences(text, "train", 16)
    assert len(data) == 27  # of 439 targets
    assert text.tokenizer.decode(data[1][:-1].tolist()) == "cdef\n</s>02 abcdef\n"
    assert len(sequences(text, "valid", 10)) == 1


def test_mapped_text_stays_in_its_file(text: Corpus) -> None:
    ids = text.split("train").ids
    for tokens in (None, 320):
        data = sequences(text, "train", 16, tokens)
        assert type(data.ids) is type(ids)
        if isinstance(ids, np.memmap):
            assert data.ids.filename == ids.filename is not None  # None: it has memory of its own
        before = int(ids[0])
        data[0].zero_()  # a sample is a copy
        assert int(data.ids[0]) == before
    assert data.ids.dtype == np.uint16


@pytest.mark.parametrize("tokens", [16, 319, 320, 439])
def test_the_first_tokens(text: Corpus, tokens: int) -> None:
    data, all_of_it = sequences(text, "train", 16, tokens), sequences(text, "train", 16)
    assert len(data) == tokens // 16
    assert all(torch.equal(data[index], all_of_it[index]) for index in range(len(data)))
    assert len(text.split("train", tokens).ids) == -(-tokens // 11) * 11  # whole documents


def test_too_short_texts(text: Corpus) -> None:
    with pytest.raises(
        UserError, match=r"^data.sequence_length=16: the valid text has 11 tokens, a sequence"
    ):
        sequences(text, "valid", 16)
    with pytest.raises(UserError, match=r"^data.tokens=440: the train text has 440 tokens; leave it out"):
        sequences(text, "train", 16, 440)
    with pytest.raises(
        UserError, match=r"^data.sequence_length=16: the train text has 16 tokens, a sequence"
    ):
        sequences(text, "train", 16, 15)
    with pytest.raises(UserError, match="has no test split, only train, valid"):
        sequences(text, "test", 16)
