"""Speed: operations are counted right, and time goes where it was spent."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm import create_model
from torch import Tensor, nn
from toy import ToyTask

from repro.train.throughput import Clock, Throughput, count_flops, device_peak


class Looking(ToyTask):
    """Its loss looks at values."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch) * float(batch[0].sum())


def test_operations_of_a_forward_pass() -> None:
    task = ToyTask(width=4)
    module = task.build_model()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch = [torch.randn(8, 2), torch.randint(2, (8,))]
    assert count_flops(task, module, batch) == 2 * 8 * (2 * 4 + 4 * 2)
    for name, tensor in module.state_dict().items():  # nothing was computed: BatchNorm saw nothing
        assert torch.equal(tensor, before[name]), name
    assert count_flops(Looking(), module, batch) == 0


def test_operations_of_a_vision_transformer() -> None:
    """The number of the ledger's rows: 9.198e9 for an image of 224 pixels in ViT-S/16."""

    class Sum(ToyTask):
        def loss(self, model: nn.Module, batch: Any) -> Tensor:
            out: Tensor = model(batch[0]).sum()
            return out

    with torch.device("meta"):
        module = create_model("deit_small_patch16_224")
    flops = count_flops(Sum(), module, [torch.empty(2, 3, 224, 224, device="meta")])
    assert flops / 2 == pytest.approx(9.198e9, rel=1e-3)


def test_waiting_is_told_from_training() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    clock = Clock(seconds=5.0, train_seconds=3.0)
    meter = Throughput(clock, "images", samples=10, peak=1e12)
    meter.forward_flops = 1e9
    for _ in meter.waiting(slow()):
        time.sleep(0.01)
        meter.window_steps += 1
    meter.tick(training=True)
    window = meter.window()
    time.sleep(0.01)
    meter.tick()
    assert 0.06 <= clock.wait_seconds < clock.train_seconds - 3.0 - 0.03 + 1e-3
    assert clock.seconds - 5.0 >= clock.train_seconds - 3.0 + 0.01
    assert window["images_per_second"] == pytest.approx(30 / (clock.train_seconds - 3.0), rel=1e-3)
    assert window["wait_share"] == pytest.approx(clock.wait_seconds / (clock.train_seconds - 3.0), rel=1e-3)
    assert window["tflop_per_second"] == pytest.approx(window["images_per_second"] * 3e9 / 1e12, rel=1e-3)
    assert window["mfu"] == pytest.approx(window["tflop_per_second"], rel=1e-3)
    assert meter.window_steps == 0


def test_what_is_not_known_is_left_out() -> None:
    rates = Throughput(Clock(), "images", samples=10, peak=None).rates(2, 4.0, 1.0)
    assert rates == {"images_per_second": 5.0, "wait_share": 0.25}
    assert device_peak(torch.device("cpu"), 1) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA T4", None),
    ],
)
def test_peaks(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_peak(torch.device("cuda"), 2) == (None if peak is None else 2 * peak)
