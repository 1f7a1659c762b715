"""`adan_optim.transfer`: closed form, measured noise, measured steps, settings, what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import adan_optim
from adan_optim.transfer.lengths import FILTERS, squared_length
from adan_optim.transfer.noise import Noise, measure

OPTIONS = {
    "adamw": {"betas": (0.9, 0.999)},
    "nadamw": {"betas": (0.9, 0.999)},
    "adan": {"betas": (0.98, 0.92, 0.99)},
    "lion": {"betas": (0.9, 0.99)},
}


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0, 3.82), (0.1, 3.26), (0.2, 2.68), (0.5, 2.08), (1, 1.69), (2, 1.31), (10, 1.02)],
)
def test_the_update_of_adam_over_that_of_adan(ratio: float, expected: float) -> None:
    """Simulated figures from elsewhere, to their digits and a little more."""
    ours, theirs = (squared_length(name, OPTIONS[name], ratio) for name in ("adan", "adamw"))
    assert math.sqrt(theirs / ours) == pytest.approx(expected, rel=0.01)


def test_without_noise_all_steps_are_as_long() -> None:
    for name in FILTERS:
        assert squared_length(name, OPTIONS[name], math.inf) == pytest.approx(1)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", FILTERS)
def test_the_closed_form_is_the_optimizer(name: str, ratio: float) -> None:
    """White noise around a mean that holds still: the optimizer's own update, once its averages are full."""
    rng = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.zeros(20_000))
    optimizer = adan_optim.build_optimizer([p], name, lr=1.0, weight_decay=0.0, betas=OPTIONS[name]["betas"])
    for step in range(500):
        if step == 499:
            before = p.detach().clone()
        p.grad = ratio + torch.randn(p.shape, generator=rng)
        optimizer.step()
    length = float((p.detach() - before).square().mean())
    # the average of squares is itself noisy: Adan's remembers 100 steps
    assert math.sqrt(length) == pytest.approx(math.sqrt(squared_length(name, OPTIONS[name], ratio)), rel=0.03)


def linear(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradient is the mean of the batch."""
    (p,) = model.parameters()
    return (p * batch.mean(0)).sum()


def gradients(number: int, size: int, ratio: float, samples: int = 1) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return [3 * (ratio + torch.randn((samples, size), generator=rng)) for _ in range(number)]


class Weights(nn.Module):
    """A model that is one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(size))


@pytest.mark.parametrize(("ratio", "parts"), [(0.5, 1), (2.0, 1), (0.5, 4)])
def test_the_noise_that_is_measured(ratio: float, parts: int) -> None:
    model = Weights(5000)
    found = measure(model, gradients(24, 5000, ratio), linear, 24, parts)["p"]
    assert found.ratio == pytest.approx(ratio * math.sqrt(parts), rel=0.02)
    assert found.noise == pytest.approx(9 * 5000 / parts, rel=0.02)
    assert found.signal == pytest.approx(9 * 5000 * ratio**2, rel=0.04)
    assert (found.parameters, model.p.grad) == (5000, None)


def test_no_signal_is_no_signal() -> None:
    """The mean of K gradients is not the signal: a Kth of the noise is in its square."""
    assert measure(Weights(5000), gradients(10, 5000, 0.0), linear, 10)["p"].ratio < 0.05
    assert Noise(1.0, 0.0, 1).ratio == math.inf


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_sharded_parameters(tmp_path) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    batches = gradients(8, 600, 0.5)
    plain = measure(Weights(600), batches, linear, 8)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        model = Weights(600)
        model.p = nn.Parameter(distribute_tensor(model.p.detach(), mesh, [Shard(0)]))
        whole = [distribute_tensor(batch, mesh, [Shard(1)]) for batch in batches]
        assert measure(model, whole, linear, 8) == plain
        like = {"name": "adamw", "lr": 0.1}
        both = [adan_optim.transfer(m, b, linear, like, pilot=6, samples=2).factor
                for m, b in ((model, whole), (Weights(600), batches))]  # fmt: skip
        assert both[0] == pytest.approx(both[1])
    finally:
        dist.destroy_process_group()


def regression() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    inputs = torch.randn(300, 32, 8)
    return model, [(x, x[:, :1] + 0.5 * torch.randn(32, 1)) for x in inputs]


def squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def test_the_settings() -> None:
    model, batches = regression()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    like = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
    found = adan_optim.transfer(model, batches, squared, like, steps=3000, pilot=100, warmup=500)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert {*found.noise} == {name for name, _ in model.named_parameters()}
    assert 1 < found.factor < 6
    assert {*found.factors} == {*found.noise}
    assert min(found.factors.values()) <= found.factor <= max(found.factors.values())
    options = found.settings.options
    assert options["lr"] == pytest.approx(0.01 * found.factor, rel=0.01)
    assert (options["betas"], found.settings.warmup) == ((0.98, 0.92, 0.99), 500)
    # a step without gradient shrinks the weights by the same share
    assert 1 / (1 + options["lr"] * options["weight_decay"]) == pytest.approx(1 - 0.01 * 0.1, abs=1e-5)
    adan_optim.build_optimizer(model, found.settings.name, **options)
    text = str(found)
    for word in (*options, "warmup", "6 tensors", "0.01", f"would be {found.closed_form:.2f}"):
        assert word in text


def test_white_noise_gives_the_closed_form() -> None:
    """Steps measured on simulated gradients, and the formula with the noise measured on them."""
    batches = gradients(700, 3000, 0.3)
    found = adan_optim.transfer(Weights(3000), batches, linear, pilot=640, samples=40)
    assert found.closed_form == pytest.approx(2.38, rel=0.03)
    assert found.factor == pytest.approx(2.38, rel=0.03)
    assert found.factors == {"p": found.factor}


