"""The implementations of each optimizer and their names for its options: the data of `conformance.py`.

Options have neutral names, those of this package. An `Implementation` maps them to its own names. An option
without a name there may be off (False, 0, None); otherwise it is `NotApplicable`. `fixed` brings the
implementation to the paper's form if it has options for that. If it differs on purpose and has none,
`variants` says in which option sets and how.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import adan_optim

Options = Mapping[str, Any]
Name = str | Callable[[Any, Options], Options]  # theirs, or a function of the value and of all options
INTERVAL = 3  # steps between Sophia's estimates


class NotApplicable(Exception):
    """The implementation lacks what a check needs; the message says what."""


def plain_call(factory: Callable[..., Any], params: list[Any], arguments: Options) -> Any:
    """Build a torch optimizer."""
    return factory(params, **arguments)


def in_training(factory: Callable[..., Any], params: list[Any], arguments: Options) -> Any:
    """Build a torch optimizer that begins in eval mode, and switch it to training."""
    optimizer = factory(params, **arguments)
    optimizer.train()
    return optimizer


@dataclass(frozen=True)
class Implementation:
    """One way to step one optimizer.

    Attributes:
        package: its name on PyPI; "" for this package.
        optimizer: our name of the optimizer.
        target: import path of the class or function.
        names: its name for each neutral option, or a function that makes arguments from the value and all
            options.
        path: its code path, in words.
        fixed: arguments that choose the path and bring it to the paper's form.
        bfloat16: its best options for bfloat16 parameters.
        variants: by option set ("" is any), a difference that is a convention, not an error.
        dtype: dtype of the comparison: float64, unless it calculates in float32.
        device: where the path runs.
        build: makes the optimizer from target, parameters and arguments.
    """

    package: str
    optimizer: str
    target: str
    names: Mapping[str, Name]
    path: str = ""
    fixed: Options = field(default_factory=dict)
    bfloat16: Options = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    build: Callable[[Callable[..., Any], list[Any], Options], Any] = plain_call

    @property
    def factory(self) -> Callable[..., Any]:
        """Return the class or function."""
        module, _, name = self.target.rpartition(".")
        return getattr(importlib.import_module(module), name)

    @property
    def missing(self) -> str:
        """Return why it cannot run here; empty if it can."""
        if importlib.util.find_spec(self.target.partition(".")[0]) is None:
            return f"not installed: pip install {self.package}"
        if self.device == "cuda" and not torch.cuda.is_available():
            return "torch finds no CUDA device"
        return ""

    @property
    def label(self) -> str:
        """Return package, version and path."""
        try:
            version = metadata.version(self.package or "adan-optim")
        except metadata.PackageNotFoundError:
            version = ""
        who = f"{self.package or 'this package'} {version}".strip()
        return f"{who}, {self.path}" if self.path else who

    def make(self, params: list[Any], options: Options, **extra: Any) -> Any:
        """Return an optimizer over parameters or groups, with neutral options and its own `extra` arguments.

        Raises:
            NotApplicable: it has no name for an option.
        """
        arguments = dict(self.fixed)
        for key, value in options.items():
            name = self.names.get(key)
            if callable(name):
                arguments |= name(value, options)
            elif name is not None:
                arguments[name] = value
            elif value:
                raise NotApplicable(f"has no {key}")
        return self.build(self.factory, params, {**arguments, **extra})


def same(names: str, **others: Name) -> dict[str, Name]:
    """Return the names of options: `names` are the same as ours, `others` differ."""
    return {name: name for name in names.split()} | others


# ---- adapters


class Optax:
    """A gradient transformation of optax with the interface of a torch optimizer."""

    def __init__(self, factory: Callable[..., Any], params: list[Any], arguments: Options) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)
        import optax

        arguments = dict(arguments)
        clip = arguments.pop("clip_by_global_norm", 0)
        rule = factory(**arguments)
        self.rule = optax.chain(optax.clip_by_global_norm(clip), rule) if clip else rule
        self.params = params
        self.values = [_to_jax(p) for p in params]
        self.state = self.rule.init(self.values)

    def step(self) -> None:
        """Make one step; every parameter must have a gradient."""
        import optax

        gradients = [_to_jax(p.grad) for p in self.params]
        updates, self.state = self.rule.update(gradients, self.state, self.values)
        self.values = optax.apply_updates(self.values, updates)
        for p, value in zip(self.params, self.values, strict=True):
            p.data = torch.tensor(value.astype("float64").tolist()).to(p.dtype).reshape(p.shape)


def _to_jax(x: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(x.detach().double().numpy(), dtype=str(x.dtype).removeprefix("torch."))


def of_module(factory: Callable[..., Any], params: list[Any], arguments: Options) -> Any:
    """Build an optimizer that takes a model and looks at its names, which say nothing here."""
    if any(isinstance(p, dict) for p in params):
        raise NotApplicable("makes its groups itself, from a model")
    module = nn.Module()
    for i, p in enumerate(params):
        module.register_parameter(f"block{i}", p)
    return factory(module, **arguments)


class SquaredGradients:
    """A Sophia that gets the squared gradient as its Hessian estimate in every INTERVAL-th step."""

    def __init__(self, factory: Callable[..., Any], params: list[Any], arguments: Options) -> None:
        self.inner = factory(params, **arguments)

    def step(self) -> None:
        """Make one step."""
        groups = self.inner.param_groups
        params = [p for group in groups for p in group["params"]]
        if hasattr(self.inner, "update_hessian"):  # ours, which counts the steps of each parameter
            given = (p for p in params if p.grad is not None and not p.grad.is_sparse)
            due = [p for p in given if self.inner.state.get(p, {}).get("step", 0) % INTERVAL == 0]
            self.inner.update_hessian({p: p.grad**2 for p in due})
            self.inner.step()
        elif groups[0].get("step", 0) % INTERVAL:
            self.inner.step()
        else:
            self.inner.step(hessian=[torch.zeros_like(p) if p.grad is None else p.grad**2 for p in params])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _optax_sophia(**arguments: Any) -> Any:
    import optax

    squares = optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda g, state, params=None: ([x * x for x in g], state)
    )
    return optax.contrib.sophia(hessian_diagonal_fn=squares, update_interval=INTERVAL, **arguments)


# ---- the implementations


def ours() -> list[Implementation]:
    """Return this package's optimizers, on every path of every card."""
    found = []
    for name, card in adan_optim.CARDS.items():
        cls = adan_optim.OPTIMIZERS[name]
        bfloat16 = {"param_rounding": "kahan"}
        if card.iterates:  # they lose small steps as parameters do
            bfloat16["state_dtype"] = "float32"
        base = Implementation(
            "",
            name,
            f"{cls.__module__}.{cls.__qualname__}",
            same(" ".join(inspect.signature(cls).parameters)),
            # without a kernel for bfloat16, the optimizer chooses the path
            bfloat16=bfloat16 if all(rule.small for rule in card.fused_rules) else bfloat16 | {"fused": None},
            build=SquaredGradients if name == "sophia" else plain_call,
        )
        paths = {"reference": ("cpu", {"foreach": False}), "foreach": ("cpu", {"foreach": True})}
        paths |= {f"fused ({device})": (device, {"fused": True}) for device in card.fused_devices}
        for path, (device, fixed) in paths.items():
            if path.split()[0] in card.paths:
                found.append(replace(base, path=path, device=device, fixed=fixed))
    return found


