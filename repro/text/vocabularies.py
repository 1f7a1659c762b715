"""Makes the tokenizers of the library: from training text, or from the vocabularies that others released."""

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
LETTERS = 1000  # of a WordPiece that is trained: characters that are rarer are [UNK]
Vocabulary = dict[str, int]
Text = Callable[[], Iterable[list[str]]]  # gives lists of lines, again at every call


def words(vocab_size: int | None, text: Text) -> Tokenizer:
    """Words between blanks, in Transformer-XL's order: <eos>, then by falling frequency in the text.

    Equally frequent ones come in the order in which they first appear. All words that have no place within
    `vocab_size` become <unk>. A text without <unk>, all of whose words would have a place, gives its model
    nothing to learn of unknown ones: its words that come once are <unk> then.

    Raises:
        UserError: <eos> is a word of the text.
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
        counts = Counter({word: count for word, count in counts.items() if count > 1} | {UNK: _once(counts)})
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


def _once(counts: Counter[str]) -> int:
    return sum(1 for count in counts.values() if count == 1)


def single_bytes() -> Tokenizer:
    """RoBERTa's special tokens, then byte b as id 5 + b."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    order = sorted(letters, key=lambda letter: _byte(letter))
    return byte_pairs({token: number for number, token in enumerate([*ROBERTA, *order])}, [], regex=False)


def _byte(letter: str) -> int:
    """Return the byte that stands as `letter` in a byte-level vocabulary; printable ones are themselves."""
    code = ord(letter)
    if code < 256:
        return code
    others = [byte for byte in range(256) if not (33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174)]
    return others[code - 256]


def trained(name: str, vocab_size: int, text: Text) -> Tokenizer:
    """Byte-level byte pairs ("bpe") or WordPiece, trained on the text; the same text gives the same one."""
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
    # The library would number "##a", "##b", ... in the order of a hash table, which differs from run to run.
    first = [*BERT, *letters, *(f"##{letter}" for letter in letters)]
    pieces = trainers.WordPieceTrainer(
        special_tokens=first, initial_alphabet=letters, limit_alphabet=len(letters), **common
    )
    made.train_from_iterator(lines, pieces)
    return wordpiece(made.get_vocab())


def byte_pairs(vocabulary: Vocabulary, merges: list[tuple[str, str]], regex: bool = True) -> Tokenizer:
    """GPT-2's: `regex` cuts text into words first, and what comes before a word, a blank, is part of it."""
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    made.decoder = decoders.ByteLevel()
    special = [*ROBERTA, "<|endoftext|>"]
    made.add_special_tokens([token for token in special if token in vocabulary])
    return made


def fairseq(vocabulary: Vocabulary, dictionary: Path) -> Vocabulary:
    """Lay a vocabulary of byte pairs out as fairseq's dictionary does: for GPT-2's 50,257 entries 50,265.

    <s> <pad> </s> <unk> come first, then the byte pairs, three fillers and <mask>. fairseq has the byte pairs
    by their frequency in its authors' text, which its dict.txt tells; where there is no such file they come
    in GPT-2's order. For a model that starts from nothing it is the same; released weights need dict.txt.
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
    """BERT's; lower-cased, and without accents, where no entry other than the special ones has a capital."""
    cased = any(token != token.lower() for token in vocabulary if not token.startswith("["))
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens([token for token in BERT if token in vocabulary])
    return made


def first_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """Return the id of the first of these tokens that there is."""
    found = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)
