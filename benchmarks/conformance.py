"""Does every optimizer compute what its paper says? `python benchmarks/conformance.py [--only adan]`.

Runs each implementation that is installed here, ours on every path and those of other packages, and prints
a table for each optimizer. The first columns are displacement errors, each for a set of options:

    |p - p_definition| / |p_definition - p_start|  after 50 steps

in float64 if the implementation supports it. The definition is the float64 NumPy transcription of the paper
that our own tests use (tests/optim). Gradients depend on the parameters, and options are far from the
defaults, so that no wrong term can hide: 1e-15 is rounding, 0.1 another algorithm. Above 1e-6 (1e-4 in
float32) a cell FAILs, or is a variant if the package differs on purpose. The other columns:

    late join       a parameter that gets its first gradient at step 6 steps as if it were alone
    gradient kept   p.grad is the same after a step, under all of those option sets
    sparse          a sparse gradient is refused with a message that says so, or handled correctly
    resume          state_dict after 5 of 10 steps, loaded into a new optimizer: the same bits after 10
    keyword         a misspelt argument is refused: weigth_decay
    group key       a misspelt key of a parameter group is refused
    small bf16      bfloat16 ones, gradient 1, 400 steps of 0.0001 each: they move by 0.04, to 10 %, with the
                    best options for bfloat16
    compiled        torch.compile(optimizer.step) compiles nothing more after 6 steps
    complex         a complex parameter is refused, or stepped as its real and imaginary parts are
    tensor lr       lr may be a tensor
    weights_only    torch.load(..., weights_only=True) reads a saved state_dict
    old checkpoint  a state_dict that lacks one of the constructor's flags (each in turn), as if saved before
                    the flag existed, loads and steps as with the flag's default

Every cell is a check that ran just now. "-" is not applicable, with the reason below the table.

Examples:
    python benchmarks/conformance.py --only adan
    python benchmarks/conformance.py --only lamb muon --out runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from repro.train.cli import command_line


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of an optimizer; default: all")
    parser.add_argument("--out", type=Path, help="write README.md and conformance.json into this folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    read_options()  # --help and mistakes are answered before the imports that take seconds

import contextlib
import copy
import inspect
import io
import itertools
import logging
import runpy
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import adan_optim
from benchmarks.common import machine, made
from benchmarks.conformance_implementations import (
    INTERVAL,
    Implementation,
    NotApplicable,
    Optax,
    Options,
    ours,
    theirs,
)
from repro.errors import UserError
from repro.results import bullets, page, publish, table
from repro.train.cli import exit_status
from repro.train.run_folder import refuse_foreign_page

ROOT = Path(__file__).resolve().parent.parent
STEPS = 50
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}

# ---- the options


def option_sets(plain: Options, **changes: Options) -> dict[str, Options]:
    """Return option sets by name: the plain one, and it with each change. `a_b` becomes "a b"."""
    small_eps = {"eps": min(plain["eps"], 1e-10)} if isinstance(plain.get("eps"), float) else {}
    every = {
        "plain": {},
        **{name.replace("_", " "): change for name, change in changes.items()},
        "clipping": {"max_grad_norm": 1.5, **small_eps},  # some add eps to the norm
        "maximize": {"maximize": True},
    }
    return {name: {**plain, **change} for name, change in every.items()}


def usual(name: str, **more: Any) -> Options:
    """Return lr, betas, eps and weight_decay for one of our optimizers, as far as it has them, and `more`."""
    betas = (0.7, 0.8, 0.9)[: adan_optim.CARDS[name].betas]
    options = dict(lr=0.05, betas=betas, eps=0.05, weight_decay=0.0)
    taken = inspect.signature(adan_optim.OPTIMIZERS[name]).parameters
    return {key: x for key, x in options.items() if key in taken} | more


DECAYED = {"weight_decay": 0.4}
CAUTIOUS = {"caution": True, **DECAYED}  # where others have it, too, and ours on every path
# Those that are not listed have the usual option sets.
OPTIONS: dict[str, dict[str, Options]] = {
    name: option_sets(usual(name), weight_decay=DECAYED) for name in adan_optim.CARDS
} | {
    **{
        name: option_sets(usual(name), weight_decay=DECAYED, caution=CAUTIOUS)
        for name in ("adamw", "nadamw", "lion")
    },
    "adan": option_sets(
        dict(lr=0.05, betas=(0.7, 0.6, 0.8), eps=0.05, weight_decay=0.0, no_prox=False),
        proximal_decay=DECAYED,
        decoupled_decay={**DECAYED, "no_prox": True},
        caution=CAUTIOUS,
    ),
    "ademamix": option_sets(
        usual("ademamix", alpha=3.0),
        weight_decay=DECAYED,
        warm_ups={"alpha_warmup": 40, "beta3_warmup": 40},
    ),
    "mars": option_sets(usual("mars", gamma=0.3), weight_decay=DECAYED, optimize_1d={"optimize_1d": True}),
    "schedule_free_adamw": option_sets(
        usual("schedule_free_adamw"), weight_decay=DECAYED, weights={"warmup_steps": 40, "r": 1.5}
    ),
    "prodigy": option_sets(
        usual("prodigy", lr=0.3, eps=1e-12, d0=0.05, use_bias_correction=False, safeguard_warmup=False),
        weight_decay=DECAYED,
        bias_correction={"use_bias_correction": True},
        safeguard_warmup={"safeguard_warmup": True},
    ),
    "prodigy_adan": option_sets(usual("prodigy_adan", lr=0.3, d0=0.05), weight_decay=DECAYED),
    "lamb": option_sets(usual("lamb"), weight_decay=DECAYED, trust_clip={"trust_clip": True}),
    "lars": option_sets(
        dict(lr=0.3, momentum=0.6, trust_coefficient=0.05, weight_decay=0.0, nesterov=False, eps=0.0)
        | {"always_adapt": True},
        weight_decay=DECAYED,
        nesterov={"nesterov": True},
    ),
    "adafactor": option_sets(
        dict(lr=0.05, clip_threshold=1.0, decay_rate=0.7, beta1=0.0, weight_decay=0.0)
        | dict(eps=1e-30, eps_scale=1e-3, scale_parameter=True, relative_step=False),
        weight_decay=DECAYED,
        unscaled={"scale_parameter": False},
        eps_of_squares={"eps": 0.01},
    ),
    "sophia": option_sets(
        dict(lr=0.05, betas=(0.7, 0.8), rho=0.3, eps=0.05, weight_decay=0.0), weight_decay=DECAYED
    ),
    "shampoo": option_sets(
        dict(lr=0.05, betas=(0.7, 0.8), eps=0.05, weight_decay=0.0, shampoo_beta=0.8, matrix_eps=0.1)
        | dict(exponent=0.4, block_size=4, precondition_frequency=3, start_preconditioning_step=2),
        weight_decay=DECAYED,
    ),
    "muon": option_sets(
        dict(lr=0.05, momentum=0.7, eps=0.05, weight_decay=0.0, nesterov=True, coefficients="jordan")
        | dict(iterations=5, scaling="moonshot", rest="adamw", rest_betas=(0.7, 0.8), rest_lr_scale=1.0)
        | dict(use_muon=True, stacked=False),
        weight_decay=DECAYED,
        no_nesterov={"nesterov": False},
        polar_express={"coefficients": "polar_express"},
        jordan={"scaling": "jordan"},
    ),
    "soap": option_sets(
        dict(lr=0.05, betas=(0.7, 0.8), eps=0.05, weight_decay=0.0, shampoo_beta=0.8, matrix_eps=12.0)
        | dict(block_size=9, precondition_frequency=3),
        weight_decay=DECAYED,
    ),
}

# ---- the problem and the definitions


class Problem:
    """Gradients that depend on the parameter and on the step; the same for all implementations.

    Attributes:
        start: parameters [8, 6], [7] and [5, 9], whose numbers float32 can hold.
        target: what the gradients point away from, of the same shapes.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.start = [
            random.standard_normal(shape).astype("f4").astype("f8") for shape in ((8, 6), (7,), (5, 9))
        ]
        self.target = [random.standard_normal(x.shape) for x in self.start]

    def gradient(self, i: int, p: np.ndarray, t: int) -> np.ndarray:
        """Return the gradient of the i-th parameter, of its shape, at step t = 1, 2, ..."""
        noise = np.random.default_rng((i, t)).standard_normal(p.shape)
        return 0.3 * (p - self.target[i]) + 0.5 * np.cos(2 * p) + noise

    def parameters(self, implementation: Implementation) -> list[nn.Parameter]:
        """Return parameters at the start."""
        dtype, device = implementation.dtype, implementation.device
        return [nn.Parameter(torch.tensor(x, dtype=dtype, device=device)) for x in self.start]

    def assign(
        self, params: Sequence[nn.Parameter], t: int, indices: Sequence[int] = (0, 1, 2), sign: float = 1
    ) -> None:
        """Give the parameters, which have these indices, their gradients."""
        for i, p in zip(indices, params, strict=True):
            gradient = sign * self.gradient(i, numbers(p), t)
            p.grad = torch.tensor(gradient, dtype=p.dtype, device=p.device)


