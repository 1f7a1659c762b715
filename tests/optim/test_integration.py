"""With the rest of torch: torch.compile, distributed checkpoints, FSDP2 over two processes."""

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness import (
    PATHS,
    assert_same_bits,
    build,
    each_path,
    full_states,
    needs_fsdp2,
    needs_names,
    random,
    tensors_of,
)
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state

import adan_optim
from adan_optim.engine.dtensor import tensor_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*:DeprecationWarning:torch",
    "ignore:.*:FutureWarning:torch",
    "ignore:torch.distributed is (disabled, )?unavailable or uninitialized:UserWarning",
    "ignore:TypedStorage is deprecated:UserWarning",  # torch 2.6
    "ignore:DTensor random operators may not have complete support:UserWarning",  # torch 2.4
)


SPLIT = {"param_rounding": "split", "state_dtype": "float32"}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 5), nn.Linear(5, 1, bias=False)).to(dtype)


def batch(seed, dtype=torch.float32):
    return random((8, 6), np.random.default_rng(seed), dtype)


def train(model, optimizer, seeds, dtype=torch.float32, scheduler=None):
    for seed in seeds:
        optimizer.zero_grad()
        model(batch(seed, dtype)).square().mean().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()


# ---- torch.compile


# the step alone is compiled by one path of each optimizer: the whole step has compiled the rules of all paths
COMPILED = [("whole step", name, path) for name, path in PATHS]
COMPILED += [("optimizer.step", name, path) for name, path in dict(reversed(PATHS)).items()]


@pytest.mark.per_family
@pytest.mark.parametrize(("what", "name", "path"), COMPILED)
def test_a_compiled_training_step_does_not_compile_again(name, path, what):
    """With a learning rate and step counts that change at every step; and it computes the same."""
    torch._dynamo.reset()
    compilations = []

    def backend(module, inputs):
        compilations.append(module)
        return module

    def run(compiled):
        model = network()
        optimizer = build(name, model.parameters(), path, max_grad_norm=0.5)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

        def forward_and_backward(x):
            optimizer.zero_grad()
            model(x).square().mean().backward()

        def whole(x):
            forward_and_backward(x)
            optimizer.step()

        step = optimizer.step
        if compiled:
            whole = torch.compile(whole, backend=backend)
            step = torch.compile(optimizer.step, backend=backend)
        for i in range(12):
            if what == "whole step":
                whole(batch(i))
            else:
                forward_and_backward(batch(i))
                step()
            scheduler.step()
            if i == 2:
                warm = len(compilations)
                torch._dynamo.config.error_on_recompile = True
        torch._dynamo.config.error_on_recompile = False
        assert len(compilations) == (warm if compiled else 0)
        assert compilations or not compiled or what == "optimizer.step"
        return tensors_of(optimizer)

    with torch._dynamo.config.patch(error_on_recompile=False):
        assert_same_bits(run(compiled=False), run(compiled=True))
    torch._dynamo.reset()


# ---- torch.distributed.checkpoint


@pytest.mark.per_family
@each_path
@pytest.mark.parametrize(
    "options", [{}, {"state_dtype": "int8", "min_int8_size": 9}, SPLIT], ids=["plain", "int8", "split"]
)
def test_distributed_checkpoint(name, path, options, tmp_path):
    """Saved by name with get_optimizer_state_dict, read into a fresh optimizer: continues bit for bit."""

    dtype = torch.bfloat16 if options is SPLIT else torch.float32

    def new():
        model = network(dtype)
        groups = [
            {"params": list(model[0].parameters())},
            {"params": list(model[2:].parameters()), "lr": 0.01},
        ]
        return model, build(name, groups, path, max_grad_norm=0.5, **options)

    model, optimizer = new()
    train(model, optimizer, range(3), dtype)
    state = {"model": model.state_dict(), "optimizer": dcp_state.get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=tmp_path)
    train(model, optimizer, range(3, 6), dtype)

    other, fresh = new()
    state = {"model": other.state_dict(), "optimizer": dcp_state.get_optimizer_state_dict(other, fresh)}
    dcp.load(state, checkpoint_id=tmp_path)
    other.load_state_dict(state["model"])
    dcp_state.set_optimizer_state_dict(other, fresh, optim_state_dict=state["optimizer"])
    train(other, fresh, range(3, 6), dtype)
    assert_same_bits(tensors_of(optimizer), tensors_of(fresh))


