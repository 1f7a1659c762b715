"""Does every optimizer compute what its paper says? `python benchmarks/conformance.py [--only adan]`.

Runs each implementation that is installed here, ours on every path and those of other packages, and prints
a table for each optimizer. Its first columns are displacement errors, each for a set of options:

    |p - p_definition| / |p_definition - p_start|  after 50 steps

in float64 where the implementation calculates in it. The definition is the float64 NumPy transcription of
the paper that our own tests use (tests/optim). Gradients depend on the parameters, and options are far from
the defaults, so that a wrong term cannot hide: 1e-15 is rounding, 0.1 another algorithm. Above 1e-6 (1e-4 in
float32) a cell FAILs, or, where the package means to differ, is a variant. The other columns:

    late join       a parameter that gets its first gradient at step 6 steps as if it had an optimizer alone
    gradient kept   p.grad is the same after a step, under all of those option sets
    sparse          a sparse gradient is refused with a message that says so, or stepped with rightly
    resume          state_dict after 5 of 10 steps, into a new optimizer: the same bits after 10
    keyword         a misspelt argument is refused: weigth_decay
    group key       so is a misspelt key of a parameter group
    small bf16      bfloat16 ones, gradient 1, 400 steps of 0.0001 each: moves by 0.04, to 10 %, with the best
                    options that it has for bfloat16
    compiled        torch.compile(optimizer.step) compiles nothing more after 6 steps
    complex         a complex parameter is refused, or stepped as its real and imaginary parts are
    tensor lr       lr may be a tensor
    weights_only    torch.load(..., weights_only=True) reads a saved state_dict
    old checkpoint  a state_dict without one of the constructor's flags (each in turn), as one from before it
                    is, loads and steps as with the flag's default

Every cell is a check that ran just now. "-" is not applicable, with the reason below the table.
"""

import copy
import importlib.util
import inspect
import io
import itertools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

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
from repro.results import bullets, page, publish, table
from repro.train.cli import command_line, exit_status
from repro.train.run_folder import refuse_foreign_page

ROOT = Path(__file__).resolve().parent.parent
STEPS = 50
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}

# ---- the options


def option_sets(plain: Options, **changes: Options) -> dict[str, Options]:
    """Option sets by name, the changes upon the plain ones; underscores in names become spaces."""
    small_eps = {"eps": min(plain["eps"], 1e-10)} if isinstance(plain.get("eps"), float) else {}
    every = {
        "plain": {},
        **{name.replace("_", " "): change for name, change in changes.items()},
        "clipping": {"max_grad_norm": 1.5, **small_eps},  # some add eps to the norm, some do not
        "maximize": {"maximize": True},
    }
    return {name: {**plain, **change} for name, change in every.items()}


MOMENTS = dict(lr=0.05, betas=(0.7, 0.8), eps=0.05, weight_decay=0.0)
DECAYED = {"weight_decay": 0.4}
OPTIONS: dict[str, dict[str, Options]] = {
    "adan": option_sets(
        dict(lr=0.05, betas=(0.7, 0.6, 0.8), eps=0.05, weight_decay=0.0, no_prox=False),
        proximal_decay=DECAYED,
        decoupled_decay={**DECAYED, "no_prox": True},
    ),
    "adam": option_sets(MOMENTS, weight_decay=DECAYED),
    "adamw": option_sets(MOMENTS, weight_decay=DECAYED),
    "lamb": option_sets(MOMENTS, weight_decay=DECAYED, trust_clip={"trust_clip": True}),
    "adam_mini": option_sets(MOMENTS, weight_decay=DECAYED),
    "lars": option_sets(
        dict(lr=0.3, momentum=0.6, trust_coefficient=0.05, weight_decay=0.0, nesterov=False, eps=0.0)
        | {"always_adapt": True},
        weight_decay=DECAYED,
        nesterov={"nesterov": True},
    ),
    "lion": option_sets(dict(lr=0.05, betas=(0.7, 0.8), weight_decay=0.0), weight_decay=DECAYED),
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
}

# ---- the problem and the definitions


