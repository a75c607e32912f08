"""The program `qmerge`, for `python -m qmerge` and as the command that comes with the package."""

from __future__ import annotations

import signal
import sys

from ._qmerge import program


def main() -> int:
    """Runs the program on `sys.argv` and returns its exit status."""
    # Python's own handler would only take note of Ctrl-C until the program returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return program(["qmerge", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
