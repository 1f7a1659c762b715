"""Functions of Python's library, as questions with answers that come with every interpreter.

The question is a function's signature with the first paragraph of its docstring; the answer is its body
without comments. Both are written by `ast.unparse`, so the text is fixed for one version of Python.
"""

import ast
import functools
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from repro.errors import UserError
from repro.text.python_docs import split_of

LONGEST = 300  # maximum characters of a question, and of an answer
LARGEST = 40_000  # maximum bytes of a module; larger ones take as long to parse as all others together


@functools.cache
def pairs() -> dict[str, list[dict[str, str]]]:
    """Return the columns prompt and completion of the splits train and valid.

    They come from all but the largest single-file modules of the library. A module is in one split as a
    whole, and no answer occurs twice.

    Raises:
        UserError: this interpreter has no source of its library.
    """
    splits: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(library.glob("*.py")):
        if path.stat().st_size > LARGEST:
            continue
        split = "train" if split_of(path.name) == "train" else "valid"
        for prompt, completion in functions(path.read_text("utf-8")):
            if max(len(prompt), len(completion)) <= LONGEST and completion not in seen:
                seen.add(completion)
                splits[split].append({"prompt": prompt, "completion": completion})
    if not all(splits.values()):
        raise UserError(
            f"{library}: this Python has no source of its library, from which the default data are made; "
            "name other data by data.root=PATH"
        )
    return splits


def preferences() -> dict[str, list[dict[str, str]]]:
    """Return the columns prompt, chosen (the true body) and rejected (its words and signs in random order).

    A model that tells them apart has learned what code looks like, not what good code is.
    """
    splits = {}
    for split, rows in pairs().items():
        made = [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": shuffled(row["completion"])}
            for row in rows
        ]
        splits[split] = [row for row in made if row["chosen"] != row["rejected"]]
    return splits


def shuffled(text: str) -> str:
    """Return a text with its words and signs in random order, and whitespace unchanged."""
    pieces = re.findall(r"\w+|\s+|.", text)
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    order = random.Random(text).sample(places, len(places))
    for place, piece in zip(places, [pieces[other] for other in order], strict=True):
        pieces[place] = piece
    return "".join(pieces)


def functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield the signature with docstring, and the body, of the functions in a module that have both."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
            text = ast.get_docstring(node)
            if text:
                about = " ".join(text.split("\n\n")[0].split())
                returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                head = f"def {node.name}({ast.unparse(node.args)}){returns}:"
                body = "\n".join(ast.unparse(statement) for statement in node.body[1:])
                yield f'{head}\n    """{about}"""\n', textwrap.indent(body, "    ") + "\n"