PROBLEM = Problem()
ORACLE: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "optim" / "oracle.py")))


def numbers(p: torch.Tensor) -> np.ndarray:
    """Return a tensor of any shape as a float64 array."""
    return p.detach().double().cpu().numpy().copy()


class SquaredOracle(ORACLE.Oracle):
    """The definition of Sophia with the estimates that `SquaredGradients` gives the implementations."""

    def step(self, gradients: list[np.ndarray]) -> None:
        """Make one step."""
        for state, hyper, t, g in zip(self.states, self.hyper, self.steps, gradients, strict=True):
            if t % INTERVAL == 0:
                mean = ORACLE.DEFINITIONS["sophia"].mean
                state["hessian"] = mean(state["hessian"], g**2, betas=hyper["betas"])
        super().step(gradients)


def definition(name: str, start: list[np.ndarray], options: Options) -> Any:
    """Return the definition of an optimizer over arrays of any shapes: `step(gradients)` and `params`.

    Raises:
        NotApplicable: there is no definition of this name.
        ValueError: it takes options that are not given, or does not take those that are.
    """
    if name not in ORACLE.DEFINITIONS:
        raise NotApplicable("no definition")
    options = dict(options)
    clip, maximize = options.pop("max_grad_norm", 0.0), options.pop("maximize", False)
    parameters = inspect.signature(ORACLE.DEFINITIONS[name].step).parameters
    taken = {key: x for key, x in parameters.items() if x.kind == x.KEYWORD_ONLY}
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and key not in options:
            raise ValueError(f"the definition of {name} takes {key!r}: give it in OPTIONS")
    for key in options.keys() - taken.keys():
        if options.pop(key):
            raise ValueError(f"the definition of {name} does not know {key!r} of OPTIONS")
    oracle = SquaredOracle if name == "sophia" else ORACLE.Oracle
    return oracle(name, [(start, {**options, "maximize": maximize})], clip, 0.0)


