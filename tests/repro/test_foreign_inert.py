"""Pickles of others are read, and nothing in them is run."""

import argparse
import collections
import enum
import os
import pickle
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from containers import foreign_module, forget
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from repro.errors import UserError
from repro.interop import unpickle

formats = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def save(content: Any, path: Path, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@formats
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("__import__('os').mkdir('{}')",), "builtins.eval"),
        (exec, ("__import__('os').mkdir('{}')",), "builtins.exec"),
        (subprocess.call, (["touch", "{}"],), "(subprocess|commands).call"),
        (shutil.copy, ("/etc/hostname", "{}"), "shutil.copy"),
        (os.mkdir, ("{}",), r"(posix|nt)\.mkdir"),
    ],
)
def test_hostile(
    function: Callable[..., Any], arguments: Any, name: str, legacy: bool, tmp_path: Path
) -> None:
    """Reading as Python does creates the file, with `inert` it does not; the message names the function."""
    target = tmp_path / "created"
    words = [[w.format(target) for w in a] if isinstance(a, list) else a.format(target) for a in arguments]
    path = save({"weight": torch.ones(2), "x": Call(function, *words)}, tmp_path / "x.pt", legacy)
    with pytest.raises(UserError, match=f"x.pt wants {name} to be called when it is read, .* was not called"):
        unpickle.read(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()


def test_hostile_by_way_of_harmless_names(tmp_path: Path) -> None:
    """getattr on a class, and a foreign function: neither is called, and what they would get is data."""
    target = tmp_path / "created"
    module = foreign_module("absent_tools", "def touch(path):\n    open(path, 'w')\n")
    path = save(
        {"a": Call(getattr, Path(target), "touch"), "b": Call(module.touch, str(target))}, tmp_path / "x.pt"
    )
    forget("absent_tools")
    content, names = unpickle.read(path)
    assert {"builtins.getattr", "absent_tools.touch"} <= set(names)
    assert content["b"].arguments == (str(target),)
    assert unpickle.plain(content)["b"] == str(target)
    assert not target.exists()


def test_a_call_of_what_a_call_returned_is_refused(tmp_path: Path) -> None:
    """Such as methodcaller("touch")(path): there is nothing to call."""
    from operator import methodcaller

    target = tmp_path / "created"
    path = save({"x": Call(methodcaller("touch"), Path(target))}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt was not written by torch\.save, or is damaged \(.*reduce"):
        unpickle.read(path)
    assert not target.exists()


class Color(enum.Enum):
    RED = "red"


@formats
def test_data(legacy: bool, tmp_path: Path) -> None:
    """Settings, numbers and containers of others come out as plain data; nothing of theirs is imported."""
    module = foreign_module(
        "absent_package",
        "import collections, enum\n"
        "class Kind(enum.Enum):\n    A = 'complete'\n"
        "class Table(collections.OrderedDict):\n    pass\n"
        "class Rows(list):\n    pass\n"
        "class Thing:\n    pass\n",
    )
    thing = module.Thing()
    thing.lr, thing.me = 0.1, thing
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    given = {
        "args": argparse.Namespace(lr=1, kind=module.Kind.A, dtype=torch.float16, out=Path("/a/b")),
        "cfg": OmegaConf.create({"a": {"b": [1, "x"]}}),
        "table": module.Table(a=1),
        "rows": module.Rows([1, 2]),
        "default": collections.defaultdict(int, {1: 2}),
        "thing": thing,
        "scalar": np.float64(3.5),
        "array": array,
        "function": module.Thing,
    }
    path = save(given, tmp_path / "x.pt", legacy)
    forget("absent_package")
    content, names = unpickle.read(path)
    plain = unpickle.plain(content)
    assert "absent_package" not in sys.modules
    assert plain["args"] == {"lr": 1, "kind": "complete", "dtype": torch.float16, "out": "/a/b"}
    assert plain["cfg"] == {"a": {"b": [1, "x"]}}
    assert (plain["table"], plain["rows"], plain["default"]) == ({"a": 1}, [1, 2], {1: 2})
    assert plain["thing"] == {"lr": 0.1, "me": "absent_package.Thing"}
    assert isinstance(plain["scalar"], np.float64)
    assert plain["scalar"] == 3.5
    assert plain["array"].dtype == array.dtype
    np.testing.assert_array_equal(plain["array"], array)
    assert plain["function"] == "absent_package.Thing"
    assert {"absent_package.Kind", "absent_package.Rows", "omegaconf.dictconfig.DictConfig"} <= set(names)
    assert not [name for name in names if name.startswith("numpy")]
    kept = unpickle.plain(content, namespaces=True)["args"]
    assert isinstance(kept, argparse.Namespace)
    assert kept.kind == "complete"


def test_keys_of_foreign_classes(tmp_path: Path) -> None:
    """An enumeration's member is its value; an object, whose attributes make no key, is text."""
    module = foreign_module(
        "absent_keys", "import enum\nclass Kind(enum.Enum):\n    A = 'a'\nclass Thing:\n    pass\n"
    )
    thing = module.Thing()
    thing.x = 1
    path = save({"d": {module.Kind.A: 1, (module.Kind.A, 2): 2, thing: 3}, "s": {thing}}, tmp_path / "x.pt")
    forget("absent_keys")
    plain = unpickle.plain(unpickle.read(path)[0])
    assert plain == {"d": {"a": 1, ("a", 2): 2, "{'x': 1}": 3}, "s": {"{'x': 1}"}}


def test_arrays_of_objects_stay_stand_ins(tmp_path: Path) -> None:
    """NumPy's own unpickling would make objects of them."""
    path = save({"a": np.array([{}, None], dtype=object)}, tmp_path / "x.pt")
    content, _ = unpickle.read(path)
    assert isinstance(content["a"], unpickle.Foreign)
    assert isinstance(unpickle.plain(content)["a"], str)


def test_nothing_stays_registered(tmp_path: Path) -> None:
    path = save(argparse.Namespace(a=1), tmp_path / "x.pt")
    before = set(torch.serialization.get_safe_globals())
    unpickle.read(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_too_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_NAMES", 3)
    module = foreign_module("absent_many", "".join(f"class C{i}:\n    pass\n" for i in range(5)))
    path = save([getattr(module, f"C{i}")() for i in range(5)], tmp_path / "x.pt")
    forget("absent_many")
    with pytest.raises(UserError, match="names more than 3 foreign classes"):
        unpickle.read(path)


def test_lists_within_lists_do_not_explode(tmp_path: Path) -> None:
    """Each has the next one twice: 2^60 ends, 60 lists. A few of them are plain data."""
    content: list[Any] = [argparse.Namespace()]
    for _ in range(60):
        content = [content, content]
    with pytest.raises(UserError, match="its content repeats or contains itself without end"):
        unpickle.read(save(content, tmp_path / "x.pt"))
    while not isinstance(content[0][0][0][0], argparse.Namespace):
        content = content[0]
    plain = unpickle.plain(unpickle.read(save(content, tmp_path / "x.pt"))[0])
    assert plain[0] is plain[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "cannot read .*directory"),
        (lambda path: path.write_bytes(b""), "not written by torch.save, or is damaged"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and so on"), "not written by torch.save, or is damaged"),
        (lambda path: path.write_text("epoch,train_loss\n"), "not written by torch.save, or is damaged"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "another protocol than 2"),
        (
            lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path),
            "a TorchScript archive, a program: it was not run",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TorchScript
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_not_a_checkpoint(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.pt")
    with pytest.raises(UserError, match=message) as raised:
        unpickle.read(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


@formats
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage(legacy: bool, data: st.DataObject, tmp_path: Path) -> None:
    """Cut off, or with changed bytes: either it reads, or there is one line."""
    module = types.SimpleNamespace(weight=torch.arange(6.0))
    content = {"args": argparse.Namespace(a=1), "model": {"w": module.weight}, "x": np.float64(1)}
    raw = bytearray(save(content, tmp_path / "x.pt", legacy).read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.pt").write_bytes(raw)
    message = ""
    try:
        unpickle.plain(unpickle.read(tmp_path / "x.pt")[0])
    except UserError as error:
        message = str(error)
    assert "\n" not in message
