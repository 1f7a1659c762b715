"""Conversations of all shapes to tokens, and what is wrong with those that are none."""

import ast
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conversing import bpe_tokenizer, byte_tokenizer, pairs, write

from llm import python_functions
from llm.config.finetune import ConversationsConfig
from llm.conversations import Example, Examples, Row, collate, encode, read
from repro.errors import UserError

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token
USER, ASSISTANT = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Ho")))


def coded(row: dict[str, Any], column: str = "completion", length: int = 200, **options: Any) -> Example:
    return encode(Row("here:1", row), column, options.pop("tokenizer", TOKENIZER), length, **options)


def shown(example: Example, tokenizer: Any = TOKENIZER) -> tuple[str, str]:
    """The text that is not an answer's, and what is, with special tokens."""
    asked, answered = (example.ids[example.answer == which].tolist() for which in (False, True))
    return tokenizer.decode(asked), tokenizer.decode(answered)


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"prompt": "a b", "completion": " c"}, "completion", ("a b", f" c{END}")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen", ("a", f"b{END}")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "rejected", ("a", f"c{END}")),
        ({"chosen": "b"}, "chosen", (END, f"b{END}")),
        ({"messages": [USER, ASSISTANT]}, "completion", ("user:\nHi\nassistant:\n", f"Ho{END}")),
        (
            {"prompt": [USER], "completion": [ASSISTANT]},
            "completion",
            ("user:\nHi\nassistant:\n", f"Ho{END}"),
        ),
        ({"prompt": "Hi", "chosen": [ASSISTANT]}, "chosen", ("user:\nHi\nassistant:\n", f"Ho{END}")),
        ({"prompt": "Hi", "chosen": [USER, ASSISTANT]}, "chosen", ("user:\nHi\nassistant:\n", f"Ho{END}")),
        ({"chosen": [USER, ASSISTANT]}, "chosen", ("user:\nHi\nassistant:\n", f"Ho{END}")),
        (
            {"messages": [USER, ASSISTANT] * 2},
            "completion",
            ("user:\nHi\nassistant:\n" * 2, f"Ho{END}" * 2),
        ),
        (  # of a preference only the last answer differs
            {"chosen": [USER, ASSISTANT] * 2},
            "chosen",
            (f"user:\nHi\nassistant:\nHo{END}user:\nHi\nassistant:\n", f"Ho{END}"),
        ),
    ],
)
def test_answers_and_what_is_none(row: dict[str, Any], column: str, expected: tuple[str, str]) -> None:
    assert shown(coded(row, column)) == expected


def test_the_tokenizers_own_template_counts() -> None:
    own = byte_tokenizer()
    own.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    example = coded({"messages": [USER, ASSISTANT]}, tokenizer=own)
    assert shown(example, own) == (f"{own.bos_token}[user]Hi[assistant]", "Ho")
    assert example.ids[0] == own.bos_token_id
    own.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="here:1: the chat template changes earlier text"):
        coded({"messages": [USER, ASSISTANT]}, tokenizer=own)
    own.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(UserError, match="here:1: the tokenizer's chat template refuses it: no such role"):
        coded({"messages": [USER, ASSISTANT]}, tokenizer=own)


def test_a_question_has_the_tokens_that_it_has_alone() -> None:
    """Though the pair `ab` across the border is a token."""
    tokenizer = bpe_tokenizer(["ab " * 50])
    merged, alone = (tokenizer(text).input_ids for text in ("xab", "xa"))
    assert merged[: len(alone)] != alone
    example = coded({"prompt": "xa", "completion": "b ab"}, tokenizer=tokenizer)
    assert example.ids[: len(alone)].tolist() == alone
    assert shown(example, tokenizer) == ("xa", f"b ab{tokenizer.eos_token}")


def test_without_a_token_for_the_end_of_texts() -> None:
    own = byte_tokenizer()
    own.eos_token = None
    with pytest.raises(UserError, match="the tokenizer has no token for the end of a text"):
        coded({"prompt": "a", "completion": "b"}, tokenizer=own)


def test_a_text_cannot_end_itself() -> None:
    example = coded({"prompt": "a", "completion": f"{END} b"})
    assert example.ids.tolist().count(TOKENIZER.eos_token_id) == 1


def test_the_last_answer() -> None:
    first, second = ({"role": "assistant", "content": text} for text in ("one", "two"))
    asked, answered = coded({"messages": [USER, first, USER, second]}).last()
    assert TOKENIZER.decode(answered) == f"two{END}"
    assert TOKENIZER.decode(asked).endswith("user:\nHi\nassistant:\n")
    for prompt, text in (("Hi", "Hi"), ([USER], "user:\nHi\nassistant:\n")):
        asked, answered = coded({"prompt": prompt}, needs_answer=False).last()
        assert (TOKENIZER.decode(asked), answered) == (text, [])