ONE: dict[str, Options] = {"": {}}
BOTH: dict[str, Options] = {"loop": {"foreach": False}, "foreach": {"foreach": True}}


def of(package: str, module: str, paths: Mapping[str, Options] = ONE, **common: Any) -> Callable[..., Any]:
    """Return a function that makes the entries of a package, one for each of its code paths.

    It takes our name of the optimizer, the package's, the names of options, and fields of Implementation.
    """

    def entries(optimizer: str, name: str, names: Mapping[str, Name], **more: Any) -> list[Implementation]:
        of_paths = more.pop("paths", paths)
        base = Implementation(package, optimizer, f"{module}.{name}", names, **{**common, **more})
        return [replace(base, path=at, fixed={**base.fixed, **how}) for at, how in of_paths.items()]

    return entries


def two_betas(betas: tuple[float, float], _: Options) -> Options:
    """Return the betas as separate arguments."""
    return {"b1": betas[0], "b2": betas[1]}


def three_betas(betas: tuple[float, float, float], _: Options) -> Options:
    """Do the same for three."""
    return dict(zip(("b1", "b2", "b3"), betas, strict=True))


def left_out(_: Any, __: Options) -> Options:
    """Pass nothing, for an option that is always on, or that concerns a part the variant lacks."""
    return {}


def negative(name: str) -> Name:
    """Return a name for an option that has the other sign there."""
    return lambda value, _: {name: -value}


def eps_pair(eps: float, options: Options) -> Options:
    """Return both eps of Adafactor as one argument."""
    return {"eps": (eps, options["eps_scale"])}


