"""The one exception for bad input."""


class UserError(Exception):
    """Input that cannot work. The message is one line that names the value at fault and the cure.

    Entry points print it as ``error: ...`` and exit with status 2; `--debug` shows the traceback instead.
    """
