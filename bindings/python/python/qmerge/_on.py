"""What `qmerge merge --on CLUSTER` starts: a module that the package itself does not import, so that what tasks are given is of `qmerge.ray`, and Python warns of nothing."""

from __future__ import annotations

import sys

from .ray import _main

if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