def _optax_adan_decay(decay: float, options: Options) -> Options:
    if decay and not options["no_prox"]:
        raise NotApplicable("has decoupled decay only")
    return {"weight_decay": decay}


def _always_scaled(scale: bool, _: Options) -> Options:
    if not scale:
        raise NotApplicable("always scales the step by the parameter")
    return {}


def _always_corrected(corrected: bool, _: Options) -> Options:
    if not corrected:
        raise NotApplicable("always corrects the bias")
    return {}


ADAM = "betas eps weight_decay"
FLOAT32 = torch.float32
DECAY = "weight decay"  # an option set of conformance.py
DOZAT = "the mean's bias correction is that of the next step, as Dozat has it"
UNIT_CLIP = "an update whose norm is above a bound times the parameter's is cut to it; none is scaled up"
NO_VECTORS = "vectors and scalars get plain SGD without decay; nothing turns that off"
OPTAX: dict[str, Name] = {"lr": "learning_rate", "max_grad_norm": "clip_by_global_norm"}
PRODIGY = same(f"lr {ADAM} d0 safeguard_warmup")
SCHEDULE_FREE = same(f"lr {ADAM} warmup_steps r weight_lr_power")
OPTAX_ADAM = OPTAX | same("eps", betas=two_betas)

bitsandbytes = of("bitsandbytes", "bitsandbytes.optim", dtype=FLOAT32)
optax = of("optax", "optax", build=Optax)
contrib = of("optax", "optax.contrib", build=Optax)
optimi = of("torch-optimi", "optimi", BOTH, fixed={"triton": False}, bfloat16={"kahan_sum": True})
pytorch_optimizer = of("pytorch_optimizer", "pytorch_optimizer", BOTH)
schedulefree = of("schedulefree", "schedulefree", BOTH, build=in_training)
timm = of("timm", "timm.optim", BOTH)
torchs = of("torch", "torch.optim", BOTH)

