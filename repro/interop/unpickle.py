"""Read files of torch.save without running anything in them.

A checkpoint is a pickle, and a pickle can name any function and have it called. torch.load(weights_only=True)
refuses every name except those of tensors and plain containers. But training scripts also save settings
(enumerations, OmegaConf), meters or whole modules. For each name that torch refuses we register a stand-in: a
class that keeps its arguments and does nothing. So nothing foreign is imported or called, and the contents
can still be read. Names that only an attacker would use are refused.
"""

import argparse
import contextlib
import io
import logging
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from repro.errors import UserError
from repro.reading import open_file

MAX_NAMES = 1000  # stand-ins in one file; a fairseq checkpoint needs a few dozen
# Names that run programs or code. They would stay inert like all others, but their author meant harm.
HARMFUL = re.compile(
    r"builtins\.(__import__|breakpoint|compile|eval|exec|input|open)$|_?io\.(open|FileIO)|"
    r"(commands|ctypes|importlib|marshal|nt|os|pickle|posix|pty|runpy|shutil|socket|subprocess|sys|webbrowser)\."
)  # commands is the name of subprocess in pickles of protocol 2


class Foreign:
    """An object of a class that is not loaded.

    Attributes:
        name: `module.Class` as in the file.
        arguments: of the call or of `__new__`.
        state: its state in the file (mostly a dict of attributes); None if it has none.
    """

    name = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> "Foreign":
        """Keep the arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        """Do nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep the state as it is."""
        self.state = state

    def __repr__(self) -> str:
        """Return the class."""
        return f"<{self.name}>"


class _Array(Foreign):
    """An array of NumPy."""

    name = "numpy.ndarray"

    def value(self) -> Any:
        """Return the array of any shape, or the object itself if its state is not that of numbers."""
        match self.state:
            case (_, tuple() as shape, Foreign() as dtype, bool() as fortran, bytes() as data):
                flat = _numbers(dtype, data)
                if flat is not None and all(isinstance(n, int) and n >= 0 for n in shape):
                    array: np.ndarray[Any, Any] = flat.reshape(shape, order="F" if fortran else "C")
                    return array
        return self


def _numbers(dtype: Foreign, data: bytes) -> "np.ndarray[Any, Any] | None":
    """Return the numbers in some bytes, [n], or None unless the dtype is boolean or a plain number."""
    code = dtype.arguments[0] if dtype.arguments else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)", code):
        return None
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    return np.frombuffer(data, np.dtype(code).newbyteorder(">" if order == ">" else "<")).copy()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """Stand in for numpy.core.multiarray.scalar, for numbers."""
    numbers = _numbers(dtype, data) if isinstance(dtype, Foreign) and isinstance(data, bytes) else None
    return numbers[0] if numbers is not None and len(numbers) == 1 else repr(data)


def _contained(kind: str, container: type, file: str, source: str) -> type:
    """Return the class in torch's record of a module, which also holds the module's source."""
    return container


# Known data: settings of the command line, which are bare attributes, and numbers of NumPy.
_NUMPY: dict[str, Callable[..., Any]] = {"scalar": _scalar, "_reconstruct": _Array}
KNOWN: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    f"{__name__}._contained": _contained,
    **{f"numpy.{core}.multiarray.{name}": _NUMPY[name] for core in ("core", "_core") for name in _NUMPY},
}
UNREPORTED = ("numpy.dtype", "numpy.ndarray")  # parts of NumPy's numbers


def read(path: Path) -> tuple[Any, list[str]]:
    """Return the contents of a file of torch.save, and the names of foreign classes and functions in it.

    Tensors are on the CPU, mapped from the file if its format allows that.

    Raises:
        UserError: the file was not written by torch.save, is damaged, or is an attack.
    """
    try:
        with open_file(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
            packed = zipped and _compressed(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if packed:
        raise UserError(f"{path} was not written by torch.save, which does not compress; unpack it first")
    stand_ins: dict[str, Any] = {}
    source: Path | io.BytesIO = path
    while len(stand_ins) <= MAX_NAMES:
        known: list[Any] = [(made, name) for name, made in (KNOWN | stand_ins).items()]
        try:
            with _quiet(), torch.serialization.safe_globals(known):
                content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipped)
            _check_extent(content, path)
            return content, sorted(stand_ins.keys() - UNREPORTED)
        except pickle.UnpicklingError as error:
            if "persistent_load of storage" in str(error) and source is path and not zipped:
                source = _without_sources(path)
                continue
            name, base = _lacking(str(error))
            if base is None or not name.isprintable() or base is stand_ins.get(name, object).__base__:
                raise _unreadable(path, str(error)) from None
            if HARMFUL.match(name):
                raise UserError(
                    f"{path} wants {name} to be called when it is read, which no checkpoint needs: it was "
                    "not called, and the file was not read; do not open it elsewhere"
                ) from None
            module, _, last = name.rpartition(".")
            stand_ins[name] = type(last, (base,), {"name": name, "__module__": module})
            if isinstance(source, io.BytesIO):
                source.seek(0)
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way at all
            raise _unreadable(path, repr(error)) from None
    raise UserError(f"cannot read {path}: it names more than {MAX_NAMES} foreign classes")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's remarks on the contents, such as that a DTensor has no process group here."""
    logger = logging.getLogger("torch.distributed.device_mesh")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.disabled = before


