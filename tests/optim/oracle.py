"""The update rules a second time: float64 NumPy, written from the papers, importing nothing of this project.

Each optimizer is a module of `definitions/` with

    step(p, g, s, t, **hyper)  the new parameter and states, from a parameter, its gradient (unscaled,
                               clipped, of the function to minimise), the states, the step count t = 1, ...
    STATES                     names of the states, zeros like the parameter at first; or
    initial(p, **hyper)        the states of one parameter before its first step
    BASE, VARIANTS, CHANGES    options to test with, far from the defaults and from each other, so that no
                               mistake hides; see harness.py and test_arguments.py
    share(found, hyper, states)
                               of a rule with numbers that all parameters share, and step() takes by name:
                               their next values, from what each parameter's step() returned third, and the
                               hyper-parameters and the new states of all parameters
    SHARED                     those numbers, keys of the groups: what they begin as, or an option that is it
    SHOWN_ELSEWHERE            options whose effect another test shows: "file.py::function"
    prepare(optimizer)         gives an optimizer what it wants besides gradients; see harness.py
    UNFUSED                    options without a fused rule
    fuses(p, options)          whether the fused rule is for a parameter, if it is not for all
    GIVEN                      what an option of CHANGES needs to have an effect
    UNIT                       options with which equal gradients move a parameter of ones by about lr
    ALONE                      options with which the step of a parameter does not depend on others
    SLOW                       options that change the states by next to nothing in a step
    FAULTS                     for tests/mutants.py, which see
    ROUNDINGS                  operations on the way to a new parameter that round, if more than a dozen
    jump(p, g, s, t, **hyper)  of a rule that is discontinuous: how far each element's argument is from where
                               the update jumps, such as |b1 m + (1 - b1) g| for a sign. Rounding decides on
                               which side elements fall that are nearer than the tolerance: their parameters
                               are not compared, and harness.py bounds how many these may be
"""

import importlib.util
import inspect
from pathlib import Path

import numpy as np


def _load(path):
    spec = importlib.util.spec_from_file_location(f"definition_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEFINITIONS = {
    path.stem: _load(path) for path in sorted((Path(__file__).parent / "definitions").glob("*.py"))
}


def initial_states(definition, p, hyper):
    """The states of a parameter before its first step."""
    if hasattr(definition, "initial"):
        return definition.initial(p, **hyper)
    return {name: np.zeros_like(p) for name in definition.STATES}


def clip_coefficient(grads, max_norm, eps):
    """min(1, max_norm / (norm + eps)) over all gradients."""
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    return min(1.0, max_norm / (norm + eps))


class Oracle:
    """An optimizer on float64 arrays, each with its own step count: `params`, `states`, `steps`, `jumps`.

    Args:
        name: of the definition.
        groups: pairs of a list of arrays and the hyper-parameters of the group, `maximize` among them.
        max_grad_norm, clip_eps: of the clipping over all groups; 0 is off.
    """

    def __init__(self, name, groups, max_grad_norm=0.0, clip_eps=0.0):
        definition = DEFINITIONS[name]
        self.rule = definition.step
        self.params = [np.array(p, np.float64) for arrays, _ in groups for p in arrays]
        self.hyper = [dict(hyper) for arrays, hyper in groups for _ in arrays]
        plain = [{k: v for k, v in hyper.items() if k != "maximize"} for hyper in self.hyper]
        self.states = [
            initial_states(definition, p, hyper) for p, hyper in zip(self.params, plain, strict=True)
        ]
        self.steps = [0] * len(self.params)
        self.share, self.shared = getattr(definition, "share", None), getattr(definition, "SHARED", {})
        options = inspect.signature(definition.step).parameters.values()
        defaults = {x.name: x.default for x in options if x.default is not x.empty}
        for hyper in self.hyper if self.share else ():  # share() sees all options
            hyper |= {**defaults, **hyper}
            hyper |= {name: hyper.get(first, first) for name, first in self.shared.items()}
        self.jump = getattr(definition, "jump", None)
        self.jumps = [np.full_like(p, np.inf) for p in self.params]  # the least distance so far
        self.max_grad_norm, self.clip_eps = max_grad_norm, clip_eps

    def step(self, grads):
        """One step; a gradient that is None leaves its parameter alone."""
        given = [g for g in grads if g is not None]
        c = clip_coefficient(given, self.max_grad_norm, self.clip_eps) if self.max_grad_norm else 1.0
        found = []
        for i, g in enumerate(grads):
            if g is None:
                continue
            hyper = dict(self.hyper[i])
            sign = -1.0 if hyper.pop("maximize", False) else 1.0
            self.steps[i] += 1
            at = self.params[i], sign * c * g, self.states[i], self.steps[i]
            if self.jump:
                self.jumps[i] = np.minimum(self.jumps[i], self.jump(*at, **hyper))
            self.params[i], self.states[i], *rest = self.rule(*at, **hyper)
            found += rest
        if self.share and given:
            numbers = self.share(found, self.hyper, self.states)
            for hyper in self.hyper:
                hyper.update(numbers)
