"""Programming tasks in HumanEval's format, and their completions, from files of JSON lines."""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import UserError
from repro.reading import parse_json, read_bytes, unpack


@dataclass(frozen=True)
class Problem:
    """A task: prompt + solution is a program, and `test` defines check(candidate)."""

    task_id: str
    prompt: str  # imports, helpers if any, and the head of the function with its docstring
    entry_point: str  # the function's name
    canonical_solution: str
    test: str


def read(path: Path | None) -> list[Problem]:
    """Return the tasks of a file (.jsonl, .jsonl.gz) or of HumanEval.jsonl.gz in a folder; None: OWN.

    Raises:
        UserError: it cannot be read, or a line is not such a task.
    """
    if path is None:
        return list(OWN)
    if path.is_dir():
        inside = [path / name for name in ("HumanEval.jsonl.gz", "HumanEval.jsonl") if (path / name).exists()]
        if not inside:
            raise UserError(f"{path}: no HumanEval.jsonl.gz is there; name a file")
        path = inside[0]
    found: dict[str, Problem] = {}
    for where, record in records(path, list(Problem.__dataclass_fields__)):
        problem = Problem(**{key: record[key] for key in Problem.__dataclass_fields__})
        if problem.task_id in found:
            raise UserError(f"{where}: {problem.task_id} is there twice")
        for key in ("prompt", "test"):
            check_syntax(getattr(problem, key), f"{where}: {key}")
        found[problem.task_id] = problem
    if not found:
        raise UserError(f"{path}: has no task")
    return list(found.values())


def read_completions(path: Path, problems: Sequence[Problem]) -> list[tuple[Problem, str]]:
    """Return the completions of a file whose lines have `task_id` and `completion`, in order.

    Raises:
        UserError: it cannot be read, or a line is not a completion of one of these tasks.
    """
    known = {problem.task_id: problem for problem in problems}
    found = []
    for where, record in records(path, ["task_id", "completion"]):
        if record["task_id"] not in known:
            raise UserError(f"{where}: {record['task_id']}: no such task; there is {problems[0].task_id} ...")
        found.append((known[record["task_id"]], record["completion"]))
    if not found:
        raise UserError(f"{path}: has no completion")
    return found


def records(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield FILE:LINE and the object of each non-blank line, in which all `keys` are text.

    Raises:
        UserError: the file cannot be read, or a line is malformed.
    """
    try:
        text = (unpack if path.suffix == ".gz" else read_bytes)(path).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # a bad gzip file is an OSError
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            wrong = [key for key in keys if not isinstance(record.get(key), str)]
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}:{number}: is no JSON object: {error}") from error
        if wrong:
            raise UserError(f"{path}:{number}: {wrong[0]} is missing, or no text")
        yield f"{path}:{number}", record


def check_syntax(source: str, what: str) -> None:
    """Raise UserError if this is not valid Python. Nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escape sequences in docstrings
            compile(source, what, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: deeply nested
        raise UserError(f"{what} is no valid Python: {error}") from error


def _own(name: str, signature: str, doc: str, solution: str, checks: Sequence[str]) -> Problem:
    tests = "".join(f"    assert {check}\n" for check in checks)
    return Problem(
        task_id=f"Own/{name}",
        prompt=f'def {name}{signature}:\n    """{doc}"""\n',
        entry_point=name,
        canonical_solution=solution,
        test=f"def check(candidate):\n{tests}",
    )


OWN = (
    _own(
        "double", "(number)", "Return twice the number.",
        "    return 2 * number\n",
        ["candidate(3) == 6", "candidate(0) == 0", "candidate(-1.5) == -3.0"],
    ),
    _own(
        "initials", "(name: str) -> str", "Return the first letters of the words, as capitals.",
        "    return ''.join(word[0].upper() for word in name.split())\n",
        ["candidate('ada lovelace') == 'AL'", "candidate('') == ''", "candidate('  a  bc ') == 'AB'"],
    ),
    _own(
        "without_repeats", "(items: list) -> list", "Return the items in their order, each once.",
        "    return list(dict.fromkeys(items))\n",
        ["candidate([3, 1, 3, 2, 1]) == [3, 1, 2]", "candidate([]) == []", "candidate(['a', 'a']) == ['a']"],
    ),
    _own(
        "is_leap_year", "(year: int) -> bool", "Tell whether a year of the Gregorian calendar has 366 days.",
        "    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)\n",
        ["candidate(2024) and candidate(2000)", "candidate(1900) is False", "candidate(2023) is False"],
    ),
    _own(
        "counts", "(text: str) -> dict", "Return how often each character is in the text.",
        "    from collections import Counter\n\n    return Counter(text)\n",
        ["candidate('abca') == {'a': 2, 'b': 1, 'c': 1}", "candidate('') == {}"],
    ),
)  # fmt: skip
