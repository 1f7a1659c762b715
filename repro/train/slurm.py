"""Jobs of Hydra's submitit launcher: `-m hydra/launcher=submitit_slurm` on a cluster, submitit_local here.

Each job of a multirun is a run. The tasks of a job are its processes and form a group, like those of
torchrun. A job that SLURM stops (time limit or preemption) requeues itself and runs the same command again,
which continues from the last checkpoint. See docs/scale.md.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from repro.errors import UserError

LAUNCHERS = ("submitit_slurm", "submitit_local")

_OPTION = "hydra/launcher="
_ROOT = str(Path(__file__).resolve().parents[2])


def launcher(arguments: Sequence[str]) -> str | None:
    """Return the launcher of submitit in a command line, or None.

    Raises:
        UserError: it cannot work here.
    """
    named = [argument.removeprefix(_OPTION) for argument in arguments if argument.startswith(_OPTION)]
    if not named or named[-1] not in LAUNCHERS:
        return None
    name = named[-1]
    if not {"-m", "--multirun"} & set(arguments):
        raise UserError(f"{_OPTION}{name}: is for multiruns; put -m before it, also for a single run")
    if name == "submitit_slurm" and shutil.which("srun") is None:
        raise UserError(f"{_OPTION}{name}: there is no srun; run it where jobs can be submitted to SLURM")
    return name


def prepare(name: str) -> list[str]:
    """Prepare the environment of the jobs of launcher `name`, and return overrides to put before the user's.

    Its files (logs, pickled functions) go to <run.root>/.submitit/<job>, which all nodes must share.
    """
    ours = ["hydra.sweep.dir=${run.root}/.submitit", "hydra.launcher.submitit_folder=${hydra.sweep.dir}/%j"]
    # inherited by its jobs: modules are found as from the entry point; a dead process ends its job
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), _ROOT]))
    os.environ.setdefault("SLURM_KILL_BAD_EXIT", "1")
    return [*ours, "hydra.launcher.max_num_timeout=10"] if name == "submitit_slurm" else ours


def is_refusal(error: BaseException) -> bool:
    """Return whether `error` is SLURM's refusal of a job."""
    return type(error).__name__ == "FailedJobError" and str(error).lstrip().startswith("sbatch: error")


def module(main: Callable[..., object]) -> str:
    """Return the module name of an entry point, which may be a script, for the processes of a job."""
    if main.__module__ != "__main__":
        return main.__module__
    file = Path(str(sys.modules["__main__"].__file__)).resolve()
    return ".".join(file.relative_to(_ROOT).with_suffix("").parts)


def form_group() -> None:
    """Make the tasks of a job processes of one run, by torchrun's variables, which accelerate reads."""
    from submitit.helpers import TorchDistributedEnvironment

    group = TorchDistributedEnvironment()
    if group.world_size > 1:
        # accelerate itself picks the GPU by LOCAL_RANK among all of the node's, as NCCL prefers it
        group.export(set_cuda_visible_devices=False, overwrite=True)
