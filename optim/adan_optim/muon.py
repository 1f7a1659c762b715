"""Muon: momentum of hidden matrices made orthogonal (Jordan et al., 2024), and AdamW or Adan for the rest."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .adamw import AdamW
from .adan import Adan
from .base import Optimizer, Options
from .card import Card
from .engine.caution import cautious, cautious_many
from .engine.checks import betas_of, one_of, whole_number
from .engine.dtensor import local, over_processes, placing, share_of, whole
from .engine.matrices import STACK
from .engine.orthogonal import Triple, fast_dtype, newton_schulz, newton_schulz_fast, normalized
from .engine.rule import Group
from .engine.storage import State, States, StateSpec, Tensors
from .hidden import hidden_matrices, is_matrix

# The rules for all other parameters: without parameters of their own.
REST: dict[str, Optimizer] = {cls.card.name: cls.__new__(cls) for cls in (AdamW, Adan)}
REST_OPTIONS = {
    "adamw": dict(betas=(0.9, 0.95), amsgrad=False),
    "adan": dict(betas=(0.98, 0.92, 0.99), no_prox=False),
}

# (a, b, c) of each iteration; the last is repeated. Of Polar Express those of its Algorithm 1, which bring
# singular values from 0.001 on nearest to 1 after each iteration. Its margin of 1 % for rounding is in the
# norm and in the coefficients, except for those that are repeated.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    "jordan": ((3.4445, -4.7750, 2.0315),),
    "polar_express": (
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS[:-1]),
        _POLAR_EXPRESS[-1],
    ),
}
MARGIN = {"jordan": 1.0, "polar_express": 1.01}  # by which the norm is multiplied
SCALES = {
    "jordan": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "moonshot": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "bernstein": lambda rows, columns: math.sqrt(rows / columns),
}


class Muon(Optimizer):
    """Muon for hidden matrices, with half of AdamW's state, and AdamW or Adan for all other parameters.

    With G the gradient of a matrix [rows, columns] at step t = 1, 2, ...::

        M = momentum M + (1 - momentum) G                       momentum_buffer
        U = momentum M + (1 - momentum) G with nesterov, else M
        X = U / |U|                                             the Frobenius norm
        X = a X + (b X X^T + c (X X^T)^2) X                     `iterations` times: Newton-Schulz
        p = (1 - lr weight_decay) p - lr scale X

    The iterations bring the singular values of X near to 1. A parameter of more than two dimensions is the
    matrix [first, all others]. `scaling` names the scale by source: "jordan" sqrt(max(1, rows / columns)),
    "moonshot" 0.2 sqrt(max(rows, columns)), whose steps are as long as AdamW's, so that both have one lr
    (arXiv 2502.16982, section 2.2); "bernstein" sqrt(rows / columns) (arXiv 2409.20325). `coefficients`
    likewise: "jordan" 3.4445, -4.7750, 2.0315 in every iteration; "polar_express" other ones in each, optimal
    for singular values from 0.001 on (arXiv 2505.16932, Algorithm 1, its margin included).

    A group with use_muon=True takes these steps for all its matrices; its vectors (also matrices of one row
    or column) and all parameters of other groups take those of `rest`. `build_optimizer(model, "muon")` makes
    groups by `adan_optim.hidden_matrices(model)`: embeddings and the output layer are no hidden matrices.

    Processes that share parameters (FSDP2) exchange them so that each makes whole matrices of a part of them.

    Source: Keller Jordan's post "Muon: an optimizer for hidden layers in neural networks" (2024).

    Args:
        params: see `adan_optim.base.Optimizer`, also for max_grad_norm, foreach, fused and the options.
        lr: learning rate; with scaling="moonshot" as for AdamW.
        momentum: decay factor of the mean gradient, in [0, 1).
        eps: added to the denominator of the rest's step, after the bias correction.
        weight_decay: decoupled weight decay.
        nesterov: a step is of the momentum one gradient ahead.
        coefficients: of the iterations: "jordan" or "polar_express".
        iterations: how many there are.
        scaling: "moonshot", "jordan" or "bernstein".
        precision: of the iterations: "fast" is bfloat16 where the processor has instructions for it (CUDA,
            AVX512-BF16, AMX); "float32" and "bfloat16" are these everywhere. float64 parameters use float64.
        rest: "adamw" or "adan", for what is no hidden matrix.
        rest_betas: its decay factors; None: (0.9, 0.95) for AdamW, (0.98, 0.92, 0.99) for Adan.
        rest_lr_scale: its learning rate relative to lr, so that a schedule changes both.
        use_muon: False: all parameters of the group take the rest's step.
        stacked: parameters of three and more dimensions are stacks of matrices [..., rows, columns].
        rules: for a model only: hidden matrices in spite of its structure, see `adan_optim.hidden_matrices`.
    """

    card = Card(
        name="muon",
        title="Muon",
        source="Jordan et al. 2024, kellerjordan.github.io/posts/muon; arXiv 2502.16982; torch.optim.Muon",
        when="few steps with half of AdamW's state, for more time in each: language models, transformers",
        states={
            "momentum_buffer": "M, mean of the gradient of a hidden matrix",
            "exp_avg": "of the rest: mean of the gradient",
            "exp_avg_diff": "of the rest with Adan: mean of the gradient difference",
            "exp_avg_sq": "of the rest: mean of its square",
            "neg_pre_grad": "of the rest with Adan: minus the previous gradient",
        },
        betas=0,
        optional=("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"),
        nonnegative=("exp_avg_sq",),
        elementwise=False,
        options={
            "momentum": "decay factor of the mean gradient",
            "nesterov": "Nesterov momentum",
            "coefficients": "of the iterations: 'jordan', 'polar_express'",
            "iterations": "of Newton-Schulz",
            "scaling": "of a step with the matrix: 'moonshot' (as long as AdamW's), 'jordan', 'bernstein'",
            "precision": "of the iterations: 'fast' on the device at hand, 'float32', 'bfloat16'",
            "rest": "the rule for all that is no hidden matrix: 'adamw', 'adan'",
            "rest_betas": "its decay factors",
            "rest_lr_scale": "its learning rate relative to lr",
            "use_muon": "False in a group: all its parameters take the rest's rule",
            "stacked": "parameters of three dimensions are stacks of matrices, as those of experts",
            "rules": "hidden matrices in spite of the structure, for adan_optim.hidden_matrices(model)",
        },
        paths=("foreach", "reference"),
        fused_devices=(),
    )

    resizable = False  # a step depends on all rows
    batches_dtensors = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        momentum: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_grad_norm: float = 0.0,
        nesterov: bool = True,
        coefficients: str = "jordan",
        iterations: int = 5,
        scaling: str = "moonshot",
        precision: str = "fast",
        rest: str = "adamw",
        rest_betas: Sequence[float] | None = None,
        rest_lr_scale: float = 1.0,
        use_muon: bool = True,
        stacked: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        *,
        rules: Mapping[Any, bool] | None = None,
        **options: Unpack[Options],
    ) -> None:
        if rules is not None:
            raise TypeError('rules needs the model: use adan_optim.build_optimizer(model, "muon", rules=...)')
        hyper: Group = dict(lr=lr, momentum=momentum, eps=eps, weight_decay=weight_decay, nesterov=nesterov)
        hyper |= dict(coefficients=coefficients, iterations=iterations, scaling=scaling, precision=precision)
        hyper |= dict(rest=rest, rest_betas=rest_betas, rest_lr_scale=rest_lr_scale)
        hyper |= dict(use_muon=use_muon, stacked=stacked)
        super().__init__(params, hyper, max_grad_norm=max_grad_norm, foreach=foreach, fused=fused, **options)

    @classmethod
    def of_model(cls, model: nn.Module, groups: list[Group], **options: Any) -> Optimizer:
        found = hidden_matrices(model, rules=options.pop("rules", None))
        kinds = {entry.param: (entry.is_hidden, entry.is_stack) for entry in found.values()}
        names = {(True, False): "hidden", (True, True): "stacks", (False, False): "rest"}
        split: list[Group] = []
        for group in groups:
            for (is_hidden, is_stack), name in names.items():
                if params := [p for p in group["params"] if kinds[p] == (is_hidden, is_stack)]:
                    own = dict(params=params, use_muon=is_hidden, stacked=is_stack)
                    split.append({**group, **own, "name": f"{group['name']}_{name}"})
        return cls(split, **options)

    def check_options(self, group: Group) -> None:
        if group["momentum"] >= 1:
            raise ValueError(f"momentum={group['momentum']}: must be in [0, 1)")
        one_of("coefficients", group["coefficients"], tuple(COEFFICIENTS))
        one_of("scaling", group["scaling"], tuple(SCALES))
        one_of("precision", group["precision"], ("fast", "float32", "bfloat16"))
        one_of("rest", group["rest"], tuple(REST))
        whole_number("iterations", group["iterations"])
        if (betas := group["rest_betas"]) is not None:
            rest = group["rest"]
            group["rest_betas"] = betas_of(REST[rest].card, betas, REST_OPTIONS[rest]["betas"], "rest_betas")

    @property
    def description(self) -> str:
        """The paths in use, and how many parameters take which rule."""
        counts: dict[str, int] = defaultdict(int)
        for group in self.param_groups:
            for p in group["params"]:
                rule = self if self._is_matrix(p, group) else REST[group["rest"]]
                counts[rule.card.title] += 1
        rules = ", ".join(f"{title} for {count}" for title, count in counts.items())
        return f"{super().description}: {rules} parameters"

    def _is_matrix(self, p: Tensor, group: Group) -> bool:
        return group["use_muon"] and is_matrix(p.shape, group["stacked"])

    def is_elementwise(self, p: Tensor, group: Group) -> bool:
        return not (group["caution"] or self._is_matrix(p, group))

    def state_spec(self, p: Tensor, group: Group) -> StateSpec:
        if self._is_matrix(p, group):
            return StateSpec(("momentum_buffer",))
        return REST[group["rest"]].state_spec(p, _rest_options(group))

    def check_state(self, where: str, p: Tensor, state: State, group: Group) -> None:
        missing = set(self.state_spec(p, group).full) - state.keys()
        if missing and state.keys() & self.card.states.keys():
            raise ValueError(
                f"{where} has the states of another rule, without {', '.join(sorted(missing))}: leave "
                "use_muon, stacked and rest as they were"
            )
        super().check_state(where, p, state, group)

    def load_foreign_state(self, state: dict[str, Any]) -> None:
        """torch's has no step count; the rule of matrices does not use it."""
        if "momentum_buffer" in state:
            state.setdefault("step", 0)

    def single_tensor(self, p: Tensor, g: Tensor, state: State, t: float, group: Group) -> None:
        if "momentum_buffer" not in state:
            REST[group["rest"]].single_tensor(p, g, state, t, _rest_options(group))
            return
        lr, momentum, m = float(group["lr"]), group["momentum"], state["momentum_buffer"]
        m.mul_(momentum).add_(g, alpha=1 - momentum)
        u = momentum * m + (1 - momentum) * g if group["nesterov"] else m
        x = _as_matrices(whole(u)[None], group)
        x = normalized(x.to(_precision(x, group)), MARGIN[group["coefficients"]])
        x = newton_schulz(x, _coefficients(group)).to(g.dtype).reshape(p.shape)
        u = cautious(share_of(p, x), g, group)
        p.mul_(1 - lr * group["weight_decay"]).sub_(u, alpha=lr * _scale(p, group))

    def multi_tensor(self, p: Tensors, g: Tensors, state: States, t: list[float], group: Group) -> None:
        if "momentum_buffer" not in state:
            REST[group["rest"]].multi_tensor(p, g, state, t, _rest_options(group))
            return
        lr, momentum, owners = float(group["lr"]), group["momentum"], p
        p, g, m = ([local(x) for x in tensors] for tensors in (p, g, state["momentum_buffer"]))
        torch._foreach_lerp_(m, g, 1 - momentum)
        torch._foreach_mul_(p, 1 - lr * group["weight_decay"])

        def orthogonal(u: Tensor) -> Tensor:  # [count, *shape]
            x = normalized(_as_matrices(u, group), MARGIN[group["coefficients"]])
            return newton_schulz_fast(x, _coefficients(group)).view(u.shape)

        for indices in _stacks(owners):
            owner, rows = owners[indices[0]], [(g[i], m[i]) for i in indices]
            u = [torch.lerp(gi, mi, momentum) if group["nesterov"] else mi for gi, mi in rows]
            dtype = _precision(owner, group)
            steps = over_processes(owner, [x.to(dtype) for x in u], orthogonal)
            steps = cautious_many(list(steps), [g[i] for i in indices], group)
            for i, step in zip(indices, steps, strict=True):
                p[i].sub_(step, alpha=lr * _scale(owner, group))


