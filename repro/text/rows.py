"""Text from a data set of Hugging Face `datasets`, on the hub or in local files."""

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.text.config import TextConfig
from repro.text.files import CHUNK, clean

ROWS = 256  # rows that are read at once
READERS = {"parquet": "parquet", "json": "json", "jsonl": "json", "arrow": "arrow", "txt": "text"}


@dataclass(frozen=True)
class RowsPiece:
    """Rows begin..end of a split; with `streaming`, file number `begin` of its `end` files.

    `part` selects all of these rows, or if validation text is held out, those of "train" or "valid".
    """

    config: TextConfig
    split: str
    begin: int
    end: int
    part: str = "all"
    unit = "row"

    @property
    def name(self) -> str:
        """The name of the piece in a manifest."""
        return f"{self.config.root}:{self.split}:{self.begin}-{self.end}:{self.part}"

    @property
    def size(self) -> int:
        """The number of rows, or one file."""
        return 1 if self.config.streaming else self.end - self.begin

    def batches(self) -> Iterator[list[str]]:
        """Yield lines or documents in lists of about CHUNK characters.

        With unit=documents each row is an unchanged document, unless it is empty. With unit=lines rows are
        cut into lines, and with rows=documents an empty line ends each row.

        Raises:
            UserError: a row is not text, or cannot be read.
        """
        units: list[str] = []
        size = 0
        for number, text in enumerate(self._texts()):
            if not isinstance(text, str):
                raise UserError(
                    f"data.column={self.config.column}: row {number} of {self.name} holds "
                    f"{type(text).__name__}, not text"
                )
            if self.part != "all" and (self.part == "valid") != held_out(text, self.config.valid_share):
                continue
            units += self._units(text)
            size += len(text) + 1
            if size >= CHUNK:
                yield units
                units, size = [], 0
        if units:
            yield units

    def _units(self, text: str) -> list[str]:
        if self.config.unit == "documents":
            return [text] if text else []
        lines = clean(text.split("\n"), self.config.strip)
        return [*lines, ""] if self.config.rows == "documents" else lines

    def _texts(self) -> Iterator[Any]:
        rows = _splits(self.config)[self.split]
        column = self.config.column
        if self.config.streaming:
            try:
                for row in rows.shard(num_shards=self.end, index=self.begin):
                    yield row[column]
            except Exception as error:  # files are fetched here
                raise _unreadable(str(self.config.root), error) from error
        else:
            for begin in range(self.begin, self.end, ROWS):
                yield from rows[begin : min(begin + ROWS, self.end)][column]


def held_out(text: str, share: float) -> bool:
    """Return whether a row, or a file of this name, is for validation; equal texts stay together."""
    return zlib.crc32(text.encode()) < share * 2**32


def pieces(config: TextConfig, size: int) -> dict[str, list[RowsPiece]]:
    """Return the splits of a data set in pieces of about `size` bytes, or with `streaming` one per file.

    Raises:
        UserError: `datasets` cannot read it, or a split or column is missing.
    """
    if config.root is None:
        raise UserError(
            f"data.root is not set: data={config.name} needs a name on the Hugging Face hub or a local folder"
        )
    found = _splits(config)
    if config.train_split not in found:
        raise UserError(f"data.train_split={config.train_split}: {config.root} has {', '.join(found)}")
    for name, rows in found.items():
        if rows.column_names is not None and config.column not in rows.column_names:
            raise UserError(
                f"data.column={config.column}: {config.root} has {', '.join(rows.column_names)} in {name}"
            )
    wanted = {"train": (config.train_split, "all"), "valid": (config.valid_split, "all")}
    if config.valid_split not in found:
        wanted = {name: (config.train_split, name) for name in ("train", "valid")}
    if config.test_split in found:
        wanted["test"] = (config.test_split, "all")
    return {name: _cut(config, found[split], split, part, size) for name, (split, part) in wanted.items()}


def _cut(config: TextConfig, rows: Any, split: str, part: str, size: int) -> list[RowsPiece]:
    if config.streaming:
        number = rows.num_shards
        return [RowsPiece(config, split, index, number, part) for index in range(number)]
    step = max(1, size * len(rows) // max(1, rows.data.nbytes))
    ends = range(0, len(rows), step)
    return [RowsPiece(config, split, begin, min(begin + step, len(rows)), part) for begin in ends]


def _splits(config: TextConfig) -> Any:
    return _load(config.root, config.dataset_config, config.streaming, config.files)


@functools.cache
def _load(root: str, name: str | None, streaming: bool, files: str | None = None) -> Any:
    """Return all splits; processes that are forked later share them."""
    import datasets

    folder = Path(root).expanduser()
    try:
        if files is not None:  # data sets with a script of their own are refused without this
            place = f"{folder}/{files}" if folder.exists() else f"hf://datasets/{root}/{files}"
            return datasets.load_dataset(_reader(files), data_files=place, streaming=streaming)
        if (folder / "dataset_dict.json").exists():  # of DatasetDict.save_to_disk
            return datasets.load_from_disk(folder)
        return datasets.load_dataset(str(folder) if folder.exists() else root, name, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # anything that builders, the hub and the network raise
        raise _unreadable(root, error) from error


def _reader(files: str) -> str:
    """Return the name of the reader in `datasets` for files of this pattern.

    Raises:
        UserError: there is none.
    """
    for end in reversed(files.split(".")[1:]):  # .json.gz is .json
        if end in READERS:
            return READERS[end]
    raise UserError(
        f"data.files={files}: must end in one of .{', .'.join(READERS)}, or these with .gz or .zst"
    )


def _unreadable(root: str, error: BaseException) -> UserError:
    """Return the error for a data set, with the cure if access to it is restricted."""
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if "gated" in f"{type(cause).__name__} {cause}".lower():
            reason += (
                f"; accept its terms at https://huggingface.co/datasets/{root} and log in with "
                "`hf auth login`, or set data.root to a folder with a copy"
            )
            break
        cause = cause.__cause__ or cause.__context__
    if "scripts are no longer supported" in reason:
        reason += "; set data.files to a pattern of its files, such as data/*.parquet"
    return UserError(f"data.root={root}: datasets cannot load it: {reason}")
