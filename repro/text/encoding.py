"""Recognise text that is not UTF-8."""

import codecs
from pathlib import Path

from repro.errors import UserError

MARKS = {  # longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
HEAD = 64  # bytes that are examined


def refuse_wide(path: Path, content: bytes) -> None:
    """Raise UserError if a file that begins with `content` is UTF-16 or UTF-32, with a mark or without.

    Without a mark, such text can be valid UTF-8, full of zero bytes.
    """
    head = content[:HEAD]
    kind = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if kind is None and len(head) >= 4:
        zeros = [not any(head[half::2]) for half in (0, 1)]  # of the even and of the odd bytes
        kind = {(True, False): "UTF-16BE", (False, True): "UTF-16LE"}.get((zeros[0], zeros[1]))
    if kind is not None:
        raise UserError(f"{path}: is {kind}, not UTF-8; convert it with iconv -f {kind} -t UTF-8")
