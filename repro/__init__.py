"""What the recipes share; with it, Ctrl-C ends a command with one line and status 130, also in imports."""

import sys
from types import TracebackType

_others = sys.excepthook


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    _others(kind, error, trace)


sys.excepthook = _end
