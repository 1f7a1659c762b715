"""The command line of every entry point: Hydra with typed configurations and one-line errors."""

import argparse
import contextlib
import functools
import importlib
import inspect
import os
import re
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from repro.errors import Stopped
from repro.explain import explain
from repro.overrides import as_typed, opened
from repro.train import choices, multirun, slurm
from repro.train.config import TrainConfig, typed
from repro.train.usage import usage

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

NO_LOG = ["hydra/hydra_logging=none"]

READER_LEFT = 128 + signal.SIGPIPE  # exit status if the reader of the output is gone, as in a shell

Arguments = ParamSpec("Arguments")
Config = TypeVar("Config", bound=TrainConfig)
Main = Callable[[Config, list[str]], Path | None]  # (configuration, overrides) -> the run's folder, if any


def entry_point(
    config_name: str, schema: type[Config], doc: str | None = None
) -> Callable[[Main[Config]], Callable[..., int]]:
    """Turn `main(config, overrides)` into a command, configured by configs/<config_name>.yaml and arguments.

    The command takes a list of arguments (default: the process's) and returns the exit status: 0, 2 after
    `error: ...` on stderr, or a signal's that stopped it (see repro.train.preemption). With `--debug` (or
    HYDRA_FULL_ERROR=1) errors are raised instead. The config's defaults start with `<config_name>_schema`,
    which is `schema`; the module that defines it registers it. `main` gets a configuration that is checked.
    `--help` prints `doc`, the groups of configurations and the keys; see repro.train.usage.
    """

    def decorate(main: Main[Config]) -> Callable[..., int]:
        @functools.wraps(main)
        def command(arguments: Sequence[str] | None = None) -> int:
            arguments = list(sys.argv[1:] if arguments is None else arguments)
            debug = "--debug" in arguments or os.environ.get("HYDRA_FULL_ERROR") == "1"
            arguments = [argument for argument in arguments if argument != "--debug"]
            try:
                with flushed():
                    choices.check(CONFIGS, config_name, schema, arguments)
                    launcher = slurm.launcher(arguments)
                    if {"-h", "--help"} & set(arguments):
                        rest = [each for each in arguments if each not in ("-h", "--help", *multirun.FLAGS)]
                        print(_usage(doc, config_name, schema, rest))
                    elif launcher is None:
                        return _run_jobs(main, schema, config_name, arguments, debug)
                    else:
                        command_line = [sys.argv[0], *arguments]
                        submitted = functools.partial(_submitted, slurm.module(main), schema, command_line)
                        _run_hydra(submitted, config_name, arguments, slurm.prepare(launcher))
                    return 0
            except KeyboardInterrupt:
                print("interrupted; the same command continues", file=sys.stderr)
                return 130
            except Stopped as stopped:
                if _is_first():
                    print(f"{stopped}; the same command continues", file=sys.stderr)
                return stopped.status
            except Exception as error:
                if reader_left(error):
                    return READER_LEFT
                line = explain(error)
                if debug or line is None:
                    raise
                print(f"error: {line}", file=sys.stderr)
                return 2

        return command

    return decorate


def _usage(doc: str | None, config_name: str, schema: type[Config], arguments: list[str]) -> str:
    """Return the help of an entry point with what Hydra makes of a command line."""
    texts = []

    def job(config: DictConfig) -> None:
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        texts.append(usage(doc, CONFIGS, config_name, schema, values, HydraConfig.get().runtime.choices))

    _run_hydra(job, config_name, arguments, NO_LOG)
    return texts[0]


def _is_first() -> bool:
    """Return whether this is the one of a run's processes that prints."""
    return int(os.environ.get("RANK", 0)) == 0


def _run_jobs(
    main: Main[Config], schema: type[Config], config_name: str, arguments: list[str], debug: bool
) -> int:
    """Run an entry point here, once or for each job of a multirun; return the exit status.

    An error of the input in one job lets the others go on. A table at the end compares their runs.
    """
    several = bool(set(multirun.FLAGS) & set(arguments))
    folders: list[Path] = []
    failed = False

    def job(config: DictConfig) -> None:
        nonlocal failed
        if several and _is_first():
            number = HydraConfig.get().job.num
            print(f"{chr(10) * (number > 0)}{multirun.header(arguments, number)}", flush=True)
        try:
            if (folder := _call(main, schema, config)) is not None:
                folders.append(folder)
        except Exception as error:
            line = explain(error)
            if debug or line is None:
                raise
            failed = True
            print(f"error: {line}", file=sys.stderr)

    _run_hydra(job, config_name, arguments, NO_LOG)
    if len(folders) > 1 and _is_first():
        print(f"\n{multirun.compared(folders)}")
    return 2 if failed else 0


