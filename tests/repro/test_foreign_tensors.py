"""Tensors that are not dense, not whole or have no values: described, and refused where values are needed."""

import runpy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from repro import interop
from repro.errors import UserError
from repro.interop.architectures import infer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(runner: Callable[..., Run]) -> Run:
    """Run scripts/checkpoint.py; returns (exit status, stdout, stderr)."""
    return runner(runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "checkpoint.py"))["main"])


def nested() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def quantized() -> Tensor:
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)


ODD = {
    "sparse tensor (sparse_coo)": (lambda: torch.eye(3).to_sparse(), "9 in 1 tensors, 36 bytes of float32"),
    "nested tensor": (nested, "5 in 1 tensors, 20 bytes of float32"),
    "quantized tensor (qint8)": (quantized, "4 in 1 tensors, 4 bytes of qint8"),
    "meta tensor, which has no values": (
        lambda: torch.ones(2, 2, device="meta"), "4 in 1 tensors, 16 bytes of float32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_described_and_not_exported(kind: str, tmp_path: Path, run: Run) -> None:
    make, counted = ODD[kind]
    path, out = tmp_path / "x.pt", tmp_path / "out.safetensors"
    torch.save({"model": {"w": make()}, "epoch": make(), "args": {"scale": make()}}, path)
    status, text, err = run(str(path))
    assert (status, err) == (0, "")
    assert f"parameters  {counted}\n" in text
    assert f" w: {kind}; save " in text
    status, _, err = run(str(path), "--export", str(out), "--for", "same")
    assert status == 2
    assert err.startswith(f"error: {path} cannot be used: w: {kind}; save ")
    assert err.count("\n") == 1
    assert not out.exists()
    with pytest.raises(UserError, match="cannot be used: w: "):
        interop.read_weights(path)


@pytest.mark.parametrize("processes", [1, 4])
def test_states_of_fsdp2(processes: int, tmp_path: Path, run: Run, one_of: Callable[[int], None]) -> None:
    """torch.save(model.state_dict()) in each process has that process's part, which is all if it is alone."""
    one_of(processes)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    weights = {name: x.detach().clone() for name, x in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (processes,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    path, out = tmp_path / "x.pt", tmp_path / "out"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    dist.destroy_process_group()
    status, text, err = run(str(path))
    assert (status, err) == (0, "")
    assert "parameters  99 in 4 tensors, 396 bytes of float32\n" in text
    assert "4 parameters with a state, 8 tensors, 792 bytes, step 1; 8 bytes per parameter" in text
    part = f"DTensor, of which one of {processes} processes has its part here; gather them before saving: "
    assert text.count(part) == (0 if processes == 1 else 2)
    for arguments in ([str(path), "--export", str(out), "--for", "same"], ["convert", str(path), str(out)]):
        status, _, err = run(*arguments)
        if processes == 1:
            assert (status, err) == (0, "")
            out.rename(tmp_path / "made")
        else:
            assert (status, err.count("\n"), out.exists()) == (2, 1, False)
            assert part in err
    if processes == 1:
        ours = interop.read_weights(path)[0]
        assert all(torch.equal(ours[name], x) for name, x in weights.items())


@pytest.fixture
def one_of() -> Iterator[Callable[[int], None]]:
    """Become the first of several processes that do not exist."""

    def begin(processes: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


# Of each look-alike the family whose names it has.
LOOK_ALIKES = {
    "hiera_tiny_224": "ViT", "eva_giant_patch14_224": "ViT", "samvit_base_patch16": "ViT",
    "beit_base_patch16_224": "ViT", "wide_resnet50_2": "ResNet", "resnext50_32x4d": "ResNet",
    "seresnet50": "ResNet", "convnextv2_atto": "ConvNeXt",
}  # fmt: skip
GENUINE = {
    "vit_tiny_patch16_224": "ViT", "deit3_small_patch16_224": "ViT", "deit_tiny_distilled_patch16_224": "ViT",
    "resnet18": "ResNet", "resnet50": "ResNet", "convnext_atto": "ConvNeXt", "convnext_tiny_hnf": "ConvNeXt",
    "swin_tiny_patch4_window7_224": "Swin",
}  # fmt: skip


@pytest.mark.parametrize("name", [*LOOK_ALIKES, *GENUINE])
def test_look_alikes_are_not_called_what_they_are_not(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    known = infer({key: tuple(x.shape) for key, x in model.state_dict().items()})
    assert (known and known.family) == GENUINE.get(name)


def test_checkpoints_of_pytorchs_imagenet_example(tmp_path: Path, run: Run) -> None:
    """It has timm's keys but `version`, and counts epochs from 1."""
    model = nn.Linear(2, 2)
    content: dict[str, Any] = {"epoch": 90, "arch": "resnet50", "best_acc1": torch.tensor(76.13)}
    content["state_dict"] = {f"module.{name}": x for name, x in model.state_dict().items()}
    content |= {"optimizer": torch.optim.SGD(model.parameters()).state_dict(), "scheduler": {}}
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    _, text, _ = run(str(tmp_path / "checkpoint.pth.tar"))
    assert "checkpoint.pth.tar: checkpoint of PyTorch's ImageNet example\n" in text
    assert "model       resnet50: no architecture that is known here" in text
    assert (
        "position    epoch 90\nmetric      best_acc1 76.12999725\nnote        epochs count from 1\n" in text
    )
    del content["best_acc1"]  # as MoCo's script writes it
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    _, text, _ = run(str(tmp_path / "checkpoint.pth.tar"))
    assert "checkpoint.pth.tar: training checkpoint of an unknown writer\n" in text
    assert "model       resnet50: no architecture that is known here" in text