THEIRS = [
    # Adan
    *timm(
        "adan",
        "Adan",
        same(f"lr {ADAM} no_prox caution"),
        variants={"caution": "leaves out elements of the first moment alone, not of the whole step"},
    ),
    *pytorch_optimizer("adan", "Adan", same(f"lr {ADAM} max_grad_norm maximize", no_prox="weight_decouple")),
    *optimi("adan", "Adan", same(f"lr {ADAM}", no_prox="adam_wd")),
    Implementation(
        "adan-pytorch",
        "adan",
        "adan_pytorch.Adan",
        same("lr eps weight_decay", betas=lambda betas, _: {"betas": tuple(1 - b for b in betas)}),
    ),
    *optax(
        "adan",
        "adan",
        OPTAX | same("eps", betas=three_betas) | {"weight_decay": _optax_adan_decay, "no_prox": left_out},
        fixed={"eps_root": 0.0},
    ),
    # Adam and AdamW
    *torchs("adam", "Adam", same(f"lr {ADAM} maximize"), paths=BOTH | {"fused": {"fused": True}}),
    *optimi("adam", "Adam", same(f"lr {ADAM}")),
    *bitsandbytes(
        "adam",
        "Adam",
        same(f"lr {ADAM}"),
        fixed={"optim_bits": 32},
        variants={DECAY: "its Adam decays as AdamW does"},
    ),
    *torchs("adamw", "AdamW", same(f"lr {ADAM} maximize"), paths=BOTH | {"fused": {"fused": True}}),
    *optimi("adamw", "AdamW", same(f"lr {ADAM}")),
    *bitsandbytes("adamw", "AdamW", same(f"lr {ADAM}"), fixed={"optim_bits": 32}),
    *timm("adamw", "AdamWLegacy", same(f"lr {ADAM} maximize caution")),
    *optax("adam", "adam", OPTAX_ADAM),
    *optax("adamw", "adamw", OPTAX_ADAM | same("weight_decay")),
    # Adafactor
    Implementation(
        "transformers",
        "adafactor",
        "transformers.optimization.Adafactor",
        same(
            "lr weight_decay clip_threshold scale_parameter",
            beta1=lambda beta1, _: {"beta1": beta1 or None},
            eps=eps_pair,
            eps_scale=left_out,
            decay_rate=negative("decay_rate"),
        ),
        fixed={"relative_step": False, "warmup_init": False},
    ),
    *timm(
        "adafactor",
        "Adafactor",
        same(
            "lr weight_decay clip_threshold eps eps_scale",
            beta1=lambda beta1, _: {"betas": (beta1, 0.999)} if beta1 else {},
            decay_rate=negative("decay_rate"),
        ),
        fixed={"min_dim_size_to_factor": 0},
        paths=ONE,
    ),
    *pytorch_optimizer(
        "adafactor",
        "AdaFactor",
        same(
            "lr weight_decay clip_threshold scale_parameter maximize",
            eps="eps1",
            eps_scale="eps2",
            beta1=lambda beta1, _: {"betas": (beta1 or None, 0.9999)},  # the second is a cap of beta2
            decay_rate=negative("decay_rate"),
        ),
        fixed={"relative_step": False, "momentum_dtype": torch.float64},
    ),
    *torchs(
        "adafactor",
        "Adafactor",
        same(
            "lr weight_decay maximize",
            eps=eps_pair,
            eps_scale=left_out,
            clip_threshold="d",
            decay_rate=negative("beta2_decay"),
            scale_parameter=_always_scaled,
        ),
        variants={
            DECAY: "decays by lr, not by the step size scaled by the parameter",
            "eps of squares": "eps1 bounds the root of the second moment, it is not added to squares",
        },
    ),
    *optax(
        "adafactor",
        "adafactor",
        OPTAX
        | same(
            "decay_rate eps",
            scale_parameter="multiply_by_parameter_scale",
            clip_threshold="clipping_threshold",
            beta1=lambda beta1, _: {"momentum": beta1 or None},
            eps_scale=left_out,  # always 0.001, as in the option sets
            weight_decay=lambda decay, options: {"weight_decay_rate": decay * options["lr"]},
        ),
        fixed={"min_dim_size_to_factor": 0},
        variants={DECAY: "decays by its rate, not by the step size scaled by the parameter"},
    ),
    # LAMB
    *timm(
        "lamb",
        "Lamb",
        same(f"lr {ADAM} trust_clip", max_grad_norm=lambda norm, _: {"max_grad_norm": norm or None}),
        fixed={"always_adapt": True, "max_grad_norm": None},
    ),
    *pytorch_optimizer(
        "lamb",
        "Lamb",
        same(f"lr {ADAM} max_grad_norm maximize"),
        fixed={"weight_decouple": False, "pre_norm": True, "max_grad_norm": 0.0},
        variants={
            "": "version 3 of the paper: the second moment has no bias correction, the first's is "
            "applied after the trust ratio, whose parameter norm is cut at 10"
        },
    ),
    *bitsandbytes("lamb", "LAMB", same(f"lr {ADAM}"), variants={"": UNIT_CLIP}),
    *optax("lamb", "lamb", OPTAX_ADAM | same("weight_decay")),
    # LARS
    *timm(
        "lars",
        "Lars",
        same("lr momentum weight_decay nesterov eps always_adapt", trust_coefficient="trust_coeff"),
    ),
    *pytorch_optimizer(
        "lars",
        "LARS",
        same("lr momentum weight_decay nesterov trust_coefficient maximize", always_adapt=left_out),
        variants={"": NO_VECTORS},
    ),
    *bitsandbytes(
        "lars",
        "LARS",
        same("lr momentum weight_decay nesterov", trust_coefficient="max_unorm", always_adapt=left_out),
        variants={"": UNIT_CLIP},
    ),
    *optax(
        "lars",
        "lars",
        OPTAX | same("momentum weight_decay nesterov trust_coefficient eps", always_adapt=left_out),
        variants={DECAY: "the trust ratio has the norm of gradient plus decay, not the sum of their norms"},
    ),
    # NAdamW
    *timm("nadamw", "NAdamW", same(f"lr {ADAM} maximize caution")),
    *torchs(
        "nadamw",
        "NAdam",
        same(f"lr {ADAM} maximize"),
        fixed={"decoupled_weight_decay": True, "momentum_decay": 1e9},  # which ends its schedule at once
        variants={"": DOZAT},
    ),
    *optax("nadamw", "nadamw", OPTAX_ADAM | same("weight_decay"), variants={"": DOZAT}),
    # AdEMAMix
    *pytorch_optimizer(
        "ademamix",
        "AdEMAMix",
        same(f"lr {ADAM} alpha maximize", alpha_warmup="t_alpha_beta3", beta3_warmup="t_alpha_beta3"),
        fixed={"weight_decouple": True},
    ),
    *contrib(
        "ademamix",
        "ademamix",
        OPTAX | same("alpha eps weight_decay", betas=three_betas),
    ),
    # Schedule-free AdamW, in training: p is between the mean and the newest point
    *pytorch_optimizer("schedule_free_adamw", "ScheduleFreeAdamW", SCHEDULE_FREE | same("maximize")),
    *schedulefree("schedule_free_adamw", "AdamWScheduleFree", SCHEDULE_FREE),
    *contrib(
        "schedule_free_adamw",
        "schedule_free_adamw",
        OPTAX_ADAM | same("weight_decay warmup_steps weight_lr_power"),
    ),
    # MARS-AdamW
    *timm("mars", "mars.Mars", same(f"lr {ADAM} gamma optimize_1d"), paths=ONE),
    # Prodigy
    *of("prodigyopt", "prodigyopt")("prodigy", "Prodigy", PRODIGY | same("use_bias_correction")),
    *pytorch_optimizer(
        "prodigy",
        "Prodigy",
        PRODIGY | same("maximize", use_bias_correction="bias_correction"),
        fixed={"weight_decouple": True},
    ),
    *contrib(
        "prodigy",
        "prodigy",
        OPTAX
        | same("betas eps weight_decay safeguard_warmup", d0="estim_lr0")
        | {"use_bias_correction": _always_corrected},
    ),
    # Lion
    *timm("lion", "Lion", same("lr betas weight_decay maximize caution")),
    *pytorch_optimizer("lion", "Lion", same("lr betas weight_decay maximize")),
    *optimi("lion", "Lion", same("lr betas weight_decay")),
    *bitsandbytes("lion", "Lion", same("lr betas weight_decay")),
    *optax("lion", "lion", OPTAX | same("weight_decay", betas=two_betas)),
    # Sophia, with the squared gradient as the Hessian estimate (Sophia-G takes that of a sampled loss). The
    # first clips m / max(h, eps) at p, the paper m / max(rho h, eps) at 1.
    *pytorch_optimizer(
        "sophia",
        "SophiaH",
        same(
            "betas maximize",
            lr=lambda lr, options: {"lr": lr / options["rho"]},
            weight_decay=lambda decay, options: {"weight_decay": decay * options["rho"]},
            rho="p",
            eps=lambda eps, options: {"eps": eps / options["rho"]},
        ),
        fixed={"update_period": INTERVAL},
        build=SquaredGradients,
    ),
    *of("optax", __name__, build=Optax)(
        "sophia",
        "_optax_sophia",
        OPTAX_ADAM | same("weight_decay", rho="gamma"),
        fixed={"clip_threshold": 1.0},
        variants={"": "corrects the bias of the momentum, and a Hessian counts from the next step on"},
    ),
    # Shampoo and Adam-mini
    *pytorch_optimizer(
        "shampoo",
        "Shampoo",
        same(
            "lr weight_decay matrix_eps maximize",
            precondition_frequency="preconditioning_compute_steps",
            **dict.fromkeys(("betas", "eps", "shampoo_beta", "exponent"), left_out),
            **dict.fromkeys(("block_size", "start_preconditioning_step"), left_out),
        ),
        fixed={"weight_decouple": True},
        paths=ONE,
        variants={"": "the first paper's sums, without averages, blocks, grafting or a relative damping"},
    ),
    *pytorch_optimizer(
        "adam_mini",
        "AdamMini",
        same(f"lr {ADAM} maximize"),
        variants={"": "one second moment for a tensor whose name says nothing, not one for each row"},
        dtype=FLOAT32,  # of its states
        build=of_module,
    ),
    # Muon and SOAP
    *timm(
        "muon",
        "Muon",
        same(
            "lr momentum weight_decay nesterov",
            iterations="ns_steps",
            scaling=lambda name, _: {"adjust_lr_fn": "original" if name == "jordan" else "match_rms_adamw"},
            coefficients=lambda name, _: {"ns_coefficients": "original" if name == "jordan" else name},
            rest_betas="betas",
            rest_lr_scale="fallback_lr_scale",
            **dict.fromkeys(("rest", "use_muon", "eps"), left_out),
        ),
        paths=ONE,
        variants={"": "the iterations are in bfloat16; the rest's eps is fixed"},
        dtype=FLOAT32,
    ),
    *pytorch_optimizer(
        "soap",
        "SOAP",
        same(
            "lr betas eps weight_decay shampoo_beta precondition_frequency maximize",
            **dict.fromkeys(("matrix_eps", "block_size"), left_out),
        ),
        paths=ONE,
        variants={
            "": "no small diagonal in the factors, vectors wait a step too, and eps has no bias correction"
        },
    ),
]


def theirs() -> list[Implementation]:
    """Return the implementations of other packages."""
    return THEIRS
