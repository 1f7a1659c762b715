"""Every reader on arbitrary and on mutilated input: only LogError, and no line that is not accounted for."""

import functools
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_samples import GPT_ARGS, LOGS, TIMM_ARGS, Folder, accounted

from repro.logs import FORMATS, fairseq, megatron, read, timm
from repro.logs.log import LogError, Source

TEXT_FORMATS = sorted({format for format, _ in LOGS.values()})
SETTINGS: dict[str, tuple[Callable[[Source], dict[str, Any]], str]] = {
    "timm": (timm.read_args, TIMM_ARGS),
    "fairseq": (fairseq.read_config, "task: {data: ???}\nlr: [4e-05]\nfp16: ${task.data}\n"),
    "megatron": (megatron.read_args, GPT_ARGS),
}
PIECES = [  # of which numbers, keys and structures are made
    *(
        "nan",
        "inf",
        "-1",
        "1e999",
        "0.5",
        "9" * 400,
        "1_0",
        "\u0663",
        "true",
        "null",
        "None",
        '""',
        "{",
        "}",
        "[",
        "]",
    ),
    *(
        ",",
        "|",
        ":",
        "=",
        "-",
        "'",
        '"',
        "\\",
        "#",
        " ",
        "\r",
        "\n",
        "\t",
        "\0",
        "\ufffd",
        "\u2028",
        "$",
        "${",
        "!!",
    ),
    *("epoch", "step", "line", "record", "segment", "lr", "num_updates", "train_loss", "--"),
]


@functools.cache
def folder() -> Folder:
    return Folder(Path(tempfile.mkdtemp()))


@st.composite
def mutilated(draw: st.DrawFn, content: str) -> bytes:
    """A log with lines and characters that are deleted, doubled, swapped, cut off or replaced."""
    lines = content.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        if not lines:
            break
        here, there = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        start, end = sorted((draw(st.integers(0, len(lines[here]))), draw(st.integers(0, len(lines[here])))))
        end = min(end, start + draw(st.sampled_from((0, 1, 8, 1000))))
        match draw(st.sampled_from(("delete", "double", "swap", "truncate", "replace", "other", "end"))):
            case "delete":
                del lines[here]
            case "double":
                lines.insert(there, lines[here])
            case "swap":
                lines[here], lines[there] = lines[there], lines[here]
            case "truncate":
                lines[here] = lines[here][:start]
            case "replace":
                lines[here] = lines[here][:start] + draw(st.sampled_from(PIECES)) + lines[here][end:]
            case "other":
                lines[here:here] = draw(st.sampled_from(list(LOGS.values())))[1].splitlines(keepends=True)
            case "end":
                lines = [*lines[:here], lines[here][:start]]
    data = "".join(lines).encode()
    if draw(st.booleans()):
        return data
    return draw(
        st.sampled_from((gzip.compress(data)[: draw(st.integers(10, 2000))], data.replace(b"1", b"\xff")))
    )


T = TypeVar("T")


def attempt(parse: Callable[[Path], T], path: Path) -> T | None:
    """Parse a file, or see that the refusal is a line that names it."""
    try:
        return parse(path)
    except LogError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert "\n" not in message
    return None


def check(content: bytes, format: str) -> None:
    """Read a content by what it looks like, and with one format's reader."""
    path = folder().write(content)
    for parse in (read, lambda path: FORMATS[format].read(Source(path))):
        log = attempt(parse, path)
        if log is not None:
            assert accounted(log)
            assert all(fault.startswith(str(path)) for fault in log.faults)
            assert len(log.faults) - log.lines["fault"] in (0, 1)  # plus that the file is damaged


@pytest.mark.parametrize("format", TEXT_FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_arbitrary_bytes(format: str, data: st.DataObject) -> None:
    check(data.draw(st.binary(max_size=300)), format)


@pytest.mark.parametrize("format", TEXT_FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_arbitrary_text(format: str, data: st.DataObject) -> None:
    text = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=40).map("".join)
    check(data.draw(text).encode(errors="surrogatepass"), format)


@pytest.mark.parametrize("sample", LOGS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_mutilated_logs(sample: str, data: st.DataObject) -> None:
    format, content = LOGS[sample]
    check(data.draw(mutilated(content)), format)


@pytest.mark.parametrize("sample", SETTINGS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_mutilated_settings(sample: str, data: st.DataObject) -> None:
    parse, content = SETTINGS[sample]
    path = folder().write(data.draw(mutilated(content)), "settings")
    assert isinstance(attempt(lambda path: parse(Source(path)), path), dict | None)
