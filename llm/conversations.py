"""Questions with answers: rows of a data set, encoded as tokens with a mask of the answers.

Rows have the columns of trl's data sets, with texts or lists of messages ({"role": ..., "content": ...}):

    prompt, completion          a question and its answer
    messages                    a conversation; every message of the assistant is an answer
    [prompt,] chosen, rejected  a better and a worse answer, or without a prompt two whole conversations

Messages are written by the tokenizer's chat template, or else by TEMPLATE. Text is written unchanged, after
the tokenizer's token for the beginning of a text; its answer ends with the token for the end.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llm.config.finetune import ConversationsConfig
from repro.errors import UserError
from repro.reading import open_file, parse_json
from repro.text.rows import held_out

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
ASSISTANT = "assistant"
FILES = {".json": "json", ".parquet": "parquet"}  # readers of `datasets` by suffix


class Row(NamedTuple):
    """A row of a data set, and its place, for errors."""

    where: str
    columns: dict[str, Any]


class Part(NamedTuple):
    """A piece of a conversation's text."""

    text: str
    answer: bool


@dataclass
class Example:
    """A conversation as tokens."""

    ids: NDArray[np.int32]  # [length]
    answer: NDArray[np.bool_]  # [length]; True where the token is part of an answer

    def last(self) -> tuple[list[int], list[int]]:
        """Return the tokens before the last answer, and those of the last answer."""
        found = np.flatnonzero(self.answer)
        end = int(found[-1]) + 1 if len(found) else len(self.ids)
        questions = np.flatnonzero(~self.answer[:end])
        begin = int(questions[-1]) + 1 if len(questions) else 0
        return self.ids[:begin].tolist(), self.ids[begin:end].tolist()


# ---- rows


def read(config: ConversationsConfig, default: Callable[[], dict[str, Any]]) -> dict[str, list[Row]]:
    """Return the rows of the splits train and valid, from data.root or, without it, from `default`.

    Raises:
        UserError: data.root cannot be read, or a split is empty.
    """
    if config.root is None:
        found = {split: _numbered(split, rows) for split, rows in default().items()}
    else:
        found = _splits(config)
    limits = {"train": config.train_rows, "valid": config.valid_rows}
    found = {split: rows[: limits[split]] for split, rows in found.items()}
    for split, rows in found.items():
        if not rows:
            raise UserError(f"data.root={config.root}: no rows for the {split} split; raise data.valid_share")
    return found


def _splits(config: ConversationsConfig) -> dict[str, list[Row]]:
    path = Path(str(config.root)).expanduser()
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise UserError(f"data.root={config.root}: no such file")
        made = {config.train_split: [*_lines(path)]}
    elif files := sorted(path.glob("*.jsonl")):
        made = {file.stem: [*_lines(file)] for file in files}
    else:
        made = {name: _numbered(name, rows) for name, rows in _load(config, path).items()}
    if config.train_split not in made:
        raise UserError(f"data.train_split={config.train_split}: {config.root} has {', '.join(made)}")
    train = made[config.train_split]
    if config.valid_split in made:
        return {"train": train, "valid": made[config.valid_split]}
    made = {"train": [], "valid": []}
    for row in train:
        held = held_out(json.dumps(row.columns, default=str), config.valid_share)
        made["valid" if held else "train"].append(row)
    return made


def _numbered(name: str, rows: Sequence[dict[str, Any]]) -> list[Row]:
    return [Row(f"{name}, row {number}", row) for number, row in enumerate(rows)]


def _lines(path: Path) -> Iterator[Row]:
    try:
        file = open_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = parse_json(line.decode())
                except ValueError as error:
                    raise UserError(f"{path}:{number}: is no JSON ({error}); a line is one object") from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: is a {type(row).__name__}; a line is one object")
                yield Row(f"{path}:{number}", row)


def _load(config: ConversationsConfig, path: Path) -> Any:
    """Return the splits of a file, a folder or a name on the hub, read by `datasets`."""
    import datasets

    try:
        if path.is_file():
            files = {config.train_split: str(path)}
            return datasets.load_dataset(FILES.get(path.suffix, path.suffix), data_files=files)
        if (path / "dataset_dict.json").exists():  # by DatasetDict.save_to_disk
            return datasets.load_from_disk(path)
        return datasets.load_dataset(str(path) if path.exists() else config.root, config.dataset_config)
    except Exception as error:  # builders, the hub and the network raise anything
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"data.root={config.root}: datasets cannot load it: {reason}") from error


# ---- text


