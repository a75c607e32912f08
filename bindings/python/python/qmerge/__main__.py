"""The program `qmerge`, for `python -m qmerge` and as the command that comes with the package."""

from __future__ import annotations

import os
import signal
import sys

from ._qmerge import program


def main() -> int:
    """Runs the program on `sys.argv` and returns its exit status."""
    # Python's own handler would only take note of Ctrl-C until the program returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Whom the program asks where it needs this package.
    os.environ.setdefault("QMERGE_PYTHON", sys.executable)
    return program(["qmerge", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