class Problem:
    """Gradients that depend on the parameter and on the step; the same for everyone.

    Attributes:
        start: arrays of parameters, two matrices and a vector, of numbers that float32 can hold.
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.start = [
            random.standard_normal(shape).astype("f4").astype("f8") for shape in ((8, 6), (7,), (5, 9))
        ]
        self.target = [random.standard_normal(x.shape) for x in self.start]

    def gradient(self, i: int, p: np.ndarray, t: int) -> np.ndarray:
        """Of the i-th parameter, at step t = 1, 2, ..."""
        noise = np.random.default_rng((i, t)).standard_normal(p.shape)
        return 0.3 * (p - self.target[i]) + 0.5 * np.cos(2 * p) + noise

    def parameters(self, implementation: Implementation) -> list[nn.Parameter]:
        """Parameters at the start."""
        dtype, device = implementation.dtype, implementation.device
        return [nn.Parameter(torch.tensor(x, dtype=dtype, device=device)) for x in self.start]

    def assign(
        self, params: Sequence[nn.Parameter], t: int, indices: Sequence[int] = (0, 1, 2), sign: float = 1
    ) -> None:
        """Gives the parameters, which have these indices, their gradients."""
        for i, p in zip(indices, params, strict=True):
            gradient = sign * self.gradient(i, numbers(p), t)
            p.grad = torch.tensor(gradient, dtype=p.dtype, device=p.device)


PROBLEM = Problem()


def numbers(p: torch.Tensor) -> np.ndarray:
    """The tensor as a float64 array."""
    return p.detach().double().cpu().numpy().copy()


def _load_oracle() -> Any:
    spec = importlib.util.spec_from_file_location("oracle", ROOT / "tests" / "optim" / "oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ORACLE = _load_oracle()


def definition(name: str, start: list[np.ndarray], options: Options) -> Any:
    """The definition of an optimizer over arrays: `step(gradients)` and `params`.

    Raises:
        NotApplicable: if there is none of this name.
        ValueError: if it takes options that are not given, or not those that are.
    """
    try:
        rule = ORACLE.Oracle(name, []).rule
    except KeyError:
        raise NotApplicable("no definition") from None
    options = dict(options)
    clip, maximize = options.pop("max_grad_norm", 0.0), options.pop("maximize", False)
    taken = {key: x for key, x in inspect.signature(rule).parameters.items() if x.kind == x.KEYWORD_ONLY}
    for key, parameter in taken.items():
        if parameter.default is parameter.empty and key not in options:
            raise ValueError(f"the definition of {name} takes {key!r}: give it in OPTIONS")
    for key in options.keys() - taken.keys():
        if options.pop(key):
            raise ValueError(f"the definition of {name} does not know {key!r} of OPTIONS")
    oracle = ORACLE.Oracle(name, [(start, {**options, "maximize": maximize})], clip, 0.0)
    return _SquaredGradients(oracle, ORACLE.DEFINITIONS[name]) if name == "sophia" else oracle


class _SquaredGradients:
    """The definition of Sophia, given the estimates that the class of this name gives the others."""

    def __init__(self, oracle: Any, definition: Any) -> None:
        self.oracle, self.definition = oracle, definition

    @property
    def params(self) -> list[np.ndarray]:
        return self.oracle.params

    def step(self, gradients: list[np.ndarray]) -> None:
        oracle = self.oracle
        for state, hyper, t, g in zip(oracle.states, oracle.hyper, oracle.steps, gradients, strict=True):
            if t % INTERVAL == 0:
                state["hessian"] = self.definition.mean(state["hessian"], g**2, betas=hyper["betas"])
        oracle.step(gradients)


# ---- cells


class Broken(Exception):
    """A check failed: what the cell shows, and why."""

    def __init__(self, shown: str, why: str) -> None:
        super().__init__(shown, why)


@dataclass(frozen=True)
class Cell:
    """The outcome of a check: "pass", "FAIL", "variant", "raises" or "-", what to show and why."""

    verdict: str
    shown: str = ""
    why: str = ""

    def __str__(self) -> str:
        text = {"pass": self.shown or "pass", "variant": f"{self.shown} (variant)", "-": "-"}
        return text.get(self.verdict) or f"**{self.verdict}** {self.shown}".strip()


def judge(check: Callable[..., str | None], *arguments: Any) -> Cell:
    """Runs a check, without a word to the screen: it passes if it returns, and what it returns is shown."""
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
    """The first line of an error."""
    return next(iter(str(error).strip().splitlines()), "without a message")[:100]


def relative(error: float) -> str:
    """The error in few characters."""
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
    """Parameters after steps, and their optimizer."""
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
    """Copies of the parameters after further steps of a new optimizer with this state_dict."""
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    optimizer = implementation.make(copies, options)
    optimizer.load_state_dict(copy.deepcopy(saved))
    walk(copies, optimizer, steps)
    return copies


def distance(
    got: Iterable[nn.Parameter], expected: Iterable[np.ndarray], start: Iterable[np.ndarray]
) -> float:
    """|got - expected| / |expected - start| over all parameters."""
    pairs = [(numbers(p) - x, x - x0) for p, x, x0 in zip(got, expected, start, strict=True)]
    error, moved = (np.sqrt(sum((pair[k] ** 2).sum() for pair in pairs)) for k in (0, 1))
    return float(error / moved)


def require(error: float, implementation: Implementation, what: str) -> str:
    """Return the error in few characters; Broken, for it is off by so much of `what`, if it is too large."""
    if not error <= TOLERANCE[implementation.dtype]:
        raise Broken(relative(error), f"is off by {relative(error)}{what}")
    return relative(error)


def displacement(implementation: Implementation, options: Options) -> str:
    """The error of 50 steps. What is to be maximized is minus what is minimized otherwise."""
    reference = definition(implementation.optimizer, PROBLEM.start, options)
    sign = -1 if options.get("maximize") else 1
    for t in range(1, STEPS + 1):
        reference.step([sign * PROBLEM.gradient(i, p, t) for i, p in enumerate(reference.params)])
    params, _ = advance(implementation, options, range(1, STEPS + 1))
    return require(distance(params, reference.params, PROBLEM.start), implementation, " of the displacement")


def late_join(implementation: Implementation, plain: Options) -> None:
    """A parameter that joins at step 6, and the same parameter alone."""
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
    """Under every option set that it has."""
    changed = []
    for name, options in OPTIONS[implementation.optimizer].items():
        params = PROBLEM.parameters(implementation)
        try:
            optimizer = implementation.make(params, options)
        except NotApplicable:
            continue
        for t in (1, 2):
            PROBLEM.assign(params, t)
            before = [p.grad.clone() for p in params if p.grad is not None]
            optimizer.step()
            kept = all(
                p.grad is not None and torch.equal(p.grad, g) for p, g in zip(params, before, strict=True)
            )
            if not kept and name not in changed:
                changed.append(name)
    if changed:
        raise Broken("", f"changes p.grad ({', '.join(changed)})")


def sparse(implementation: Implementation, plain: Options) -> str:
    """Against the same gradient, dense."""
    embedding = nn.Embedding(10, 4, sparse=True, dtype=implementation.dtype, device=implementation.device)
    dense = nn.Parameter(embedding.weight.detach().clone())
    optimizer = implementation.make([embedding.weight], plain)
    embedding(torch.tensor([1, 3], device=implementation.device)).sum().backward()
    assert embedding.weight.grad is not None
    dense.grad = embedding.weight.grad.to_dense()
    try:
        optimizer.step()
    except Exception as error:  # any, if its message says what is wrong
        if re.search(r"sparse grad", str(error), flags=re.IGNORECASE):
            return "refused"
        what = f"{type(error).__name__}: {message(error)}"
        raise Broken("unclear", f"refuses without saying why ({what})") from None
    implementation.make([dense], plain).step()
    if not torch.allclose(embedding.weight, dense):
        raise Broken("", "accepts a sparse gradient and steps otherwise than with the same one dense")
    return "right"


def resume(implementation: Implementation, plain: Options) -> None:
    """The same bits."""
    straight, _ = advance(implementation, plain, range(1, 11))
    half, optimizer = advance(implementation, plain, range(1, 6))
    resumed = go_on(implementation, plain, half, optimizer.state_dict(), range(6, 11))
    if not all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True)):
        error = distance(resumed, map(numbers, straight), PROBLEM.start)
        raise Broken(relative(error), f"is off by {relative(error)} of the displacement after resuming")


def keyword(implementation: Implementation, plain: Options) -> None:
    """A misspelt argument."""
    try:
        implementation.make(PROBLEM.parameters(implementation), plain, weigth_decay=0.1)
    except (TypeError, ValueError):
        return
    raise Broken("", "swallows an unknown argument (weigth_decay)")


def group_key(implementation: Implementation, plain: Options) -> None:
    """A misspelt key of a group."""
    try:
        implementation.make([{"params": PROBLEM.parameters(implementation), "weigth_decay": 0.1}], plain)
    except (KeyError, TypeError, ValueError):
        return
    raise Broken("", "keeps an unknown key of a group without a word (weigth_decay)")


def small_bf16(implementation: Implementation, plain: Options) -> str:
    """Updates below half a unit in the last place."""

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
    """Frames that dynamo compiles in steps 7 to 12."""
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
    """Against the parameter's real view."""
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
    """Against the same number."""
    lr = torch.tensor(plain["lr"], dtype=implementation.dtype)
    got, _ = advance(implementation, {**plain, "lr": lr}, range(1, 6))
    expected, _ = advance(implementation, plain, range(1, 6))
    require(distance(got, map(numbers, expected), PROBLEM.start), implementation, " with lr as a tensor")


