"""Tokenizers of the `tokenizers` library, with the ids of their special tokens.

    words      split at blanks; every line ends in <eos>. Vocabulary in Transformer-XL's order: <eos>, then by
               frequency in the training text
    bytes      the 256 bytes
    bpe        byte pairs, trained; no text is unknown
    wordpiece  BERT's: from a vocab.txt, or trained
    gpt2       byte pairs from a vocab.json and a merges.txt
    file       any tokenizer.json, with the special tokens of a tokenizer_config.json next to it

Those made here have RoBERTa's special tokens <s> <pad> </s> <unk> <mask> as ids 0 to 4; wordpiece has BERT's.
The name of a special token in a text is ordinary text.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as library
from numpy.typing import NDArray
from tokenizers import models

from repro.errors import UserError
from repro.publish import replacing
from repro.text import vocabularies
from repro.text.config import TextConfig, TokenizerConfig
from repro.text.vocabularies import EOS, FAIRSEQ_EXTRA, UNK, Text

ROLES = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "[SEP]", EOS, "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}
LOSSY = ("words", "wordpiece")  # these lose blanks
DEFAULT_SIZE = 30_000  # of a trained vocabulary
ABOUT = "tokenizer_config.json"  # next to tokenizer.json: our name, and settings for transformers

# Off by default: a process that forks (for a DataLoader) after using the library's threads would hang.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Tokenizer:
    """Converts lines to ids and back.

    Attributes:
        name: words, bytes, bpe, wordpiece, gpt2, or file for any other.
        vocab_size: number of ids.
        pad, unk, bos, eos, mask: id of the special token, or None.
    """

    def __init__(
        self, name: str, backend: library.Tokenizer, special: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.backend = name, backend
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<s>" in a text is text
        self.vocab_size: int = backend.get_vocab_size()
        self.pad, self.unk, self.bos, self.eos, self.mask = (
            vocabularies.first_id(backend, [(special or {}).get(role, ""), *names])
            for role, names in ROLES.items()
        )
        self._words = backend.get_vocab() if name == "words" else {}

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line. `words` puts <eos> at the end of every line; nothing else is added."""
        if self.name == "words":  # a dictionary is several times faster than the library
            known, unk, eos = self._words, self._words[UNK], self._words[EOS]
            return [[*(known.get(word, unk) for word in line.split()), eos] for line in lines]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(lines, add_special_tokens=False)]

    def encode_flat(
        self, lines: Sequence[str], end: int | None = None
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the concatenated ids of all lines, [tokens], and the length of each, [lines].

        Args:
            end: id to append to each line.
        """
        ids = self.encode(lines)
        if end is not None:
            for line in ids:
                line.append(end)
        counts = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=self.dtype, count=int(counts.sum()))
        return flat, counts

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens; the <eos> of `words` becomes a line end."""
        text: str = self.backend.decode([int(token) for token in ids], skip_special_tokens=False)
        if self.name == "words":
            text = "\n".join(part.strip(" ") for part in text.split(EOS))
        return text

    def token(self, token: int) -> str:
        """Return the entry of the vocabulary for an id."""
        return str(self.backend.id_to_token(int(token)))

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of everything that determines the tokens of a text."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers can read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "tokenizer.json") as file:
            self.backend.save(str(file))
        special = {
            f"{role}_token": self.token(token) for role in ROLES if (token := getattr(self, role)) is not None
        }
        about = {"name": self.name, "tokenizer_class": "PreTrainedTokenizerFast", **special}
        with replacing(folder / ABOUT) as file:
            file.write_text(json.dumps(about, indent=1) + "\n")


def build(config: TokenizerConfig, text: Text) -> Tokenizer:
    """Return the tokenizer of a configuration; without a path, it is made from `text`.

    Raises:
        UserError: there is no such tokenizer, or it contradicts the configuration.
    """
    config.check()
    if config.path is not None:
        tokenizer = load(config.path, config.vocab_size)
        if config.name not in (tokenizer.name, "file"):
            raise UserError(f"tokenizer.name={config.name}: {config.path} is one of {tokenizer.name}; say so")
        return tokenizer
    if config.name == "words":
        return Tokenizer("words", vocabularies.words(config.vocab_size, text))
    if config.name == "bytes":
        return Tokenizer("bytes", vocabularies.single_bytes())
    if config.name in ("bpe", "wordpiece"):
        with all_cores():
            made = vocabularies.trained(config.name, config.vocab_size or DEFAULT_SIZE, text)
        return Tokenizer(config.name, made)
    gpt2 = "vocab.json and merges.txt, as openai-community/gpt2 has"
    what = "a tokenizer.json" if config.name == "file" else gpt2
    raise UserError(f"tokenizer.path is not set: tokenizer={config.name} needs a folder with {what}")


def load(path: Path | str, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer: a folder of Tokenizer.save, a tokenizer.json, or a folder with one of

    * tokenizer.json, for example of a model of transformers;
    * vocab.json and merges.txt: byte pairs like GPT-2's. A `vocab_size` 8 larger than vocab.json (50,265 for
      GPT-2) selects fairseq's dictionary of them, see vocabularies.fairseq;
    * vocab.txt: BERT's WordPiece, lower-cased if no entry has a capital letter.

    Raises:
        UserError: there is none of these, it cannot be read, or its size is not `vocab_size`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"tokenizer.path={path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    try:
        if path.suffix == ".json" or (path / "tokenizer.json").exists():
            file = path if path.is_file() else path / "tokenizer.json"
            about = json.loads((folder / ABOUT).read_text()) if (folder / ABOUT).exists() else {}
            backend = library.Tokenizer.from_file(str(file))
            tokenizer = Tokenizer(about.get("name", "file"), backend, _special(about))
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            if vocab_size is not None and vocab_size == len(vocab) + FAIRSEQ_EXTRA:
                vocab = vocabularies.fairseq(vocab, folder / "dict.txt")
            tokenizer = Tokenizer("gpt2", vocabularies.byte_pairs(vocab, merges))
        elif path.suffix == ".txt" or (path / "vocab.txt").exists():
            file = path if path.is_file() else path / "vocab.txt"
            tokenizer = Tokenizer("wordpiece", vocabularies.wordpiece(models.WordPiece.read_file(str(file))))
        else:
            raise UserError(
                f"tokenizer.path={path}: no tokenizer.json, vocab.json with merges.txt or vocab.txt is there"
            )
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"tokenizer.path={path}: cannot be read: {error}") from error
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(f"tokenizer.vocab_size={vocab_size}: {path} has {tokenizer.vocab_size:,} entries")
    return tokenizer


def end_of_document(text: TextConfig, tokenizer: Tokenizer) -> int | None:
    """Return the id to put after every document, or None.

    Raises:
        UserError: the tokenizer has no such token, or cannot keep documents unchanged.
    """
    if text.unit == "documents" and tokenizer.name in LOSSY:
        raise UserError(
            f"tokenizer.name={tokenizer.name}: keeps no line ends; data.unit=documents needs bytes, bpe, "
            "gpt2 or file"
        )
    if text.end_of_document and tokenizer.eos is None:
        raise UserError(
            f"data.end_of_document=true: the tokenizer has no token for it, such as {ROLES['eos'][-1]}; "
            "take another tokenizer, or data.end_of_document=false"
        )
    return tokenizer.eos if text.end_of_document else None


def _special(about: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens in a tokenizer_config.json, given as text or as {"content": text}."""
    named = {role: about.get(f"{role}_token") for role in ROLES}
    texts = {role: token["content"] if isinstance(token, dict) else token for role, token in named.items()}
    return {role: text for role, text in texts.items() if text is not None}


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let the library use its threads in this block, which must not fork."""
    before = os.environ["TOKENIZERS_PARALLELISM"]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
