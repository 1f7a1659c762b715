"""The numbers of one optimizer step, computed on the device and fetched with one transfer per device."""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import Optimizer, state_bytes
from ..engine import storage
from ..engine.dtensor import is_dtensor, local, reduce_over_mesh

Sample = dict[str, Any]


# ---- reductions of n tensors of any shapes, of one device and dtype, to a float tensor [n]


def _work(xs: list[Tensor]) -> torch.dtype:
    return torch.promote_types(xs[0].dtype, torch.float32)


def squares(xs: list[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor: float64 [n]."""
    return torch.stack(list(torch._foreach_norm(xs, 2, dtype=_work(xs)))).double().square()


def largest(xs: list[Tensor]) -> Tensor:
    """Return the largest magnitude in each tensor: [n]; inf for NaN, which further maxima would lose."""
    extremes = torch.stack([x for y in xs for x in y.aminmax()]).view(-1, 2)  # faster than a norm
    return extremes.abs().amax(1).nan_to_num(nan=math.inf, posinf=math.inf)


def sums(xs: list[Tensor]) -> Tensor:
    """Return the sum of each tensor: [n]."""
    return torch.stack([x.sum(dtype=_work(xs)) for x in xs])


def nonfinite(xs: list[Tensor]) -> Tensor:
    """Return the number of elements of each tensor that are inf or NaN: [n]."""
    return torch.stack([(x - x).count_nonzero() for x in xs])  # x - x is 0 or NaN


def plain(x: Tensor) -> Tensor:
    """Return a tensor to reduce with the elements of one that may be a shard, sparse, complex or empty."""
    x = local(x)
    x = x.coalesce().values() if x.is_sparse else x
    x = torch.view_as_real(x) if x.is_complex() else x
    return x if x.numel() else x.new_zeros(1)


class Readings:
    """Numbers that are still on devices.

    A quantity has one number for each of some parameters. For DTensors it is reduced over all shards, so that
    every process gets the number of the whole.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self._columns: list[tuple[str, list[int], Tensor]] = []

    def add(self, name: str, reduce: Callable[[list[Tensor]], Tensor], tensors: dict[int, Tensor]) -> None:
        """Add a quantity of tensors, of any shapes, by the indices of their parameters."""
        buckets: dict[tuple[Any, ...], dict[int, Tensor]] = defaultdict(dict)
        for i, x in tensors.items():
            p: Any = self.params[i]
            x = plain(x)
            spec = (p.device_mesh, p.placements) if is_dtensor(p) else None
            buckets[(x.device, x.dtype, spec)][i] = x
        for (_, _, spec), members in buckets.items():
            numbers = reduce(list(members.values())).double()
            if spec is not None:
                mesh, placements = spec
                numbers = reduce_over_mesh(numbers, mesh, placements, "max" if reduce is largest else "sum")
            self._columns.append((name, list(members), numbers))

    def add_one(self, name: str, x: Tensor) -> None:
        """Add a number that belongs to no parameter; x has one element."""
        self._columns.append((name, [-1], local(x).reshape(1).double()))

    def fetch(self) -> dict[str, dict[int, float]]:
        """Return the numbers by quantity and index of the parameter; -1 for those of no parameter."""
        table: dict[str, dict[int, float]] = defaultdict(dict)
        for device in {numbers.device for _, _, numbers in self._columns}:
            columns = [column for column in self._columns if column[2].device == device]
            values = iter(torch.cat([numbers for _, _, numbers in columns]).tolist())
            for name, rows, _ in columns:
                table[name].update((row, next(values)) for row in rows)
        return table


class StepReadings:
    """Read a step: gradients and weights in the constructor, before the step; the rest in `finish`.

    Args:
        optimizer: the optimizer that is about to step.
        update_ratio: whether to keep a copy of the parameters that have a gradient until `finish`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, update_ratio: bool) -> None:
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.readings = Readings(self.params)
        grads = {i: p.grad for i, p in enumerate(self.params) if p.grad is not None}
        parts = (x._values() if x.is_sparse else x for x in map(local, grads.values()))
        self.gradient_bytes = sum(x.nbytes for x in parts)
        self.readings.add("grad.square", squares, grads)
        self.readings.add("grad.nonfinite", nonfinite, grads)
        self.readings.add("weight.square", squares, dict(enumerate(self.params)))
        if (scale := getattr(optimizer, "grad_scale", None)) is not None:  # set by GradScaler for this step
            self.readings.add_one("loss_scale", scale)
        self.before = {i: local(self.params[i]).detach().clone() for i in grads} if update_ratio else {}

    def finish(self, step: int, metrics: dict[str, Any], names: dict[int, str]) -> Sample:
        """Return the sample, after the step.

        Args:
            step: the step's number.
            metrics: numbers and one-element tensors to put into the sample.
            names: the parameters' names, by id.
        """
        readings, groups = self.readings, self.optimizer.param_groups
        readings.add("weight.nonfinite", nonfinite, dict(enumerate(self.params)))
        if self.before:
            torch._foreach_sub_([*self.before.values()], [local(self.params[i]) for i in self.before])
            readings.add("update.square", squares, self.before)
        states = self._read_states()
        singles = {f"metric.{name}": x for name, x in metrics.items()}
        singles |= {f"lr.{i}": group.get("lr") for i, group in enumerate(groups)}
        for name, x in singles.items():
            if isinstance(x, Tensor):
                readings.add_one(name, x)
        table = readings.fetch()
        singles |= {name: row[-1] for name, row in table.items() if -1 in row}
        scale = singles.get("loss_scale", 1.0)

        sample: Sample = {"step": step, "time": round(time.time(), 3)}
        sample |= self._numbers(table, states, scale, range(len(self.params)))
        sample |= {name: number(float(singles[f"metric.{name}"])) for name in metrics}
        if "loss_scale" in singles:
            sample["loss_scale"] = number(scale)
        sample["groups"], sample["parameters"] = {}, {}
        labels = [str(group.get("name", index)) for index, group in enumerate(groups)]
        begin = 0
        for index, (label, group) in enumerate(zip(labels, groups, strict=True)):
            rows = range(begin, begin := begin + len(group["params"]))
            label = label if labels.count(label) == 1 else f"{index}:{label}"
            lr = singles[f"lr.{index}"]
            head = {} if lr is None else {"lr": number(float(lr))}
            sample["groups"][label] = head | self._numbers(table, states, scale, rows)
            given = group.get("param_names", [f"{index}.{i}" for i in range(len(rows))])
            for row, p, name in zip(rows, group["params"], given, strict=True):
                here = self._numbers(table, states, scale, range(row, row + 1))
                sample["parameters"][names.get(id(p), name)] = here
        sample["memory"] = self._memory()
        return sample

    def _read_states(self) -> list[str]:
        """Add norm, sum and largest magnitude of every state of a parameter's shape; return their names."""
        found: dict[str, dict[int, Tensor]] = defaultdict(dict)
        card = self.optimizer.card if isinstance(self.optimizer, Optimizer) else None

        def read(name: str, tensors: dict[int, Tensor]) -> None:
            for kind, reduce in {"square": squares, "sum": sums, "max": largest}.items():
                self.readings.add(f"{name}.{kind}", reduce, tensors)

        for i, p in enumerate(self.params):
            state = self.optimizer.state.get(p, {})
            for name, x in state.items():
                if not isinstance(x, Tensor) or x.shape != p.shape or name in ("step", "pre_grad_scale"):
                    continue
                if card is not None and x.dtype == torch.uint8:  # decode only one at a time
                    read(name, {i: storage.load(state, name, name not in card.nonnegative)})
                    found.setdefault(name, {})
                elif x.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                    found[name][i] = x
        for name, tensors in found.items():
            read(name, tensors)
        return list(found)

    def _numbers(
        self, table: dict[str, dict[int, float]], states: list[str], scale: float, rows: range
    ) -> dict[str, Any]:
        """The quantities of the parameters `rows` taken together."""

        def total(name: str, of: Any = rows) -> float:
            return sum(table[name][i] for i in of if i in table[name])

        here: dict[str, Any] = {}
        if any(i in table["grad.square"] for i in rows):
            here["grad_norm"] = math.sqrt(total("grad.square")) / scale
            here["grad_nonfinite"] = int(total("grad.nonfinite"))
        here["weight_norm"] = math.sqrt(total("weight.square"))
        here["weight_nonfinite"] = int(total("weight.nonfinite"))
        moved = [i for i in rows if i in table["update.square"]]
        if (weight := total("weight.square", moved)) > 0:
            here["update_ratio"] = math.sqrt(total("update.square") / weight)
        for name in states:
            if held := [i for i in rows if i in table[f"{name}.max"]]:
                here[f"{name}.norm"] = math.sqrt(total(f"{name}.square"))
                count = sum(self.params[i].numel() for i in held)
                here[f"{name}.mean"] = total(f"{name}.sum") / max(count, 1)
                here[f"{name}.max"] = max(table[f"{name}.max"][i] for i in held)
        return {key: number(value) for key, value in here.items()}

    def _memory(self) -> dict[str, Any]:
        """The bytes in this process, by what they are for."""
        devices = {p.device for p in self.params if p.device.type == "cuda"}
        return {
            "parameters": sum(local(p).nbytes for p in self.params),
            "gradients": self.gradient_bytes,
            "states": state_bytes(self.optimizer),
            "peak": sum(map(torch.cuda.max_memory_allocated, devices)) if devices else peak_resident_bytes(),
            "peak_of": "CUDA allocator" if devices else "process, resident",
        }


def number(x: float) -> float | None:
    """Return x with float32's seven digits; None if it is not finite, as JSON has no such numbers."""
    if not math.isfinite(x):
        return None
    return x if isinstance(x, int) else float(f"{x:.7g}")


def peak_resident_bytes() -> int:
    """Return the peak bytes of RAM of this process; 0 if the system does not report it (Windows)."""
    if sys.platform == "win32":
        return 0
    import resource

    # ru_maxrss counts KiB on Linux and bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