def _call(main: Main[Config], schema: type[Config], config: DictConfig) -> Path | None:
    """Call an entry point with what Hydra made of the command line; return the run's folder, if any."""
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    checked = typed(values, schema)
    checked.check()
    return main(checked, as_typed(HydraConfig.get().overrides.task))


def _submitted(module: str, schema: type[Config], command_line: list[str], config: DictConfig) -> None:
    """Run an entry point in a process of a submitit job, which gets this function by pickle.

    The entry point is imported here, as scripts cannot be pickled. Errors of the input are raised, so that
    they reach the command that submitted the job.
    """
    slurm.form_group()
    sys.argv = command_line  # recorded in the run folder
    try:
        _call(inspect.unwrap(importlib.import_module(module).main), schema, config)
    except Exception as error:
        if explain(error) is not None:
            raise
        traceback.print_exc()
        sys.exit(1)  # if raised, Hydra would hold it until all processes end


def exit_status(command: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Turn errors of a command's input into `error: ...` on stderr and exit status 2.

    Bugs in our code are raised. If the reader of the output ends first (`| head`), the command ends silently.
    """

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            with flushed():
                return command(*args, **kwargs)
        except Exception as error:
            if reader_left(error):
                return READER_LEFT
            line = explain(error)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2

    return guarded


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Flush the output at the end of the block, while a failure can still be reported."""
    try:
        yield
    finally:
        sys.stdout.flush()


def reader_left(error: Exception) -> bool:
    """Return whether an error came from printing to a program that has ended; then discard further output."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        stdout = sys.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, 0)
        left = any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):  # stdout is not a file
        return False
    if left:  # otherwise the error came from another pipe
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stdout)
        os.close(null)
    return left


class Parser(argparse.ArgumentParser):
    """A parser whose help begins with what the command does."""

    def format_help(self) -> str:
        """Return the description, then what argparse has besides."""
        about, self.description = self.description, None
        try:
            return "\n\n".join(filter(None, [about, super().format_help()]))
        finally:
            self.description = about


def command_line(doc: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return the parser of a command that is not a recipe.

    Its help begins with the module's docstring, and ends with the examples there. These are the last
    paragraph: "Examples:" with a command in each line below.

    Args:
        options: further options of argparse.ArgumentParser.
    """
    about, _, examples = (doc or "").partition("\nExamples:\n")
    epilog = f"examples:\n{examples.rstrip()}" if examples else None
    form = argparse.RawDescriptionHelpFormatter
    return Parser(description=about.strip(), epilog=epilog, formatter_class=form, **options)


def file_size(text: str) -> int:
    """Parse a number of bytes, such as 500KB, 16MB or 1GB (a type for argparse)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(KB|MB|GB)", text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text}: must be written as 500KB, 16MB or 1GB")
    return int(float(match[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]])


def processes(text: str) -> int:
    """Parse a number of processes, 0 or more (a type for argparse)."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be a non-negative integer (0: no extra processes)")
    return int(text)


def _run_hydra(
    job: Callable[[DictConfig], None], config_name: str, arguments: list[str], overrides: list[str]
) -> None:
    """Run Hydra such that it raises its errors and leaves no folders of its own."""
    decorated: Any = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)
    saved_argv, saved_flag = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with tempfile.TemporaryDirectory() as scratch:
        quiet = [
            f"hydra.run.dir={scratch}",
            f"hydra.sweep.dir={scratch}",
            "hydra.sweep.subdir=.",
            f"hydra.job.name={config_name}",
            "hydra.output_subdir=null",
            "hydra/job_logging=none",
            *overrides,
        ]
        try:
            sys.argv = [saved_argv[0], *_insert(quiet, opened(arguments))]
            os.environ["HYDRA_FULL_ERROR"] = "1"
            decorated()
        finally:
            sys.argv = saved_argv
            if saved_flag is None:
                del os.environ["HYDRA_FULL_ERROR"]
            else:
                os.environ["HYDRA_FULL_ERROR"] = saved_flag


def _insert(overrides: list[str], arguments: list[str]) -> list[str]:
    """Insert overrides before the user's, and -m first: argparse wants all overrides in one place."""
    flags = [argument for argument in arguments if argument in multirun.FLAGS]
    rest = [argument for argument in arguments if argument not in flags]
    first = next(
        (i for i, argument in enumerate(rest) if not argument.startswith("-") and "=" in argument), len(rest)
    )
    return [*flags, *rest[:first], *overrides, *rest[first:]]