def test_long_rows_are_cut_and_those_without_an_answer_left_out() -> None:
    rows = [Row("", {"prompt": "p" * size, "completion": "c" * 5}) for size in (2, 7, 8, 20)]
    made = Examples(rows, ["completion"], TOKENIZER, 8, "train")
    assert [shown(item[0])[1] for item in made.items] == [f"ccccc{END}", "c"]
    assert (made.left_out, made.lengths.tolist()) == (2, [8, 8])
    with pytest.raises(UserError, match=r"data\.sequence_length=2: cuts off all answers of the train"):
        Examples(rows, ["completion"], TOKENIZER, 2, "train")


def test_batches_are_padded_on_the_right() -> None:
    ids, answer = collate([coded({"prompt": "a", "completion": "b" * n}) for n in (3, 1)], pad=7)
    assert ids.shape == (2, 5)
    assert ids[1, 3:].tolist() == [7, 7]
    assert answer.tolist() == [[False, True, True, True, True], [False, True, True, False, False]]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"text": "a"}, "completion", "has no completion, only text; rename its columns to prompt and comp"),
        ({"prompt": "a", "chosen": "b"}, "rejected", "has no rejected, only prompt, chosen; rename"),
        ({"prompt": 3, "completion": "b"}, "completion", "prompt is int; it must be text, or a list"),
        ({"prompt": "a", "completion": 4}, "completion", "completion is int; it must be text, or a list"),
        ({"messages": []}, "completion", "messages is no list of messages; it needs at least one"),
        ({"messages": [USER]}, "completion", "messages has no message of the role assistant"),
        ({"messages": [{"from": "x"}]}, "completion", "messages has a message without the texts role and"),
    ],
)
def test_rows_that_are_none(row: dict[str, Any], column: str, message: str) -> None:
    with pytest.raises(UserError, match="here:1: " + message):
        coded(row, column)


def found(root: Path | str, **options: Any) -> dict[str, list[Row]]:
    return read(ConversationsConfig(root=str(root), **options), dict)


def test_lines_of_json(tmp_path: Path) -> None:
    write(tmp_path / "d/train.jsonl", pairs(5))
    write(tmp_path / "d/test.jsonl", pairs(3))
    made = found(tmp_path / "d", valid_split="test", train_rows=4)
    assert [row.columns for row in made["train"]] == pairs(4)
    assert made["valid"][2] == Row(f"{tmp_path}/d/test.jsonl:3", pairs(3)[2])
    whole = found(write(tmp_path / "all.jsonl", pairs(40)), valid_share=0.3, valid_rows=None)
    assert sum(map(len, whole.values())) == 40
    texts = {split: {str(row.columns) for row in rows} for split, rows in whole.items()}
    assert texts["train"].isdisjoint(texts["valid"])  # equal rows stay together
    assert texts["valid"]


def test_what_datasets_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {split: datasets.Dataset.from_list(pairs(n)) for split, n in (("train", 4), ("test", 2))}
    datasets.disable_progress_bars()
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "saved")
    made = found(tmp_path / "saved", valid_split="test")
    assert made["train"][3] == Row("train, row 3", pairs(4)[3])
    assert len(made["valid"]) == 2
    rows["train"].to_parquet(tmp_path / "rows.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = found(tmp_path / "rows.parquet", valid_share=0.5)
    assert sum(map(len, made.values())) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": 1}\n{"pro', r"t.jsonl:2: is no JSON \(.*\); a line is one object"),
        ('\n["a"]\n', "t.jsonl:2: is a list; a line is one object"),
        ("[" * 5000, r"t.jsonl:1: is no JSON \(nested too deeply\)"),
        ('\n{"prompt": "\udcff"}', r"t.jsonl:2: is no JSON \('utf-8' codec can't decode"),
        ("", "no rows for the train split"),
    ],
)
def test_broken_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        found(tmp_path / "t.jsonl")


def test_a_pipe_among_the_files_of_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"train\.jsonl: cannot be read \(a pipe or a device"):
        found(tmp_path)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        found(tmp_path / "no.jsonl")
    write(tmp_path / "d/valid.jsonl", pairs(2))
    with pytest.raises(UserError, match=r"data\.train_split=train: .* has valid"):
        found(tmp_path / "d")
    with pytest.raises(UserError, match="datasets cannot load it"):
        found(write(tmp_path / "rows.txt", pairs(2)))


def test_functions_of_the_library() -> None:
    splits = python_functions.pairs()
    for rows in splits.values():
        for row in rows[:50]:
            ast.parse(row["prompt"] + row["completion"])
    train, valid = ({row["completion"] for row in rows} for rows in splits.values())
    assert len(train) == len(splits["train"]) > 700
    assert len(valid) >= 50
    assert train.isdisjoint(valid)
    for split, rows in python_functions.preferences().items():
        assert all(row["chosen"] != row["rejected"] for row in rows)
        assert all(Counter(row["rejected"]) == Counter(row["chosen"]) for row in rows)
        assert 0.9 * len(splits[split]) < len(rows) <= len(splits[split])
    [(head, body)] = python_functions.functions(
        'def f(a, b=1) -> int:\n  """Add.\n\n  Long."""\n  return a + b'
    )
    assert (head, body) == ('def f(a, b=1) -> int:\n    """Add."""\n', "    return a + b\n")
    assert all(len(row["prompt"]) <= python_functions.LONGEST for row in splits["train"])
