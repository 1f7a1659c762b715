"""Rows from the cache are those that Hydra composes, or they are composed again."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.errors import UserError
from repro.ledger import cache, rows
from repro.ledger.rows import CONFIGS, names
from scripts import reproduce

ROW = "imagenet/vit_s_150_i"


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The configurations that are composed; there is no cached row yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made: list[str] = []
    compose = rows.compose_config

    def counted(name: str, overrides: list[str]) -> object:
        made.append(" ".join([name, *overrides]))
        return compose(name, overrides)

    monkeypatch.setattr(rows, "compose_config", counted)
    rows._load.cache_clear()
    return made


def fresh(name: str = ROW) -> rows.Recipe:
    """A row as the next process would get it."""
    rows._load.cache_clear()
    return rows.load(name)


@pytest.mark.parametrize("name", names())
def test_a_row_from_the_cache_is_the_composed_one(name: str, composed: list[str]) -> None:
    made = fresh(name)
    assert fresh(name) == made
    assert len(composed) == 1


def test_the_list_composes_each_row_once_and_then_none(
    composed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [ROW, "memory/vit_b", "bert/adan", "lstm/lstm_1_adan"]
    monkeypatch.setattr(rows, "names", lambda: few)
    table = reproduce.table("")
    assert len(composed) == len(few)
    rows._load.cache_clear()
    assert reproduce.table("") == table
    assert len(composed) == len(few)


def test_overrides_are_composed_anew(composed: list[str]) -> None:
    fresh()
    rows._load.cache_clear()
    assert rows.load(ROW, ["epochs=3"]).config["epochs"] == 3
    assert fresh().config["epochs"] == 150
    assert len(composed) == 2


@pytest.mark.parametrize("changed", ["optimizer/adan.yaml", "paper/imagenet/_timm.yaml", "data/new.yaml"])
def test_any_changed_configuration_counts(
    changed: str, composed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fresh()
    for number, text in enumerate(("", "# a remark\n")):
        configs = Path(shutil.copytree(CONFIGS, tmp_path / str(number) / "configs"))
        if text:
            with (configs / changed).open("a") as file:
                file.write(text)
        monkeypatch.setattr(rows, "CONFIGS", configs)
        fresh()
        assert len(composed) == 1 + number  # an equal copy is as good as the original


def test_changed_code_and_versions_count(
    composed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in cache.CODE:
        shutil.copytree(cache.ROOT / folder, tmp_path / "code" / folder)
    before = cache.origin.__wrapped__(CONFIGS)
    monkeypatch.setattr(cache, "ROOT", tmp_path / "code")
    assert cache.origin.__wrapped__(CONFIGS) == before
    with (tmp_path / "code/vision/config.py").open("a") as file:
        file.write("# a remark\n")
    after = cache.origin.__wrapped__(CONFIGS)
    monkeypatch.setattr(cache.metadata, "version", lambda package: "0")
    assert len({before, after, cache.origin.__wrapped__(CONFIGS)}) == 3


def sound(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest() + text.encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: b"",
        lambda file: file[:-1],
        lambda file: file[:-1] + b"!",
        lambda file: sound("["),
        lambda file: sound("[]"),
        lambda file: sound(json.dumps({"origin": cache.origin(CONFIGS)})),
        lambda file: sound(json.dumps({"origin": cache.origin(CONFIGS), "content": {"row": {"cost": 3}}})),
    ],
)
def test_a_damaged_file_is_written_again(damage: Callable[[bytes], bytes], composed: list[str]) -> None:
    made = fresh()
    path = cache._path(ROW)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert fresh() == made
    assert len(composed) == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["file", "folder/file", ""])
def test_no_folder_to_write_to(
    where: str, composed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", where and str(tmp_path / where))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    if where == "folder/file":
        (tmp_path / "folder").mkdir()
        cache._path(ROW).mkdir(parents=True)  # something else where the file should be
    assert fresh() == fresh()
    assert len(composed) == 2


def test_errors_are_not_kept(composed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = Path(shutil.copytree(CONFIGS, tmp_path / "configs"))
    with (configs / f"paper/{ROW}.yaml").open("a") as file:
        file.write("nonsense: 3\n")
    monkeypatch.setattr(rows, "CONFIGS", configs)
    for _ in range(2):
        with pytest.raises(UserError, match="nonsense"):
            fresh()
    assert not cache._path(ROW).exists()
