"""Monitor training, cheaply enough to leave it on: norms, update ratios, states, memory."""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ..engine.checks import whole_number
from . import report as monitor_report
from .readings import Sample, StepReadings
from .statistics import Summary

NESTED = ("groups", "parameters", "memory")  # entries of a sample that are dicts


class Monitor:
    """Sample an optimizer's steps through its hooks; the training loop does not change.

    The first step and every `every`-th are sampled, with one transfer from the device. Training stays
    bit-identical. With DTensor parameters, norms are those of the whole model: every process then needs a
    monitor (and only one of them a path).

    Args:
        optimizer: any torch.optim.Optimizer with its own hooks (not a wrapper around another).
        model: gives the parameters their names; otherwise they are the names given to the optimizer, or
            "group.index".
        every: steps from one sample to the next.
        path: a file to append the samples to, one JSON object per line. Samples that it already has are read,
            so that a report covers the whole run.
        step: optimizer steps done before; samples in the file after that step are dropped. None continues
            after the file's last sample.
        history: number of samples to keep in memory, for the model and its groups.
        max_grad_norm: the threshold, if the loop clips before the step; an optimizer that clips by itself has
            its own.
        update_ratio: whether to compare parameters before and after the step; a sampled step then holds a
            copy of them.
        per_parameter: whether samples include each parameter.
        run: a wandb run, or any object with its `log(numbers, step=)`.

    Attributes:
        step: steps so far, including those done before.
        last: the newest sample, or None. docs/monitor.md describes its entries.
        samples: the newest `history` samples, without the parameters.
        events: (step, description) of the first samples with numbers that are not finite.

    Raises:
        TypeError, ValueError, OSError: for an invalid argument, or a path that cannot be written.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
        *,
        every: int = 50,
        path: str | Path | None = None,
        step: int | None = None,
        history: int = 1000,
        max_grad_norm: float | None = None,
        update_ratio: bool = True,
        per_parameter: bool = True,
        run: Any = None,
    ) -> None:
        name = type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer is a {name}: give a torch.optim.Optimizer")
        if not getattr(type(optimizer).step, "hooked", False):
            raise TypeError(f"the step of {name} runs no hooks: give the optimizer inside it")
        for key, value, low in (("every", every, 1), ("history", history, 1), ("step", step, 0)):
            if value is not None or key != "step":
                whole_number(key, value, low)
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={max_grad_norm}: give a number above 0, or None")
        if run is not None and not callable(getattr(run, "log", None)):
            raise TypeError(f"run={run!r}: give a wandb run, what wandb.init() returns")
        self.optimizer, self.every, self.run = optimizer, every, run
        self.update_ratio, self.per_parameter, self.max_grad_norm = update_ratio, per_parameter, max_grad_norm
        self.step = step or 0
        self.last: Sample | None = None
        self.samples: deque[Sample] = deque(maxlen=history)
        self.events: list[tuple[int, str]] = []
        self.nonfinite_samples = 0
        self._names = {id(p): name for name, p in model.named_parameters()} if model is not None else {}
        self.summaries: dict[tuple[str, str, str], Summary] = defaultdict(Summary)
        self._metrics: dict[str, Any] = {}
        self._seen: StepReadings | None = None
        self._path = None if path is None else Path(path)
        if self._path is not None:
            _take_over(self._path, step, self._take)
        if step is None and self.samples:
            self.step = self.samples[-1]["step"]
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def record(self, **metrics: Any) -> None:
        """Add numbers to the next sample: `monitor.record(loss=loss)`, before the step.

        Calling it every step costs nothing: of a one-element tensor, on any device, only a reference is kept.
        A `grad_norm` given here, such as the result of clip_grad_norm_, replaces the norm of the gradients
        that the optimizer gets.

        Raises:
            ValueError, TypeError: for a name with another meaning, or a value that is not one number.
        """
        for name, value in metrics.items():
            if name in ("step", "time", *NESTED):
                raise ValueError(f"{name} has another meaning in a sample: record it by another name")
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: record one number")
                value = value.detach()
            elif not isinstance(value, Real):
                raise TypeError(f"{name}={value!r}: record a number or a tensor of one")
            self._metrics[name] = value

    def summary(self, quantity: str, *, group: str | None = None, parameter: str | None = None) -> Summary:
        """Return statistics of a quantity ("loss", "grad_norm") of the model, a group or a parameter.

        Raises:
            KeyError: if there is no sample of it.
        """
        kind, name = ("parameters", parameter) if parameter is not None else ("groups", group)
        key = ("", "", quantity) if name is None else (kind, name, quantity)
        if key not in self.summaries:
            raise KeyError(f"no sample of {quantity!r}" + ("" if name is None else f" for {name!r}"))
        return self.summaries[key]

    def close(self) -> None:
        """Remove the hooks from the optimizer; samples and report stay available."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- a sample

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.step += 1
        self._seen = None
        if self.step % self.every and self.step != 1:
            return None
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
            return None  # a graph cannot ask the host
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._look()
            return None

        def evaluate() -> Any:
            loss = closure()
            if self._seen is None:
                self._look()  # only now do the gradients belong to this step
            return loss

        return (args[0], evaluate, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    @_disable_dynamo
    @torch.no_grad()
    def _look(self) -> None:
        self._seen = StepReadings(self.optimizer, self.update_ratio)

    def _after_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._seen is not None:
            self._finish(self._seen)

    @_disable_dynamo
    @torch.no_grad()
    def _finish(self, seen: StepReadings) -> None:
        sample = seen.finish(self.step, self._metrics, self._names)
        if (threshold := self.threshold) and (norm := sample.get("grad_norm")) is not None:
            outside = self.max_grad_norm is not None and "grad_norm" not in self._metrics
            # If the loop clipped, the norm is the threshold, or a little less due to clip_grad_norm_'s eps.
            sample["clipped"] = int(norm > threshold * (0.999 if outside else 1.0))
        if not self.per_parameter:
            del sample["parameters"]
        self._seen, self._metrics = None, {}
        self._take(sample)
        if self._path is not None:
            with self._path.open("ab", buffering=0) as file:  # one write, so that a kill loses only this line
                file.write(json.dumps(sample, allow_nan=False).encode() + b"\n")
        if self.run is not None:
            numbers = {
                "/".join(["monitor", *filter(None, where), key]): value
                for where, key, value in _numbers(sample)
                if where[0] != "parameters"
            }
            self.run.log(numbers, step=self.step)

    @property
    def threshold(self) -> float | None:
        """The gradient norm above which steps are clipped, if known."""
        optimizer: Any = self.optimizer
        own = getattr(optimizer, "max_grad_norm", None) or optimizer.defaults.get("max_grad_norm")
        return self.max_grad_norm if self.max_grad_norm is not None else own or None

    def _take(self, sample: Sample) -> None:
        """Add a sample, new or from the file, to the statistics."""
        self.last = sample
        self.samples.append({key: value for key, value in sample.items() if key != "parameters"})
        for where, quantity, value in _numbers(sample):
            name = (*where, quantity)
            self.summaries[name].add(value)
        if what := monitor_report.not_finite(sample):
            self.nonfinite_samples += 1
            if len(self.events) < 20:
                self.events.append((sample["step"], what))

    # ---- output

    def report(self) -> str:
        """Return a page of text about all samples."""
        return monitor_report.text(self)

    def plot(self, path: str | Path) -> None:
        """Plot the samples in memory as PNG or SVG, by the suffix of the path. Needs matplotlib."""
        monitor_report.plot(self, path)


def _numbers(sample: Sample) -> Iterator[tuple[tuple[str, str], str, Any]]:
    """All numbers of a sample except its memory: (kind, name), quantity, value."""
    for key, value in sample.items():
        if key not in ("step", "time", *NESTED):
            yield ("", ""), key, value
    for kind in ("groups", "parameters"):
        for name, numbers in sample.get(kind, {}).items():
            for key, value in numbers.items():
                yield (kind, name), key, value


def _take_over(path: Path, step: int | None, take: Callable[[Sample], None]) -> None:
    """Prepare a file for appending: take its samples up to a step, and truncate the rest.

    The rest is samples after that step, and a last line that a kill left incomplete.
    """
    begin, end = b'{"step": ', 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not (line.startswith(begin) or begin.startswith(line)):
                    raise ValueError(f"path={str(path)!r} is not a file of samples: give another")
                if not line.endswith(b"\n"):
                    break
                try:
                    sample = json.loads(line)
                    if step is not None and sample["step"] > step:
                        break
                    take(sample)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                    raise ValueError(
                        f"path={str(path)!r}: line {number} is not a sample: repair or delete it"
                    ) from None
                end += len(line)
            file.truncate(end)
    except OSError as error:
        raise type(error)(f"path={str(path)!r}: cannot write there: {error.strerror}") from None
