"""scripts/checkpoint.py: finding, showing and converting optimizer states in the files of usual trainers."""

import argparse
import enum
import pickle
import runpy
from pathlib import Path

import pytest
import torch

import adan_optim
from adan_optim.interop.advice import REGIMES
from adan_optim.interop.convert import TARGETS
from adan_optim.interop.sources import SOURCES
from repro.interop import export

COMMAND = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "checkpoint.py"))
MAIN = COMMAND["main"]


class Kind(enum.Enum):
    A = "a"


def steps(optimizer: torch.optim.Optimizer, count: int = 3) -> torch.optim.Optimizer:
    """Make steps with gradients that depend on the parameters."""
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = p.detach() + 0.5
        optimizer.step()
    return optimizer


def timm_adan() -> torch.optim.Optimizer:
    layer = torch.nn.Linear(4, 3)
    return steps(pytest.importorskip("timm.optim.adan").Adan(layer.parameters(), lr=0.1))


CONTAINERS = {
    "plain": (lambda saved: saved, []),
    "timm": (lambda saved: {"epoch": 3, "arch": "vit", "state_dict": {}, "optimizer": saved}, ["optimizer"]),
    "fairseq": (lambda saved: {"model": {}, "last_optimizer_state": saved}, ["last_optimizer_state"]),
    "Lightning": (
        lambda saved: {"state_dict": {}, "optimizer_states": [saved], "lr_schedulers": [{"state": 1}]},
        ["optimizer_states", 0],
    ),
    "ours": (lambda saved: {"optimizer": saved, "scaler": None, "losses": [1.0]}, ["optimizer"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_convert(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is the same except for the state dict, which continues as the source does."""
    wrap, place = CONTAINERS[name]
    theirs = timm_adan()
    torch.save(wrap(theirs.state_dict()), tmp_path / "in.pt")
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert "Adan of timm (timm)" in output
    assert f" at {'.'.join(map(str, place))}: " in output if place else " at " not in output
    assert "2 parameters with a state, 8 tensors, 240 bytes, step 3" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]

    old, new = (torch.load(tmp_path / f"{file}.pt", weights_only=True) for file in ("in", "out"))
    for key in place:
        rest = [
            {k: v for k, v in x.items() if k != key} if isinstance(x, dict) else x[1:] for x in (old, new)
        ]
        assert rest[0] == rest[1]
        old, new = old[key], new[key]
    params = [p.detach().clone().requires_grad_() for p in theirs.param_groups[0]["params"]]
    ours = adan_optim.Adan(params, lr=9.0)
    ours.load_state_dict(new)
    steps(ours)
    steps(theirs)
    for p, q in zip(params, theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("command", [["show"], []], ids=["show", "by default"])
def test_show(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = timm_adan()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5})
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "in.pt")
    assert MAIN([*command, str(tmp_path / "in.pt")]) == 0
    lines = [line[12:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines[0] == "at optimizer: Adan of timm (timm)"
    assert lines[1] == ("2 parameters with a state, 8 tensors, 240 bytes, step 3; 16 bytes per parameter")
    assert lines[2].startswith("group 0: 2 parameters, lr=0.1, betas=(0.98, 0.92, 0.99), ")
    assert lines[3].startswith("group 1: 1 parameters, lr=0.5, ")
    sgd = steps(torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1, momentum=0.9))
    torch.save(sgd.state_dict(), tmp_path / "sgd.pt")
    assert MAIN([*command, str(tmp_path / "sgd.pt")]) == 0
    assert "not recognised: not a state dict of an implementation" in capsys.readouterr().out


def test_several_optimizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [
        timm_adan().state_dict(),
        steps(torch.optim.AdamW([torch.ones(3, requires_grad=True)])).state_dict(),
    ]
    torch.save({"optimizer_states": two}, tmp_path / "in.pt")
    arguments = ["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    assert MAIN(arguments) == 2
    assert (
        "there is optimizer_states.0 and optimizer_states.1; say which with --at" in capsys.readouterr().err
    )
    assert MAIN([*arguments, "--at", "optimizer_states.2"]) == 2
    assert "no optimizer's state dict at optimizer_states.2" in capsys.readouterr().err
    assert MAIN([*arguments, "--at", "optimizer_states.1"]) == 0
    new = torch.load(tmp_path / "out.pt", weights_only=True)["optimizer_states"]
    assert new[0]["state"][0].keys() == two[0]["state"][0].keys()
    assert new[1]["state"][0].keys() == {"step", *adan_optim.CARDS["adan"].states}
    assert new[1]["param_groups"][0]["lr"] == 0.005
    assert (
        MAIN([*arguments, "--at", "optimizer_states.1", "--to", "adam_mini", "--blocks", "3", "--force"]) == 0
    )
    new = torch.load(tmp_path / "out.pt", weights_only=True)["optimizer_states"]
    assert new[1]["state"][0]["exp_avg_sq"].shape == (3,)


def test_adam_minis_shapes_come_from_the_model_in_the_file(tmp_path: Path) -> None:
    """The package names its groups in lower case and keeps m of query and key by heads."""
    state = {"m": torch.ones(2, 8), "vmean": torch.ones(2, 1), "head_per_gpu": 2, "step": 3}
    group = dict(name="q_proj.weight", lr=0.1, weight_decay=0.0, beta1=0.9, beta2=0.99, eps=1e-8, params=[0])
    saved = {"state": {0: state}, "param_groups": [group]}
    torch.save({"model": {"Q_proj.weight": torch.ones(4, 4)}, "optimizer": saved}, tmp_path / "in.pt")
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), "--to", "adam_mini"]) == 0
    new = torch.load(tmp_path / "out.pt", weights_only=True)["optimizer"]
    assert new["state"][0]["exp_avg"].shape == (4, 4)
    assert new["param_groups"][0]["betas"] == (0.9, 0.99)


def test_clipping_is_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = timm_adan().state_dict()
    for group in saved["param_groups"]:
        del group["caution"]
        group.update(max_grad_norm=5.0, fused=False)
    torch.save(saved, tmp_path / "in.pt")
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]) == 0
    output = capsys.readouterr().out
    assert "(official)" in output
    assert "also construct the optimizer with max_grad_norm=5.0" in output


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm_adan().state_dict(), tmp_path / "in.pt")
    (tmp_path / "out.pt").write_text("precious")
    arguments = ["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    assert MAIN(arguments) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'out.pt'} exists: give another name, or --force to overwrite it\n"
    )
    assert (tmp_path / "out.pt").read_text() == "precious"
    assert MAIN([*arguments, "--force"]) == 0
    torch.load(tmp_path / "out.pt", weights_only=True)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(timm_adan().state_dict(), tmp_path / "in.pt")
    (tmp_path / "out.pt").write_text("precious")

    def full(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("unexpected pos: no space\nC++ stack")

    monkeypatch.setattr(torch, "save", full)
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), "--force"]) == 2
    assert capsys.readouterr().err == f"error: cannot write {tmp_path / 'out.pt'}: unexpected pos: no space\n"
    assert (tmp_path / "out.pt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]


def test_settings_stay_and_foreign_classes_become_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoints of timm and fairseq contain the command line."""
    args = argparse.Namespace(lr=1, kind=Kind.A)
    torch.save({"args": args, "optimizer": timm_adan().state_dict()}, tmp_path / "in.pt")
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]) == 0
    assert f"because their classes are not loaded: {__name__}.Kind\n" in capsys.readouterr().out
    with torch.serialization.safe_globals([argparse.Namespace]):
        new = torch.load(tmp_path / "out.pt", weights_only=True)["args"]
    assert new == argparse.Namespace(lr=1, kind="a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "was not written by torch.save, or is damaged"),
        (b"not a checkpoint", "was not written by torch.save, or is damaged"),
        (pickle.dumps({"a": 1}), "was not written by torch.save, or is damaged"),
        (
            {"model": {}},
            "has 0 state dicts of optimizers: there is none (a dict with 'state' and 'param_groups')",
        ),
        ([1, 2], "has 0 state dicts of optimizers"),
        ({"state": {}, "param_groups": []}, "there are no states in it"),
    ],
)
def test_bad_files(content: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert MAIN(["convert", str(path), str(tmp_path / "out.pt")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training.pt").touch()
    assert MAIN(["show", str(tmp_path)]) == 2
    assert "name one of its files: training.pt" in capsys.readouterr().err
    assert MAIN(["convert", str(tmp_path), str(tmp_path / "out.pt")]) == 2
    assert "is a folder with training.pt: name the file" in capsys.readouterr().err
    torch.save(timm_adan().state_dict(), tmp_path / "in.pt")
    assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "absent" / "out.pt")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_options_are_those_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line is read without the modules that have them, which take seconds."""
    for library in (*export.LIBRARIES, export.SAME):
        assert COMMAND["read_options"](["FILE", "--for", library]).library == library
    torch.save(timm_adan().state_dict(), tmp_path / "in.pt")
    for regime in REGIMES:
        assert COMMAND["read_options"](["convert", "IN", "OUT", "--regime", regime]).regime == regime
    for option, known in (("--from", SOURCES), ("--to", TARGETS)):
        assert MAIN(["convert", str(tmp_path / "in.pt"), str(tmp_path / "out.pt"), option, "nonsense"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert all(name in error for name in ("nonsense", *known))
