"""Make tokenizers of the library `tokenizers`, from training text or released vocabularies."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from repro.errors import UserError

EOS, UNK = "<eos>", "<unk>"  # of words
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILLERS = ["madeupword0000", "madeupword0001", "madeupword0002"]  # of fairseq's dictionary
FAIRSEQ_EXTRA = len(ROBERTA) + len(FILLERS)
LETTERS = 1000  # in a trained WordPiece; rarer characters become [UNK]
Vocabulary = dict[str, int]
Text = Callable[[], Iterable[list[str]]]  # returns lists of lines, from the beginning at every call


def words(vocab_size: int | None, text: Text) -> Tokenizer:
    """Return a tokenizer of words between blanks, in Transformer-XL's order: <eos>, then by frequency.

    Equally frequent words keep the order of their first appearance. Words beyond `vocab_size` become <unk>.
    If the text itself has no <unk>, words that occur once become <unk>, so that a model can learn it.

    Raises:
        UserError: the text has the word <eos>.
    """
    counts: Counter[str] = Counter()
    for lines in text():
        for line in lines:
            counts.update(line.split())
    if EOS in counts:
        raise UserError(
            f"the training text has the word {EOS}, which tokenizer=words puts at the ends of lines"
        )
    if UNK not in counts:
        several = {word: count for word, count in counts.items() if count > 1}
        counts = Counter(several | {UNK: len(counts) - len(several)})
    kept = counts.most_common()
    if vocab_size is not None and len(kept) + 1 > vocab_size:
        kept = [(word, count) for word, count in kept if word != UNK]
        unknown = counts.total() - sum(count for _, count in kept[: vocab_size - 2])
        kept = [*kept[: vocab_size - 2], (UNK, unknown)]
        kept.sort(key=lambda entry: -entry[1])
    vocabulary = {word: number for number, word in enumerate([EOS, *(word for word, _ in kept)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 0)])
    return made


def single_bytes() -> Tokenizer:
    """Return a tokenizer of RoBERTa's special tokens, then byte b as id 5 + b."""
    others = itertools.count(256)  # in a byte-level vocabulary, printable bytes stand for themselves
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    return byte_pairs({token: number for number, token in enumerate([*ROBERTA, *letters])}, [], regex=False)


def trained(name: str, vocab_size: int, text: Text) -> Tokenizer:
    """Train byte-level byte pairs ("bpe") or WordPiece; the result depends on the text alone."""
    lines = (line for batch in text() for line in batch if line)
    common: dict[str, Any] = dict(vocab_size=vocab_size, min_frequency=2, show_progress=False)
    if name == "bpe":
        made = byte_pairs({}, [])
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(special_tokens=ROBERTA, initial_alphabet=alphabet, **common)
        made.train_from_iterator(lines, trainer)
        return made
    made = wordpiece({token: number for number, token in enumerate(BERT)})
    counts = Counter(
        char for batch in text() for line in batch for char in made.normalizer.normalize_str(line)
    )
    often = sorted(counts, key=lambda char: (-counts[char], char))[:LETTERS]
    letters = sorted(char for char in often if not char.isspace())
    # The library would number "##a", "##b", ... in the order of a hash table, which changes between runs.
    first = [*BERT, *letters, *(f"##{letter}" for letter in letters)]
    pieces = trainers.WordPieceTrainer(
        special_tokens=first, initial_alphabet=letters, limit_alphabet=len(letters), **common
    )
    made.train_from_iterator(lines, pieces)
    return wordpiece(made.get_vocab())


def byte_pairs(vocabulary: Vocabulary, merges: list[tuple[str, str]], regex: bool = True) -> Tokenizer:
    """Return a tokenizer of byte pairs, as GPT-2's; with `regex`, text is split into words first."""
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    made.decoder = decoders.ByteLevel()
    special = [*ROBERTA, "<|endoftext|>"]
    made.add_special_tokens([token for token in special if token in vocabulary])
    return made


def fairseq(vocabulary: Vocabulary, dictionary: Path) -> Vocabulary:
    """Return the vocabulary of fairseq's dictionary for a vocabulary of byte pairs (GPT-2's 50,257: 50,265).

    It has <s> <pad> </s> <unk>, the byte pairs, three fillers and <mask>. fairseq orders the byte pairs by
    their frequency in its authors' text, as stated in dict.txt; without that file they keep GPT-2's order.
    Released weights need dict.txt; for training from scratch the order does not matter.

    Raises:
        UserError: dict.txt is not of this vocabulary.
    """
    order = sorted(vocabulary, key=lambda token: vocabulary[token])
    if dictionary.exists():
        numbers = [line.split()[0] for line in dictionary.read_text().splitlines() if line.strip()]
        tokens = [order[int(number)] if number.isdigit() else number for number in numbers]
    else:
        tokens = [*order, *FILLERS]
    entries = [*ROBERTA[:4], *tokens, ROBERTA[4]]
    if len(set(entries)) != len(vocabulary) + FAIRSEQ_EXTRA:
        raise UserError(f"{dictionary}: not fairseq's dictionary of the {len(order):,} entries of vocab.json")
    return {token: number for number, token in enumerate(entries)}


def wordpiece(vocabulary: Vocabulary) -> Tokenizer:
    """Return BERT's tokenizer; it removes case and accents if no entry but the special ones has a capital."""
    cased = any(token != token.lower() for token in vocabulary if not token.startswith("["))
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([token for token in BERT if token in vocabulary])
    return made


def first_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """Return the id of the first of these tokens that exists."""
    found = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)