@needs_names
def test_distributed_checkpoint_of_a_model_with_its_parameters_in_another_order():
    """It matches by name, so the names that the groups have of the saved order mean nothing."""

    def new(*layers):
        model = nn.ModuleDict({name: nn.Linear(3, 3) for name in layers})
        return model, adan_optim.Adan(model.named_parameters())

    def step(model, optimizer):
        model["b"](model["a"](torch.ones(2, 3))).sum().backward()
        optimizer.step()

    model, optimizer = new("a", "b")
    step(model, optimizer)
    other, fresh = new("b", "a")
    saved = dcp_state.get_optimizer_state_dict(model, optimizer)
    dcp_state.set_optimizer_state_dict(other, fresh, optim_state_dict=saved)
    there = dict(model.named_parameters())
    for name, p in other.named_parameters():
        assert_same_bits(fresh.state[p].values(), optimizer.state[there[name]].values())
    assert fresh.param_groups[0]["param_names"] == [name for name, _ in other.named_parameters()]


# ---- DDP


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_gradients_are_not_taken_from_ddps_buckets(tmp_path):
    """Even where a bucket holds one parameter alone; with gradients of their own it works."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        for view in (True, False):
            model = network()
            parallel = nn.parallel.DistributedDataParallel(
                model, gradient_as_bucket_view=view, bucket_cap_mb=1e-5
            )
            optimizer = build("adan", model.parameters(), take_gradients=True)
            if view:
                parallel(batch(0)).sum().backward()
                with pytest.raises(RuntimeError, match="gradient_as_bucket_view=False"):
                    optimizer.step()
                continue
            alone = network()
            plain = build("adan", alone.parameters())
            train(parallel, optimizer, range(4))
            train(alone, plain, range(4))
            assert_same_bits(model.parameters(), alone.parameters())
    finally:
        dist.destroy_process_group()


# ---- FSDP2


def dtype_of(options):
    if "param_rounding" in options:
        return torch.bfloat16
    return torch.float32 if "state_dtype" in options else torch.float64


def worker(rank, port, folder, cases):
    """One of two processes: trains each case sharded, and writes what the parameters and states became."""
    import luck  # noqa: F401 (the same seeds as in the process that compares)
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        results = {}
        for name, path, options in cases:
            dtype = dtype_of(options)
            model = network(dtype)
            mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
            for layer in model:
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            optimizer = build(name, model.parameters(), path, max_grad_norm=0.3, eps=0.05, **options)
            train(model, optimizer, range(3), dtype)
            plan = optimizer._plan
            train(model, optimizer, range(3, 4), dtype)
            is_kept = path == "fused" and "take_gradients" not in options
            assert (plan is not None and optimizer._plan is plan) == is_kept
            # a step that is left out, by both, although only one of them holds the NaN
            optimizer.nonfinite = "skip"
            optimizer.zero_grad()
            before = [p.to_local().clone() for p in model.parameters()]
            model(batch(4, dtype)).square().mean().backward()
            next(model.parameters()).grad.to_local()[0, 0] = float("nan") if rank == 1 else 1.0
            optimizer.step()
            assert_same_bits(before, [p.to_local() for p in model.parameters()])
            # and a checkpoint by name, whose tensors are whole
            whole = dcp_state.StateDictOptions(full_state_dict=True)
            saved = dcp_state.get_optimizer_state_dict(model, optimizer, options=whole)
            exact = adan_optim.exact_params(optimizer)
            results[name, path, str(options)] = [exact[p].full_tensor() for p in model.parameters()]
            if "param_rounding" in options:
                whole_checkpoint_holds(saved, model, exact)
            if rank == 0:
                for n, p in model.named_parameters():
                    held = saved["state"][n]
                    keys = {*full_states(optimizer, p), "pre_grad"} & held.keys()
                    assert keys
                    assert all(held[key].shape == p.shape for key in keys)
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        dist.destroy_process_group()


def whole_checkpoint_holds(saved, model, exact):
    """An optimizer of one process goes on from it. Gloo and NCCL send no int16: see `gatherable`."""
    weights = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    expected = {name: exact[p].full_tensor() for name, p in model.named_parameters()}
    if not saved:  # of another process than the first
        return
    alone = network(torch.bfloat16)
    alone.load_state_dict(weights)
    optimizer = build("adan", alone.named_parameters(), param_rounding="split", state_dtype="float32")
    dcp_state.set_optimizer_state_dict(
        alone, optimizer, saved, options=dcp_state.StateDictOptions(full_state_dict=True)
    )
    ours = adan_optim.exact_params(optimizer)
    assert {optimizer.state[p]["remainder"].dtype for p in alone.parameters()} == {torch.int16}
    assert_same_bits([ours[p] for p in alone.parameters()], expected.values())


def _replace_state(p, state, g):
    state["exp_avg"] = state["exp_avg"] * 2


def _replace_local_state(p, state, g):
    state["exp_avg"]._local_tensor = state["exp_avg"].to_local() * 2


def _replace_local_parameter(p, state, g):
    p._local_tensor = p._local_tensor * 2


def _add_a_state(p, state, g):
    state["foreign"] = torch.ones(1)


def _gradient_on_all(p, state, g):
    dtensors = tensor_module()

    p.grad = g.redistribute(placements=[dtensors.Replicate()])


def _gradient_in_another_order(p, state, g):
    p.grad._local_tensor = g.to_local().t().contiguous().t()


CHANGES = [
    *(_replace_state, _replace_local_state, _replace_local_parameter, _add_a_state, _gradient_on_all),
    _gradient_in_another_order,
]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_a_plan_of_dtensors_is_kept_while_it_holds(tmp_path):
    """What changes between two steps counts in the next, as on the reference path."""
    dtensors = tensor_module()

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))

        def sharded(seed):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
            return dtensors.distribute_tensor(x, mesh, [dtensors.Shard(0)])

        def steps(path, change):
            p = nn.Parameter(sharded(0))
            optimizer, plans = build("adan", [p], path), []
            for seed in range(1, 6):
                p.grad = g = sharded(seed)
                if seed == 4:
                    change(p, optimizer.state[p], g)
                optimizer.step()
                plans.append(optimizer._plan)
            return p.to_local().detach(), plans

        for change in (lambda p, state, g: None, *CHANGES):
            ours, plans = steps("fused", change)
            torch.testing.assert_close(ours, steps("reference", change)[0])
            assert plans[0] is plans[1] is plans[2] is not None
            assert (plans[3] is plans[2]) == (change not in CHANGES), change
    finally:
        dist.destroy_process_group()


@pytest.mark.exhaustive
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@needs_fsdp2
def test_fsdp2(tmp_path):
    """Two processes with half of each parameter each: the norm is the global one, and the result that of one
    process. Odd sizes, so that the halves differ, and a layer with fewer rows than processes."""
    cases = [
        (name, path, {})
        for name, card in adan_optim.CARDS.items()
        for path in card.paths
        if path != "fused" or card.elementwise
    ]
    cases += [("adan", path, {"take_gradients": True}) for path in ("fused", "reference")]
    cases += [("adan", path, {"state_dtype": "bfloat16"}) for path in ("fused", "foreach")]
    cases += [(name, "reference", {"caution": True}) for name in ("adamw", "lamb", "adam_mini", "prodigy")]
    cases += [("adan", path, SPLIT) for path in ("fused", "foreach", "reference")]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # from a process that has imported all this once
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(
        worker, (port, tmp_path, cases), nprocs=2, start_method="forkserver"
    )
    results = torch.load(tmp_path / "results.pt")
    for name, path, options in cases:
        rounded = "state_dtype" in options  # with noise that counts the elements of a shard, or in bfloat16
        dtype = dtype_of(options)
        model = network(dtype)
        optimizer = build(name, model.parameters(), path, max_grad_norm=0.3, eps=0.05, **options)
        train(model, optimizer, range(4), dtype)
        for p, q in zip(
            adan_optim.exact_params(optimizer).values(), results[name, path, str(options)], strict=True
        ):
            tolerance = dict(rtol=0.02, atol=0.002) if rounded else dict(rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(q, p, **tolerance)