def parts(row: Row, column: str, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """Return the text of a row whose answer is in `column`: completion (or messages), chosen or rejected.

    Raises:
        UserError: the row lacks a column, or has a value of another type.
    """
    columns = row.columns
    if column == "completion" and columns.get("messages") is not None:
        return _chat(row, "messages", columns["messages"], 0, tokenizer)
    prompt, answer = columns.get("prompt"), columns.get(column)
    if answer is None:
        wanted = "prompt and completion, or messages" if column == "completion" else "chosen and rejected"
        there = ", ".join(name for name, value in columns.items() if value is not None) or "nothing"
        raise UserError(f"{row.where}: has no {column}, only {there}; rename its columns to {wanted}")
    if isinstance(answer, list):
        asked = prompt or []
        if isinstance(prompt, str):  # some data sets also have the question as text
            alone = bool(answer) and _role(answer[0]) == ASSISTANT
            asked = [{"role": "user", "content": prompt}] if alone else []
        first = len(asked) or max((i for i, m in enumerate(answer) if _role(m) == ASSISTANT), default=0)
        return _chat(row, column, [*asked, *answer], first, tokenizer)
    for name, value in (("prompt", "" if prompt is None else prompt), (column, answer)):
        if not isinstance(value, str):
            kind = type(value).__name__
            raise UserError(f"{row.where}: {name} is {kind}; it must be text, or a list of messages")
    return [Part(prompt or "", False), Part(answer, True)]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _chat(row: Row, column: str, messages: Any, first: int, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    """Return the text of messages; the assistant's, from index `first` on, are answers."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{row.where}: {column} is no list of messages; it needs at least one")
    for message in messages:
        if not isinstance(_role(message), str) or not isinstance(message.get("content"), str):
            lacks = f"a message without the texts role and content: {message}"
            raise UserError(f"{row.where}: {column} has {lacks}")
    made, written = [], ""
    for i, message in enumerate(messages):
        if message["role"] == ASSISTANT and i >= first:
            for until, asking in ((messages[:i], True), (messages[: i + 1], False)):
                text = _render(row, until, asking, tokenizer)
                if not text.startswith(written):
                    raise UserError(
                        f"{row.where}: the chat template changes earlier text when an answer is added; "
                        "use columns prompt and completion instead"
                    )
                made.append(Part(text[len(written) :], not asking))
                written = text
    if not made:
        raise UserError(f"{row.where}: {column} has no message of the role {ASSISTANT}, so no answer")
    return made


def _render(row: Row, messages: list[Any], asking: bool, tokenizer: PreTrainedTokenizerBase) -> str:
    if not messages:
        return ""
    try:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=tokenizer.chat_template or TEMPLATE,
            tokenize=False,
            add_generation_prompt=asking,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"{row.where}: the tokenizer's chat template refuses it: {error}") from error


# ---- tokens


def encode(
    row: Row, column: str, tokenizer: PreTrainedTokenizerBase, length: int, needs_answer: bool = True
) -> Example:
    """Return the first `length` tokens of a row; see `parts`.

    A question has the same tokens as without its answer, as in generation. Without `needs_answer`, a row may
    have only a prompt.
    """
    columns = row.columns
    chat = isinstance(columns.get("messages") or columns.get(column) or columns.get("prompt"), list)
    if not needs_answer and columns.get("messages") is None and columns.get(column) is None:
        prompt = columns.get("prompt")
        if prompt is None:
            raise UserError(f"{row.where}: has no prompt, only {', '.join(columns)}; rename its columns")
        found = [Part(_render(row, prompt, True, tokenizer) if chat else prompt, False)]
    else:
        found = parts(row, column, tokenizer)
    ids: list[int] = [] if chat else list(tokenizer("").input_ids)
    begin, text, answer = len(ids), "", [False] * len(ids)
    for part in found:
        text += part.text
        whole = ids[:begin] + _ids(tokenizer, text, chat)
        ids = whole if whole[: len(ids)] == ids else ids + _ids(tokenizer, part.text, chat)
        answer += [part.answer] * (len(ids) - len(answer))
    if not chat and answer[-1:] == [True]:
        ids.append(end_of_text(tokenizer))
        answer.append(True)
    if not begin and not found[0].text:  # the first token of the answer needs a predecessor
        ids, answer = [end_of_text(tokenizer), *ids], [False, *answer]
    return Example(np.array(ids[:length], np.int32), np.array(answer[:length], np.bool_))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Return the tokens of a text; names of special tokens in it are read as such only if `special`."""
    options = dict(add_special_tokens=False, split_special_tokens=not special, verbose=False)
    return list(tokenizer(text, **options).input_ids)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends texts, or raise UserError if there is none."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no token for the end of a text (eos_token), as answers need")
    return int(tokenizer.eos_token_id)


class Examples:
    """Rows as tokens, without those whose answer is cut off entirely.

    Attributes:
        left_out: number of rows left out.
        lengths: tokens of the longest example of each item [items].

    Args:
        columns: of the answers; an item has an example for each.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        columns: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        what: str,
    ) -> None:
        bar = tqdm(rows, desc=f"tokens of {what}", unit="row", leave=False, disable=len(rows) < 5000)
        made = [[encode(row, column, tokenizer, length) for column in columns] for row in bar]
        self.items = [item for item in made if all(example.answer.any() for example in item)]
        self.left_out = len(made) - len(self.items)
        if not self.items:
            raise UserError(
                f"data.sequence_length={length}: cuts off all answers of the {what} rows; raise it"
            )
        self.lengths = np.array([max(len(example.ids) for example in item) for item in self.items])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[Example]:
        return self.items[index]


class Batch(NamedTuple):
    """Conversations, padded on the right to the longest. Causal attention needs no mask for that.

    ids: [batch, length], int64.
    answer: [batch, length], bool; True where the token is part of an answer.
    """

    ids: Tensor
    answer: Tensor


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Return a batch, padded with the token `pad`."""
    longest = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), longest), pad, np.int64)
    answer = np.zeros((len(examples), longest), np.bool_)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        answer[row, : len(example.ids)] = example.answer
    return Batch(torch.from_numpy(ids), torch.from_numpy(answer))
