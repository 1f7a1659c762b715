"""Configuration of texts and tokenizers."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.train.config import one_of

HUB = ("hf", "the_stack_python", "redpajama_v2", "openwebtext", "c4")  # read by Hugging Face `datasets`
LARGE = ("books_wikipedia", "the_stack_python", "redpajama_v2", "openwebtext", "c4")  # only as shards
IN_LINES = ("python_docs", "wikitext2", "wikitext103", "ptb", "books_wikipedia")
TEXTS = (*IN_LINES, "python_source", "text", *HUB, "shards")
TOKENIZERS = ("words", "bytes", "bpe", "wordpiece", "gpt2", "file")


@dataclass
class TextConfig:
    """Text in lines or whole documents, with the splits train, valid and (not in every source) test."""

    name: str = "python_docs"  # one of TEXTS, which docs/text.md describes
    root: str | None = None  # folder or file; for HUB also a name on the Hugging Face hub
    unit: str = "lines"  # unit of tokenisation: lines | documents, which are kept verbatim
    end_of_document: bool = False  # put the tokenizer's eos after every document; with unit documents
    strip: bool = True  # remove blanks at both ends of every line
    valid_share: float = 0.01  # held out for validation if the source has no split for it
    # For HUB only, like all keys below: the configuration of the data set, if it has several
    dataset_config: str | None = None
    files: str | None = None  # pattern of the files to read below root, such as data/*.parquet
    column: str = "text"  # column with the text
    rows: str = "documents"  # content of a row: documents | lines
    train_split: str = "train"  # name of the training split
    valid_split: str = "validation"  # if there is none, valid_share of the training rows
    test_split: str = "test"  # name of the test split
    # read rows as they arrive, instead of first storing the data set as Arrow files
    streaming: bool = False

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("data.name", self.name, TEXTS)
        one_of("data.unit", self.unit, ("lines", "documents"))
        one_of("data.rows", self.rows, ("documents", "lines"))
        if not 0 < self.valid_share < 1:
            raise UserError(f"data.valid_share={self.valid_share}: must lie between 0 and 1")
        if self.files is not None and self.dataset_config is not None:
            raise UserError(f"data.files={self.files}: leave out data.dataset_config={self.dataset_config}")
        self._check_unit()

    def _check_unit(self) -> None:
        unit = f"data.unit={self.unit}"
        if self.unit == "lines":
            if self.name == "python_source":
                raise UserError(f"{unit}: data={self.name} has documents; set data.unit=documents")
            if self.end_of_document and self.name != "shards":  # their manifest has the unit
                raise UserError(f"data.end_of_document=true: needs data.unit=documents, not {unit}")
        elif self.name in IN_LINES:
            raise UserError(f"{unit}: data={self.name} has lines; data=text reads files as documents")
        elif self.rows == "lines":
            raise UserError(f"data.rows=lines: with {unit} a row is a document")


@dataclass
class TokenizerConfig:
    """The tokenizer. Without a path it is made from the training text."""

    name: str = "bpe"  # one of TOKENIZERS, which docs/text.md describes
    path: str | None = None  # folder or file of an existing tokenizer
    # exact size of an existing tokenizer; maximum size of one made here; null: any
    vocab_size: int | None = None

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("tokenizer.name", self.name, TOKENIZERS)
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UserError(f"tokenizer.vocab_size={self.vocab_size}: must be at least 1")

    @property
    def size(self) -> int:
        """`vocab_size`, for a model that is built without the tokenizer.

        Raises:
            UserError: it is null.
        """
        if self.vocab_size is None:
            raise UserError("tokenizer.vocab_size=null: has to be set, as the tokenizer is not here to count")
        return self.vocab_size


@dataclass
class PrepareConfig:
    """The configuration of scripts/prepare_text.py."""

    data: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


ConfigStore.instance().store("text_schema", PrepareConfig)