# ---- cells


class Broken(Exception):
    """A check failed. Its arguments are what the cell shows, and why."""

    def __init__(self, shown: str, why: str) -> None:
        super().__init__(shown, why)


@dataclass(frozen=True)
class Cell:
    """The outcome of a check; the verdict is "pass", "FAIL", "variant", "raises" or "-"."""

    verdict: str
    shown: str = ""
    why: str = ""

    def __str__(self) -> str:
        text = {"pass": self.shown or "pass", "variant": f"{self.shown} (variant)", "-": "-"}
        return text.get(self.verdict) or f"**{self.verdict}** {self.shown}".strip()


def judge(check: Callable[..., str | None], *arguments: Any) -> Cell:
    """Run a check silently. It passes if it returns; what it returns is shown."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Cell("pass", check(*arguments) or "")
    except NotApplicable as reason:
        return Cell("-", why=str(reason))
    except Broken as broken:
        return Cell("FAIL", *broken.args)
    except Exception as error:  # whatever it raises is the result
        return Cell("raises", type(error).__name__, f"{type(error).__name__}, {message(error)}")
    finally:
        logging.disable(logging.NOTSET)


def message(error: Exception) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).strip().splitlines()), "without a message")[:100]


def relative(error: float) -> str:
    """Return a relative error in few characters."""
    return f"{error:.0e}" if error < 0.001 else f"{error:.2g}"


# ---- the checks


def walk(params: list[nn.Parameter], optimizer: Any, steps: Iterable[int], sign: float = 1) -> None:
    """Make steps, numbered from 1."""
    for t in steps:
        PROBLEM.assign(params, t, sign=sign)
        optimizer.step()


def advance(
    implementation: Implementation, options: Options, steps: Iterable[int] = ()
) -> tuple[list[nn.Parameter], Any]:
    """Return the problem's parameters after steps, and their optimizer."""
    params = PROBLEM.parameters(implementation)
    optimizer = implementation.make(params, options)
    walk(params, optimizer, steps, -1 if options.get("maximize") else 1)
    return params, optimizer