def _compressed(file: BinaryIO) -> bool:
    """Return whether a zip file has compressed members: a few bytes could fill the memory."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(
                member.compress_type != zipfile.ZIP_STORED
                and "/code/" not in member.filename  # TorchScript's
                for member in archive.infolist()
            )
    except Exception:  # damaged: torch reports how
        return False


def _check_extent(content: Any, path: Path) -> None:
    """Raise UserError for data shared or nested so much that copying or printing it would not end.

    A pickle can refer to an object many times: nine lists, each with nine references to the next, are a
    kilobyte in the file and gigabytes as text.
    """
    known: dict[int, float] = {}
    elements = 0

    def extent(value: Any) -> float:
        nonlocal elements
        if isinstance(value, Foreign):
            inside = [*value.arguments, value.state]
        elif isinstance(value, dict):
            inside = [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            inside = [*value]
        elif isinstance(value, argparse.Namespace):
            inside = [*vars(value).values()]
        else:
            return 1
        if id(value) not in known:
            known[id(value)] = 0 if isinstance(value, Foreign) else math.inf  # in case it contains itself
            elements += len(inside)
            known[id(value)] = 1 + sum(map(extent, inside))
        return known[id(value)]

    try:
        size = extent(content)
    except RecursionError:
        raise UserError(f"{path}: its content is nested deeper than in any checkpoint") from None
    if size > 10**6 + 10 * elements:
        raise UserError(f"{path}: its content repeats or contains itself without end, unlike a checkpoint's")


def _lacking(message: str) -> tuple[str, type | None]:
    """Return the name that torch.load refused and the base of its stand-in; None for any other error."""
    for pattern, base in (
        (r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)", Foreign),
        (r"Can only SETITEMS? for .* but got <class '(\S+)'>", _Mapping),
        (r"Can only append to lists, but got <class '(\S+)'>", _List),
    ):
        if found := re.search(pattern, message):
            name = found[1]
            return name if "." in name else f"builtins.{name}", base  # torch omits this module
    return "", None


class _Mapping(Foreign):
    """A foreign dict, replaced by a plain one that torch fills."""

    def __new__(cls, *arguments: Any) -> Any:
        """Return an OrderedDict."""
        return OrderedDict()


class _List(list[Any]):
    """A foreign list."""

    def __new__(cls, *arguments: Any) -> "_List":
        """Return an empty list, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        """Do nothing."""


def _unreadable(path: Path, message: str) -> UserError:
    """Return the error for a file, with the relevant part of torch's long message."""
    if "Unsupported operand" in message:
        return UserError(
            f"{path} was not written by torch.save, or is damaged, or its pickle has another protocol "
            "than 2, which torch's safe reader does not support"
        )
    if "TorchScript" in message:
        return UserError(f"{path} is a TorchScript archive, a program: it was not run, and is not read")
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason = next((line for line in lines if not re.match("Weights only load|Please file", line)), "nothing")
    return UserError(f"{path} was not written by torch.save, or is damaged ({reason[:150]})")


