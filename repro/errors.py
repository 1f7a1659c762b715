"""The exceptions for bad input."""


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
