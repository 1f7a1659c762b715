"""Count the memory of a training step by running it, on fake tensors or for real.

The step runs as in the loop, and a dispatch mode sees every tensor that is created or freed. On fake tensors
(torch's FakeTensorMode: shapes, dtypes and lifetimes, but no memory) this is a prediction, exact to the byte
of a tensor for any model. On real tensors it is a measurement of the same.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32, send_to_device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adan_optim
from repro.train.accelerator import build_optimizer

KINDS = ("parameters", "gradients", "states", "activations", "logits", "workspace")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of amp

# Functions that autocast computes in float32 on CUDA but not on the CPU, as far as models call them: see
# AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE in ATen/autocast_mode.h.
FLOAT32 = {
    *(torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.reciprocal, Tensor.reciprocal),
    *(torch.exp, Tensor.exp, torch.log, Tensor.log, torch.softmax, Tensor.softmax, nn.functional.softmax),
    *(torch.log_softmax, Tensor.log_softmax, nn.functional.log_softmax, torch.logsumexp, Tensor.logsumexp),
    *(torch.sum, Tensor.sum, torch.prod, torch.cumsum, Tensor.cumsum, torch.norm, Tensor.norm),
    *(nn.functional.layer_norm, nn.functional.rms_norm, nn.functional.group_norm, nn.functional.softplus),
    *(nn.functional.cross_entropy, nn.functional.nll_loss, nn.functional.mse_loss, nn.functional.l1_loss),
    *(nn.functional.binary_cross_entropy_with_logits, nn.functional.kl_div, nn.functional.smooth_l1_loss),
}


@dataclass
class Step:
    """A training step of one process.

    Attributes:
        model: on the CPU, real or fake.
        loss: function of the model and a batch that returns a scalar.
        batch: the tensors of a micro-batch.
        micro_batches: number in the step; more than two need no more memory than two.
        amp: no | bf16 | fp16.
        clip: whether the norm of the gradients is clipped.
        classes: last dimension of the logits, by which they are recognised.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    batch: Any
    micro_batches: int = 1
    amp: str = "no"
    clip: bool = False
    classes: int | None = None


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of live tensors by kind: `now`, and at the `peak` of their sum.

    Args:
        classes: new tensors with this last dimension are logits.
        shares: by kind, the share of the bytes that one process holds (default: 1).
    """

    def __init__(self, classes: int | None = None, shares: dict[str, float] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.classes, self.shares = classes, shares or {}
        self.phase = "workspace"  # kind of new tensors: activations in a forward pass
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.held: dict[int, tuple[str, int]] = {}  # by storage: kind and bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the tensors that it creates."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.held:
                logits = x.dim() > 1 and x.shape[-1] == self.classes
                self.mark(x, "logits" if logits else self.phase)
        return result

    def mark(self, x: Tensor, kind: str) -> None:
        """Count the storage of a tensor (any shape) under a kind from now on."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            weakref.finalize(storage, self._free, key).atexit = False
        else:
            self._subtract(key)
        size = int(storage.nbytes() * self.shares.get(kind, 1))
        self.held[key] = kind, size
        self.now[kind] += size
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def _subtract(self, key: int) -> None:
        kind, size = self.held.pop(key)
        self.now[kind] -= size

    def _free(self, key: int) -> None:
        if key in self.held:
            self._subtract(key)


class Pretence(TorchFunctionMode):
    """Make a step on fake CPU tensors create the same tensors as a real one.

    Grouped matrix products get a substitute that fake tensors of all dtypes support and that saves the same
    tensors. With `gpu`, autocast computes more functions in float32, attention saves nothing for its dropout,
    and other dropout saves one byte per element.
    """

    def __init__(self, gpu: bool) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function or its substitute."""
        kwargs = kwargs or {}
        if func is torch._grouped_mm:
            return torch.ops.transformers.grouped_mm_fallback(*args[:2], kwargs["offs"])
        if not self.gpu:
            return func(*args, **kwargs)
        if func is nn.functional.dropout:
            return _dropout(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return func(*args[:4], **{**kwargs, "dropout_p": 0.0})
        if func in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_float(x) for x in args)
            kwargs = {key: _float(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, training)[0] if training and p else x


def _float(x: Any) -> Any:
    lower = isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if lower else x


def run(step: Step, live: Live) -> None:
    """Run a training step as the loop does, up to the optimizer's step."""
    forward, dtype = step.model.forward, DTYPES.get(step.amp)
    if dtype is not None:  # accelerate wraps a model like this
        cast = torch.autocast(step.batch[0].device.type, dtype)
        step.model.forward = convert_outputs_to_fp32(cast(forward))
    try:
        for _ in range(step.micro_batches):
            live.phase = "activations"
            loss = step.loss(step.model, step.batch)
            live.phase = "workspace"
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
    finally:
        step.model.forward = forward
    if step.clip:
        torch.nn.utils.clip_grad_norm_(step.model.parameters(), 1.0)


