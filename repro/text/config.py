"""Configuration of where text comes from and how it becomes tokens."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from repro.config import one_of
from repro.errors import UserError

TEXTS = ("python_docs", "wikitext2", "wikitext103", "ptb", "text", "hf", "books_wikipedia", "shards")
TOKENIZERS = ("words", "bytes", "bpe", "wordpiece", "gpt2", "file")


@dataclass
class TextConfig:
    """Text in lines, in splits train, valid and (not from every source) test."""

    name: str = "python_docs"  # one of TEXTS, which docs/text.md describes
    root: str | None = None  # folder or file; for hf also a name on the Hugging Face hub
    strip: bool = True  # cut blanks off both ends of every line
    valid_share: float = 0.01  # held out for validation where the source has no split for it
    dataset_config: str | None = (
        None  # hf only, like all below: the data set's configuration, if it has several
    )
    column: str = "text"
    rows: str = "documents"  # what a row is: documents | lines
    train_split: str = "train"
    valid_split: str = "validation"  # where there is none, valid_share of the training rows
    test_split: str = "test"
    streaming: bool = (
        False  # read the rows as they come, instead of first storing the data set as Arrow files
    )

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("data.name", self.name, TEXTS)
        one_of("data.rows", self.rows, ("documents", "lines"))
        if not 0 < self.valid_share < 1:
            raise UserError(f"data.valid_share={self.valid_share}: must lie between 0 and 1")


@dataclass
class TokenizerConfig:
    """What cuts lines into tokens. Without a path it is made from the training text."""

    name: str = "bpe"  # one of TOKENIZERS, which docs/text.md describes
    path: str | None = None  # folder or file of a tokenizer that exists
    vocab_size: int | None = (
        None  # of one made here: at most; of one that exists: what it must have; null: any
    )

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("tokenizer.name", self.name, TOKENIZERS)
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: must be at least 1")


@dataclass
class PrepareConfig:
    """What scripts/prepare_text.py reads and makes."""

    data: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


ConfigStore.instance().store("text_schema", PrepareConfig)