def _rest_options(group: Group) -> Group:
    """The group as the rest's rule expects it."""
    own = REST_OPTIONS[group["rest"]]
    return {
        **own,
        **group,
        "betas": group["rest_betas"] or own["betas"],
        "lr": group["lr"] * group["rest_lr_scale"],
    }


def _coefficients(group: Group) -> list[Triple]:
    """(a, b, c) of each iteration."""
    known = COEFFICIENTS[group["coefficients"]]
    return [known[min(i, len(known) - 1)] for i in range(group["iterations"])]


def _scale(p: Tensor, group: Group) -> float:
    """The factor of a step of p, by the sides of its matrices."""
    rows, columns = p.shape[-2:] if group["stacked"] else (p.shape[0], p.numel() // p.shape[0])
    return SCALES[group["scaling"]](rows, columns)


def _precision(x: Tensor, group: Group) -> torch.dtype:
    if x.dtype == torch.float64:
        return x.dtype
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named.get(group["precision"]) or fast_dtype(x)


def _as_matrices(x: Tensor, group: Group) -> Tensor:
    """Reshape parameters [count, ...] to matrices [all, rows, columns]."""
    return x.flatten(0, -3) if group["stacked"] else x.flatten(2)


def _stacks(owners: Tensors) -> list[list[int]]:
    """The indices of parameters that have one shape and placement, in stacks of a bounded size."""
    alike = defaultdict(list)
    for i, p in enumerate(owners):
        alike[p.shape, placing(p)].append(i)
    stacks = []
    for (shape, place), indices in alike.items():
        count = max(1, STACK // math.prod(shape)) * (place[0].size() if place else 1)
        stacks += [indices[i : i + count] for i in range(0, len(indices), count)]
    return stacks