def _without_sources(path: Path) -> io.BytesIO:
    """Return a file of torch 0.x or 1.x with a module in it, rewritten for torch's safe reader.

    Its pickle has a persistent id ("module", class, file, source) for the class of each module. A call of
    `_contained` in place of the lookup gives the class.
    """
    raw = path.read_bytes()
    file = io.BytesIO(raw)
    try:
        for _ in range(3):  # magic number, protocol, sizes of integers
            for _ in pickletools.genops(file):
                pass
        operations = list(pickletools.genops(file))
    except Exception as error:  # as above
        raise _unreadable(path, repr(error)) from None
    marks: list[int] = []
    strings: dict[Any, Any] = {}  # by number in the memo
    edits: list[tuple[int, int, bytes]] = []  # position, number of bytes to drop, bytes to insert
    closed = 0
    for i, (operation, argument, position) in enumerate(operations):
        name = operation.name
        if name == "MARK":
            marks.append(i)
        elif name in ("TUPLE", "APPENDS", "SETITEMS") and marks:
            closed = marks.pop()
        elif name in ("BINPUT", "LONG_BINPUT"):
            strings[argument] = operations[i - 1][1]
        elif name == "BINPERSID":
            first, value, _ = operations[closed + 1]
            kind = strings.get(value) if first.name in ("BINGET", "LONG_BINGET") else value
            if kind == "module":
                call = f"c{__name__}\n_contained\n".encode()
                edits += [(operations[closed][2] or 0, 0, call), (position or 0, 1, b"R")]
    parts, end = [], 0
    for position, skipped, inserted in edits:
        parts += [raw[end:position], inserted]
        end = position + skipped
    return io.BytesIO(b"".join([*parts, raw[end:]]))


def plain(value: Any, namespaces: bool = False, _memo: dict[int, Any] | None = None) -> Any:
    """Return a copy with plain data in place of stand-ins: values of enumerations, dicts of attributes.

    Settings of the command line also become dicts, unless `namespaces` is set. Tensors are not copied.
    """
    memo: dict[int, Any] = {} if _memo is None else _memo
    if id(value) in memo:
        return memo[id(value)]
    made: Any = value
    if isinstance(value, dict):
        made = memo[id(value)] = OrderedDict() if isinstance(value, OrderedDict) else {}
        made.update({_hashable(k, memo): plain(x, namespaces, memo) for k, x in value.items()})
    elif isinstance(value, list):
        made = memo[id(value)] = []
        made.extend(plain(x, namespaces, memo) for x in value)
    elif isinstance(value, tuple) and not isinstance(value, torch.Size):
        made = tuple(plain(x, namespaces, memo) for x in value)
    elif isinstance(value, set):
        made = {_hashable(x, memo) for x in value}
    elif isinstance(value, argparse.Namespace):
        made = memo[id(value)] = argparse.Namespace() if namespaces else {}
        inside = vars(made) if namespaces else made
        inside.update({k: plain(x, namespaces, memo) for k, x in vars(value).items()})
    elif isinstance(value, _Array):
        made = value.value()
        made = repr(made) if made is value else made
    elif isinstance(value, Foreign):
        memo[id(value)] = value.name  # in case it contains itself
        made = _data(value, namespaces, memo)
    elif isinstance(value, type) and issubclass(value, Foreign):
        made = value.name
    memo[id(value)] = made
    return made


def _hashable(key: Any, memo: dict[int, Any]) -> Any:
    """Return a key as plain data, or as text if that is not hashable."""
    made = plain(key, _memo=memo)
    try:
        hash(made)
    except TypeError:
        return str(made)
    return made


def _data(value: Foreign, namespaces: bool, memo: dict[int, Any]) -> Any:
    state = value.state
    if isinstance(state, dict):
        for content in ("_content", "_val"):  # OmegaConf's nodes
            if content in state:
                return plain(state[content], namespaces, memo)
        return {str(k): plain(x, namespaces, memo) for k, x in state.items()}
    if value.name.startswith("pathlib."):
        return "/".join(map(str, value.arguments)).replace("//", "/")
    if state is None and len(value.arguments) == 1:
        return plain(value.arguments[0], namespaces, memo)  # an enumeration's value
    simple = (plain(x, namespaces, memo) for x in value.arguments)
    known = (str, bytes, bool, int, float, type(None))
    arguments = ", ".join(repr(x) if isinstance(x, known) else type(x).__name__ for x in simple)
    return f"{value.name.rpartition('.')[2]}({arguments})"