def test_a_gradient_that_turns_takes_a_larger_factor() -> None:
    """Of the same signal-to-noise ratio, but its sign changes in each step, as across a narrow valley."""
    steady = gradients(300, 500, 3.0)
    turning = [batch * (-1) ** i for i, batch in enumerate(steady)]
    ahead = adan_optim.transfer(Weights(500), steady, linear, pilot=300, samples=0)
    found = adan_optim.transfer(Weights(500), turning, linear, pilot=300, samples=0)
    assert found.factor > 2 * ahead.factor > 2
    assert (found.noise, found.closed_form) == ({}, None)
    assert "signal-to-noise" not in str(found)


def test_the_factor_is_a_median_over_parameters() -> None:
    """Of three tensors the one with most parameters counts, whatever the others are."""
    model = nn.ParameterList([torch.zeros(10), torch.zeros(1000), torch.zeros(10)])
    noise = gradients(200, 1000, 0.0)

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        first, second, third = model
        return first.sum() + (second * batch.mean(0)).sum() + third.sum()

    found = adan_optim.transfer(model, noise, loss, pilot=200, samples=0)
    assert found.factors["0"] == pytest.approx(1, rel=0.05)  # a constant gradient
    assert found.factor == found.factors["1"] == pytest.approx(3.7, rel=0.1)


def test_there_and_back() -> None:
    model, batches = regression()
    there = adan_optim.transfer(model, batches, squared, {"name": "adamw", "lr": 0.001}, pilot=100)
    like = {"name": "adan", **there.settings.options}
    back = adan_optim.transfer(model, batches, squared, like, "adamw", pilot=100).settings.options
    assert back["lr"] == pytest.approx(0.001, rel=0.1)  # the pilots differ
    assert back["lr"] * back["weight_decay"] == pytest.approx(0.001 * 0.01, rel=0.01)


def test_short_runs_have_shorter_memories() -> None:
    model, batches = regression()
    found = adan_optim.transfer(model, batches, squared, steps=500, pilot=10).settings
    assert found.options["betas"] == (0.92, 0.68, 0.96)
    assert found.warmup == 50  # a tenth of the run
    assert np.isclose((1 - 0.96) * 500, (1 - 0.99) * 2000)
    assert "500 steps are 5.0 times the longest memory" in found.reasons["betas"]
    shortest = adan_optim.transfer(model, batches, squared, steps=20, pilot=10).settings
    assert shortest.options["betas"] == (0.9, 0.6, 0.95)
    given = {"name": "adan", "betas": (0.98, 0.92, 0.99)}
    kept = adan_optim.transfer(model, batches, squared, to=given, steps=20, pilot=10).settings
    assert (kept.options["betas"], kept.reasons["betas"]) == ((0.98, 0.92, 0.99), "as given")


def test_the_pilot_takes_steps_of_several_micro_batches() -> None:
    """It takes micro_batches x pilot + samples batches and no more; with one less, the error says so."""
    model, batches = regression()
    adan_optim.transfer(model, batches[:44], squared, pilot=6, samples=32, micro_batches=2)
    with pytest.raises(ValueError, match="samples=32, but there are 31 batches"):
        adan_optim.transfer(model, batches[:43], squared, pilot=6, samples=32, micro_batches=2)
    with pytest.raises(ValueError, match="pilot=6: the batches ended after step 5"):
        adan_optim.transfer(model, batches[:11], squared, pilot=6, samples=32, micro_batches=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(like="adafactor"), "like='adafactor': use 'adamw'"),
        (dict(to="muon"), "to='muon': use 'adamw'"),
        (dict(like={"name": "adamw", "weight_decy": 1}), "no option 'weight_decy': did you mean"),
        (dict(like={"name": "adamw", "lr": 0.0}), "lr=0.0 of adamw: must be above 0"),
        (dict(like={"lr": 0.1}), "like=None"),
        (dict(pilot=1), "pilot=1"),
        (dict(samples=-1), "samples=-1"),
        (dict(steps=0), "steps=0"),
        (dict(micro_batches=0), "micro_batches=0"),
        (dict(warmup=-1), "warmup=-1"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    model, batches = regression()
    with pytest.raises((ValueError, TypeError), match=message):
        adan_optim.transfer(model, batches, squared, **options)


@pytest.mark.parametrize(
    ("pilot", "message"),
    [
        (3, "the loss of micro-batch 1 is nan: the noise"),
        (9, "the loss is nan at step 4 of the pilot, with adamw"),
    ],
)
def test_a_loss_that_is_not_finite(pilot: int, message: str) -> None:
    """The model is as before, although the pilot has begun."""
    model, batches = regression()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    broken = [*batches[:4], (batches[4][0] * math.inf, batches[4][1]), *batches[5:]]
    with pytest.raises(ValueError, match=message):
        adan_optim.transfer(model, broken, squared, pilot=pilot)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_a_weight_decay_that_leaves_nothing() -> None:
    model, batches = regression()
    like = {"name": "adamw", "lr": 0.01, "weight_decay": 100}
    with pytest.raises(ValueError, match=r"lr=0.01 x weight_decay=100 of adamw: must be below 1"):
        adan_optim.transfer(model, batches, squared, like, pilot=2, samples=0)


def test_a_model_without_gradients() -> None:
    with pytest.raises(ValueError, match="no parameter of Weights has a gradient that is not zero"):
        adan_optim.transfer(Weights(3), gradients(50, 3, 0.0), lambda m, x: 0 * m.p.sum(), pilot=4)