def go_on(
    implementation: Implementation,
    options: Options,
    params: list[nn.Parameter],
    saved: Any,
    steps: Iterable[int],
) -> list[nn.Parameter]:
    """Return copies of parameters after further steps of a new optimizer with this state_dict."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = implementation.make(copies, options)
    optimizer.load_state_dict(copy.deepcopy(saved))
    walk(copies, optimizer, steps)
    return copies


def distance(
    got: Iterable[nn.Parameter], expected: Iterable[np.ndarray], start: Iterable[np.ndarray]
) -> float:
    """Return |got - expected| / |expected - start|, norms over all parameters; each may have any shape."""
    pairs = [(numbers(p) - x, x - x0) for p, x, x0 in zip(got, expected, start, strict=True)]
    error, moved = (np.sqrt(sum((pair[k] ** 2).sum() for pair in pairs)) for k in (0, 1))
    return float(error / moved)


def require(error: float, implementation: Implementation, what: str) -> str:
    """Return the error in few characters.

    Raises:
        Broken: it is too large; `what` says what it is a part of.
    """
    if not error <= TOLERANCE[implementation.dtype]:
        raise Broken(relative(error), f"is off by {relative(error)}{what}")
    return relative(error)


def displacement(implementation: Implementation, options: Options) -> str:
    """Return the error of 50 steps. With `maximize` the gradients have the other sign."""
    reference = definition(implementation.optimizer, PROBLEM.start, options)
    sign = -1 if options.get("maximize") else 1
    for t in range(1, STEPS + 1):
        reference.step([sign * PROBLEM.gradient(i, p, t) for i, p in enumerate(reference.params)])
    params, _ = advance(implementation, options, range(1, STEPS + 1))
    return require(distance(params, reference.params, PROBLEM.start), implementation, " of the displacement")


def late_join(implementation: Implementation, plain: Options) -> None:
    """Compare a parameter that joins at step 6 with the same parameter alone."""
    params, optimizer = advance(implementation, plain)
    alone = PROBLEM.parameters(implementation)[2:]
    other = implementation.make(alone, plain)
    for t in range(1, 12):
        PROBLEM.assign(params, t)
        if t < 6:
            params[2].grad = None
        else:
            PROBLEM.assign(alone, t, indices=[2])
            other.step()
        optimizer.step()
    error = distance(params[2:], [numbers(alone[0])], PROBLEM.start[2:])
    require(error, implementation, " of the displacement of its first six steps")


def gradient_kept(implementation: Implementation, _: Options) -> None:
    """Compare p.grad before and after a step, under every option set that it has."""
    changed: dict[str, None] = {}  # an ordered set
    for name, options in option_sets_of(implementation):
        params, optimizer = advance(implementation, options)
        for t in (1, 2):
            PROBLEM.assign(params, t)
            before = [p.grad.clone() for p in params if p.grad is not None]
            optimizer.step()
            if not all(
                p.grad is not None and torch.equal(p.grad, g) for p, g in zip(params, before, strict=True)
            ):
                changed[name] = None
    if changed:
        raise Broken("", f"changes p.grad ({', '.join(changed)})")


def sparse(implementation: Implementation, plain: Options) -> str:
    """Compare a step with a sparse gradient to one with the same gradient, dense."""
    embedding = nn.Embedding(10, 4, sparse=True, dtype=implementation.dtype, device=implementation.device)
    dense = nn.Parameter(embedding.weight.detach().clone())
    optimizer = implementation.make([embedding.weight], plain)
    embedding(torch.tensor([1, 3], device=implementation.device)).sum().backward()
    assert embedding.weight.grad is not None
    dense.grad = embedding.weight.grad.to_dense()
    try:
        optimizer.step()
    except Exception as error:  # any, if its message says what is wrong
        if "sparse grad" in str(error).lower():
            return "refused"
        what = f"{type(error).__name__}: {message(error)}"
        raise Broken("unclear", f"refuses without saying why ({what})") from None
    implementation.make([dense], plain).step()
    if not torch.allclose(embedding.weight, dense):
        raise Broken("", "accepts a sparse gradient and steps otherwise than with the same one dense")
    return "right"


def resume(implementation: Implementation, plain: Options) -> None:
    """Compare the bits after ten steps with those after a save and a load at the fifth."""
    straight, _ = advance(implementation, plain, range(1, 11))
    half, optimizer = advance(implementation, plain, range(1, 6))
    resumed = go_on(implementation, plain, half, optimizer.state_dict(), range(6, 11))
    if not all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True)):
        error = distance(resumed, map(numbers, straight), PROBLEM.start)
        raise Broken(relative(error), f"is off by {relative(error)} of the displacement after resuming")


def keyword(implementation: Implementation, plain: Options) -> None:
    """Give a misspelt argument."""
    try:
        implementation.make(PROBLEM.parameters(implementation), plain, weigth_decay=0.1)
    except (TypeError, ValueError):
        return
    raise Broken("", "swallows an unknown argument (weigth_decay)")


def group_key(implementation: Implementation, plain: Options) -> None:
    """Give a misspelt key of a group."""
    try:
        implementation.make([{"params": PROBLEM.parameters(implementation), "weigth_decay": 0.1}], plain)
    except (KeyError, TypeError, ValueError):
        return
    raise Broken("", "keeps an unknown key of a group without a word (weigth_decay)")


def small_bf16(implementation: Implementation, plain: Options) -> str:
    """Make updates below half a unit in the last place; return how far the parameter moves."""

    def defined(lr: float) -> float:
        reference = definition(implementation.optimizer, [np.ones((16, 16))], {**plain, "lr": lr})
        for _ in range(400):
            reference.step([np.ones((16, 16))])
        return 1 - float(reference.params[0].mean())

    lr = 1e-4 * 0.04 / defined(1e-4)
    expected = defined(lr)
    p = nn.Parameter(torch.ones(16, 16, dtype=torch.bfloat16, device=implementation.device))
    best = replace(implementation, fixed={**implementation.fixed, **implementation.bfloat16})
    optimizer = best.make([p], {**plain, "lr": lr})
    for _ in range(400):
        p.grad = torch.ones_like(p)
        optimizer.step()
    moved = 1 - float(numbers(p).mean())
    if not abs(moved - expected) <= 0.1 * expected:
        raise Broken(f"{moved:.3f}", f"moves by {moved:.4f} where {expected:.4f} is right")
    return f"{moved:.3f}"


def compiled(implementation: Implementation, plain: Options) -> None:
    """Count the frames that dynamo compiles in steps 7 to 12."""
    torch.compiler.reset()
    params = PROBLEM.parameters(implementation)
    step = torch.compile(implementation.make(params, plain).step, backend="eager")
    frames, counts = torch._dynamo.utils.counters["frames"], []
    with torch._dynamo.config.patch(recompile_limit=64):
        for t in range(1, 13):
            PROBLEM.assign(params, t)
            step()
            counts.append(frames["ok"])
    if new := counts[-1] - counts[5]:
        raise Broken(f"{new}", f"compiles {new} more frames in steps 7 to 12")


def complex_parameter(implementation: Implementation, plain: Options) -> str:
    """Compare a complex parameter with its real view."""
    kind = {torch.float64: torch.complex128, torch.float32: torch.complex64}[implementation.dtype]
    start = torch.complex(torch.arange(6.0), 1 - torch.arange(6.0)).to(implementation.device, kind)
    p, real = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_real(start).clone())
    try:
        optimizer, other = (implementation.make([x], plain) for x in (p, real))
        for t in range(1, 6):
            p.grad = (1 + t * 1j) * p.detach() + t
            real.grad = torch.view_as_real(p.grad).clone()
            optimizer.step()
            other.step()
    except Exception:  # any is a refusal
        return "refused"
    if not torch.allclose(torch.view_as_real(p), real):
        raise Broken("", "accepts complex parameters and steps otherwise than with their real view")
    return "right"


def tensor_lr(implementation: Implementation, plain: Options) -> None:
    """Compare lr as a tensor with the same number."""
    lr = torch.tensor(plain["lr"], dtype=implementation.dtype)
    got, _ = advance(implementation, {**plain, "lr": lr}, range(1, 6))
    expected, _ = advance(implementation, plain, range(1, 6))
    require(distance(got, map(numbers, expected), PROBLEM.start), implementation, " with lr as a tensor")


def weights_only(implementation: Implementation, plain: Options) -> None:
    """Save after two steps, and load."""
    _, optimizer = advance(implementation, plain, (1, 2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def old_checkpoint(implementation: Implementation, plain: Options) -> None:
    """Load without each flag of the constructor in turn."""
    params, optimizer = advance(implementation, plain, (1, 2, 3))
    saved = optimizer.state_dict()
    defaults = {key: x.default for key, x in inspect.signature(implementation.factory).parameters.items()}
    group = saved["param_groups"][0]
    flags = [key for key, x in group.items() if key in defaults and (x is None or isinstance(x, bool))]
    if not flags:
        raise NotApplicable("keeps no flags in its groups")

    def without(flag: str | None) -> list[nn.Parameter]:
        groups = [{k: x for k, x in group.items() if k != flag} for group in saved["param_groups"]]
        return go_on(implementation, plain, params, {**saved, "param_groups": groups}, (4,))

    expected, faults = without(None), []
    for flag in flags:
        try:
            error = distance(without(flag), map(numbers, expected), map(numbers, params))
        except Exception as raised:  # whatever it raises is the result
            faults.append(f"{type(raised).__name__} {message(raised)}")
            continue
        if group[flag] == defaults[flag] and not error <= TOLERANCE[implementation.dtype]:
            faults.append(f"steps otherwise without '{flag}'")
    if faults:
        raise Broken(f"{len(faults)} of {len(flags)}", ", ".join(dict.fromkeys(faults)))


CONTRACT: dict[str, Callable[[Implementation, Options], str | None]] = {
    "late join": late_join,
    "gradient kept": gradient_kept,
    "sparse": sparse,
    "resume": resume,
    "keyword": keyword,
    "group key": group_key,
    "small bf16": small_bf16,
    "compiled": compiled,
    "complex": complex_parameter,
    "tensor lr": tensor_lr,
    "weights_only": weights_only,
    "old checkpoint": old_checkpoint,
}
OF_FUNCTIONS = ("keyword", "small bf16")  # the checks of a function, which keeps no state


# ---- the runner


def option_sets_of(implementation: Implementation) -> Iterator[tuple[str, Options]]:
    """Yield the names and options of the option sets that it has."""
    for name, options in OPTIONS[implementation.optimizer].items():
        with contextlib.suppress(NotApplicable):
            implementation.make(PROBLEM.parameters(implementation), options)
            yield name, options


def basic(implementation: Implementation) -> Options:
    """Return the first option set that it has, for the checks that are not about options.

    Raises:
        NotApplicable: it has none.
    """
    for _, options in option_sets_of(implementation):
        return options
    raise NotApplicable("has none of the option sets")


def cell(implementation: Implementation, column: str) -> Cell:
    """Return one cell; `column` is an option set of the optimizer or a check of the contract."""
    if column in CONTRACT:
        if implementation.build is Optax and column not in OF_FUNCTIONS:
            return Cell("-", why="a function: the caller keeps parameters, gradients and state")
        return judge(lambda: CONTRACT[column](implementation, basic(implementation)))
    outcome = judge(displacement, implementation, OPTIONS[implementation.optimizer][column])
    convention = implementation.variants.get(column) or implementation.variants.get("")
    if outcome.verdict == "FAIL" and convention:
        return replace(outcome, verdict="variant", why=convention)
    return outcome


def run(implementation: Implementation) -> dict[str, Cell]:
    """Return all cells of one row."""
    columns = [*OPTIONS[implementation.optimizer], *CONTRACT]
    return {column: cell(implementation, column) for column in columns}


def section(name: str, rows: dict[str, dict[str, Cell]]) -> list[str]:
    """Return the parts of the page about an optimizer: its table, and the reasons behind its cells."""
    columns = list(next(iter(rows.values())))
    said: dict[tuple[str, ...], list[str]] = {}  # (reason, rows...) to the columns where it is given
    for column in columns:
        whom: dict[str, list[str]] = {}
        for row, cells in rows.items():
            if why := cells[column].why:
                whom.setdefault(why, []).append(row)
        for why, who in whom.items():
            said.setdefault((why, *who), []).append(column)
    return [
        f"## {name}",
        table(
            ["implementation", *columns], ([row, *map(str, cells.values())] for row, cells in rows.items())
        ),
        bullets(f"{', '.join(of)}: {why} ({'; '.join(who)})" for (why, *who), of in said.items()),
    ]


def markdown(
    about: dict[str, Any], optimizers: dict[str, dict[str, dict[str, Cell]]], not_run: dict[str, str]
) -> str:
    """Return the page, from the cells by optimizer, row and column."""
    return page(
        "Conformance",
        f"{made(about)} What the columns mean is in "
        "[docs/conformance.md](../../docs/conformance.md): first the error of 50 steps as a part of the "
        "distance walked, by option set, then what else may be expected.",
        *itertools.chain.from_iterable(section(*each) for each in optimizers.items()),
        "## Not run",
        bullets(f"{row}: {reason}" for row, reason in not_run.items()) or "Everything known was run.",
    )


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status is 1 if a cell of this package is not a pass."""
    options = read_options(arguments)
    if options.out:
        refuse_foreign_page(options.out / "README.md", "conformance.py")
    for name in (only := options.only or list(OPTIONS)):
        if name not in OPTIONS:
            raise UserError(f"--only {name}: is none of {', '.join(OPTIONS)}")
    known = [each for name in only for each in (*ours(), *theirs()) if each.optimizer == name]
    optimizers: dict[str, dict[str, dict[str, Cell]]] = {}
    not_run, failed = {}, False
    for implementation in (bar := tqdm(known, unit="implementation")):
        name, label = implementation.optimizer, implementation.label
        bar.set_postfix_str(f"{name}, {label}")
        if implementation.missing:
            not_run[f"{name}, {label}"] = implementation.missing
            continue
        cells = optimizers.setdefault(name, {})[label] = run(implementation)
        bad = any(cell.verdict in ("FAIL", "raises") for cell in cells.values())
        failed |= bad and not implementation.package
    about = machine("cuda" if torch.cuda.is_available() else "cpu", arguments)
    plain = {
        name: {row: {column: asdict(cell) for column, cell in cells.items()} for row, cells in rows.items()}
        for name, rows in optimizers.items()
    }
    result = {"environment": about, "optimizers": plain, "not_run": not_run}
    text = markdown(about, optimizers, not_run)
    publish(result, text, options.out and options.out / "conformance", "README.md")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
