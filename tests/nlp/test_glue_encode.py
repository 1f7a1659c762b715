"""What encoders read, against the tokenizers of transformers, and the batches."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from nlp.config.glue import GlueDataConfig
from nlp.glue import data
from nlp.glue.encode import Encoded, HuggingFaceCoder, PairCoder, batches, by_length, collate, longest_first
from repro.ledger import rows
from repro.text.tokenizers import load

WORDS = [f"w{n}" for n in range(30)]


class Words:
    """A tokenizer of words, as ours are, around one of the library's."""

    pad: int | None = 1
    bos: int | None = 0
    eos: int | None = 2

    def encode(self, lines: list[str]) -> list[list[int]]:
        return [[5 + WORDS.index(word) for word in line.split()] for line in lines]


def in_transformers(style: str) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of transformers with the same ids, which adds special tokens as RoBERTa's or BERT's."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("</s>", 2), ("<s>", 0)]
    if style == "roberta":
        backend.post_processor = tokenizers.processors.RobertaProcessing(*special, add_prefix_space=False)
    else:
        backend.post_processor = tokenizers.processors.BertProcessing(*special)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", model_input_names=["input_ids", "token_type_ids"]
    )


SENTENCE = st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=4), st.integers(8, 30), st.booleans())
def test_pairs_and_sentences_are_those_of_transformers(
    pairs: list[tuple[str, str]], max_length: int, one: bool
) -> None:
    """Special tokens, segments, and what is cut off where."""
    texts: list[tuple[str, ...]] = [pair[:1] for pair in pairs] if one else list(pairs)
    for style in ("roberta", "bert"):
        ours = PairCoder(Words(), style, max_length)(texts)
        theirs = HuggingFaceCoder(in_transformers(style), max_length)(texts)
        assert ours == theirs
        assert all(len(ids) <= max_length for ids in ours[0])


def test_by_hand() -> None:
    tokens, segments = PairCoder(Words(), "roberta", 9)([("w0 w1 w2 w3", "w4")])
    assert tokens == [[0, 5, 6, 7, 8, 2, 2, 9, 2]]
    assert segments == [[0] * 9]
    tokens, segments = PairCoder(Words(), "bert", 9)([("w0 w1 w2 w3 w4 w5 w6", "w4")])
    assert tokens == [[0, 5, 6, 7, 8, 9, 2, 9, 2]]
    assert segments == [[0, 0, 0, 0, 0, 0, 0, 1, 1]]
    assert longest_first([1] * 9, [2] * 9, 7) == ([1] * 3, [2] * 4)


LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=80)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.one_of(st.none(), st.integers(60, 300)), st.integers(0, 3))
def test_batches_are_bounded_and_full(lengths: list[int], size: int, most: int | None, seed: int) -> None:
    made = batches(np.array(lengths), size, most, seed)
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) <= size
        assert most is None or len(batch) * max(lengths[index] for index in batch) <= most
    for batch, after in itertools.pairwise(made):  # the next one would not have fitted
        more = [*batch, after[0]]
        assert len(batch) == size or len(more) * max(lengths[index] for index in more) > (most or math.inf)
    assert made == batches(np.array(lengths), size, most, seed)
    if most is None:
        assert len(made) == -(-len(lengths) // size)


def test_another_seed_is_another_order() -> None:
    lengths = np.full(100, 7)
    assert batches(lengths, 8, None, 1) != batches(lengths, 8, None, 2)


def test_batches_for_measuring_are_of_one_length() -> None:
    lengths = np.array([5, 2, 9, 2, 5, 5, 9])
    assert by_length(lengths, 2) == [[1, 3], [0, 4], [5, 2], [6]]


def test_a_batch_is_padded_and_says_where() -> None:
    examples = data.Examples([("w1", "w2 w3"), ("w4", "")], np.array([1, 0]), ["0", "1"])
    encoded = Encoded([examples], PairCoder(Words(), "bert", 32), "x")
    tokens, seen, segments, labels, indices = collate([encoded[1], encoded[0]], pad=1)
    assert tokens.tolist() == [[0, 9, 2, 2, 1, 1], [0, 6, 2, 7, 8, 2]]
    assert seen.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert segments.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert (labels.tolist(), indices.tolist()) == ([0.0, 1.0], [1, 0])
    assert collate([encoded[0]], pad=1)[1].shape == (1, 0)  # nothing is padded
    assert labels.dtype == torch.float32


@pytest.mark.parametrize(
    ("row", "updates"),
    [("cola", 535), ("stsb", 360), ("rte", 156), pytest.param("sst2", 2105, marks=pytest.mark.slow)],
)
def test_updates_per_epoch_of_the_rows(row: str, updates: int) -> None:
    """With the rows' tokenizer, batch_size and max_tokens on the real training files."""
    named = os.environ.get("ADAN_DATA")
    if not named:
        pytest.skip("ADAN_DATA is not set: it names a folder with glue/ and tokenizers/gpt2/ in it")
    config = rows.load(f"glue/{row}").config
    tokenizer = load(Path(named) / "tokenizers" / "gpt2", config["tokenizer"]["vocab_size"])
    found = data.read(row, GlueDataConfig(root=f"{named}/glue"))
    assert len(found.train) == config["data"]["train_examples"]
    encoded = Encoded([found.train], PairCoder(tokenizer, "roberta", config["data"]["max_length"]), "train")
    assert round(encoded.lengths.mean()) == config["data"]["mean_length"]
    made = batches(encoded.lengths, config["batch_size"], config["data"]["max_tokens"], config["seed"])
    assert len(made) == updates