def weights_only(implementation: Implementation, plain: Options) -> None:
    """Saved after two steps."""
    _, optimizer = advance(implementation, plain, (1, 2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def old_checkpoint(implementation: Implementation, plain: Options) -> None:
    """Without each flag of the constructor in turn."""
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
OF_FUNCTIONS = ("keyword", "small bf16")  # what can be asked of a function that keeps nothing


# ---- the runner


def basic(implementation: Implementation) -> Options:
    """The first option set that it has: for the checks that are not about options."""
    for options in OPTIONS[implementation.optimizer].values():
        try:
            implementation.make(PROBLEM.parameters(implementation), options)
        except NotApplicable:
            continue
        return options
    raise NotApplicable("has none of the option sets")


def cell(implementation: Implementation, column: str) -> Cell:
    """One cell: `column` is an option set of the optimizer or a check of the contract."""
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
    """All cells of one row."""
    return {
        column: cell(implementation, column) for column in [*OPTIONS[implementation.optimizer], *CONTRACT]
    }


def section(name: str, rows: dict[str, dict[str, Cell]]) -> list[str]:
    """The parts of the page about an optimizer: its table, and below it what is behind the cells."""
    columns = list(next(iter(rows.values())))
    said: dict[tuple[str, ...], list[str]] = {}  # (what, of whom...) to the columns where it is said
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


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    sections = (
        section(
            name, {row: {key: Cell(**cell) for key, cell in cells.items()} for row, cells in rows.items()}
        )
        for name, rows in result["optimizers"].items()
    )
    not_run = bullets(f"{row}: {reason}" for row, reason in result["not_run"].items())
    return page(
        "Conformance",
        f"{made(result['environment'])} What the columns mean is in "
        "[docs/conformance.md](../../docs/conformance.md): first the error of 50 steps as a part of the "
        "distance walked, by option set, then what else may be expected.",
        *itertools.chain.from_iterable(sections),
        "## Not run",
        not_run or "Everything known was run.",
    )


@exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; the exit status is 1 if a cell of this package is not a pass."""
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), metavar="NAME", default=list(OPTIONS))
    parser.add_argument("--out", type=Path, help="write README.md and conformance.json into this folder")
    options = parser.parse_args(arguments)
    if options.out:
        refuse_foreign_page(options.out / "README.md", "benchmarks/conformance.py")
    known = [each for name in options.only for each in (*ours(), *theirs()) if each.optimizer == name]
    optimizers: dict[str, dict[str, Any]] = {}
    not_run, failed = {}, False
    for implementation in (bar := tqdm(known, unit="implementation")):
        bar.set_postfix_str(f"{implementation.optimizer}, {implementation.label}")
        if implementation.missing:
            not_run[f"{implementation.optimizer}, {implementation.label}"] = implementation.missing
            continue
        cells = run(implementation)
        failed |= not implementation.package and any(
            cell.verdict in ("FAIL", "raises") for cell in cells.values()
        )
        rows = optimizers.setdefault(implementation.optimizer, {})
        rows[implementation.label] = {name: asdict(cell) for name, cell in cells.items()}
    about = machine("cuda" if torch.cuda.is_available() else "cpu", arguments)
    result = {"environment": about, "optimizers": optimizers, "not_run": not_run}
    publish(result, markdown(result), options.out and options.out / "conformance", "README.md")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
