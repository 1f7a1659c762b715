"""The exceptions that end a command: bad input, and a stop signal."""

import signal


class UserError(Exception):
    """Input that cannot work. The message is one line that names the value at fault and the cure.

    Entry points print it as ``error: ...`` and exit with status 2; `--debug` shows the traceback instead.
    """


class Diverged(UserError):
    """A run whose loss is no longer finite; its folder has a diverged.json (see repro.train.run_folder)."""

    def __init__(self, message: str, step: int) -> None:
        """`step`: the first whose loss is not finite."""
        super().__init__(message)
        self.step = step


class Stopped(BaseException):  # not an Exception, so that error handlers let it pass
    """Ends a run on a stop signal; `status` is the exit status of the process, see repro.train.preemption."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number, self.status = number, 128 + number