@contextmanager
def counting(step: Step, live: Live) -> Iterator[None]:
    """Count parameters, buffers and the batch, and every tensor that is created in this block."""
    for x in [*step.model.parameters(), *step.model.buffers()]:
        live.mark(x, "parameters")
    for x in tree_leaves(step.batch):
        live.mark(x, "activations")
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: live.mark(p.grad, "gradients"))  # type: ignore
        for p in step.model.parameters()
        if p.requires_grad
    ]
    try:
        with live:
            yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class States:
    """Bytes of the states of an optimizer."""

    sharded: int = 0  # those that FSDP shards with their parameters
    whole: int = 0  # the others
    by_name: dict[str, int] = field(default_factory=dict)


def states(model: nn.Module, config: dict[str, Any]) -> States:
    """Return the bytes of the states of an optimizer after a step.

    Args:
        model: on the meta device; its gradients are cleared.
        config: see `adan_optim.build_optimizer`.

    Raises:
        UserError: the optimizer is unknown, or an option is invalid.
    """
    optimizer = build_optimizer(model, config)
    for p in model.parameters():
        p.grad = torch.empty_like(p) if p.requires_grad else None
    optimizer.step()
    by_name = adan_optim.state_bytes(optimizer)
    small = {"step"} | set(getattr(getattr(optimizer, "card", None), "small", {}))
    whole = sum(size for name, size in by_name.items() if name in small)
    for p in model.parameters():
        p.grad = None
    return States(sum(by_name.values()) - whole, whole, by_name)


def predict(build: Callable[[], Step], shares: dict[str, float], gpu: bool) -> Counter[str]:
    """Return the bytes of a step at their peak, by kind, without the optimizer's states.

    Args:
        build: makes the step; called while tensors are fake.
        shares: see `Live`.
        gpu: predict for a GPU instead of a CPU.
    """
    with FakeTensorMode():
        step = build()
        live = Live(step.classes, shares)
        pretence = Pretence(gpu)
        if getattr(step.model, "is_activation_checkpointing", False):  # as the recomputation leaves the mode
            again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), pretence)}
            step.model.activation_checkpointing_enable(again)  # type: ignore[operator]
        with pretence, counting(step, live):
            run(step, live)
    return live.peak


def materialise(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Move a model from the meta device to the CPU, uninitialised; tied weights stay tied.

    Args:
        dtype: of the parameters; None: unchanged.
    """
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            for name, x in slots.items():
                if x is not None and x not in made:
                    new = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
                    if isinstance(x, nn.Parameter):
                        new = nn.Parameter(new.to(dtype or x.dtype), x.requires_grad)
                    made[x] = new
                slots[name] = None if x is None else made[x]  # type: ignore[assignment]
    return model


@dataclass
class Measured:
    """Bytes at the peak of some training steps.

    Attributes:
        kinds: of tensors, as `predict` counts them.
        memory: growth of the process (resident set), or the bytes in torch's allocator on a GPU.
    """

    kinds: Counter[str]
    memory: int


def measure(build: Callable[[], Step], optimizer: dict[str, Any], steps: int = 2) -> Measured:
    """Measure the memory of some real training steps, in a process that does nothing else.

    Args:
        build: makes the step on the CPU; it is moved to a GPU if there is one.
        optimizer: see `adan_optim.build_optimizer`.
        steps: at least two, as the first one creates the states.
    """
    on_gpu = torch.cuda.is_available()
    begin = resident(reset_peak=True)
    step = build()
    if on_gpu:
        step.model.cuda()
        step.batch = send_to_device(step.batch, torch.device("cuda"))
    made = build_optimizer(step.model, optimizer)
    live = Live(step.classes)
    with counting(step, live):
        for _ in range(steps):
            run(step, live)
            made.step()
            for state in made.state.values():
                for x in state.values():
                    if isinstance(x, Tensor):
                        live.mark(x, "states")
            made.zero_grad()
    memory = torch.cuda.max_memory_allocated() if on_gpu else resident(peak=True) - begin
    return Measured(live.peak, memory)


def resident(peak: bool = False, reset_peak: bool = False) -> int:
    """Return the resident bytes of this process, now or at their peak since it was last reset."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc
    name = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
