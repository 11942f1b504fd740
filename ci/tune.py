#!/usr/bin/env python3
"""Sweeps tuning rows on the GPU at hand, or reads a sweep; prints source for xkv/<vendor>/tuning.py.

PYTHONPATH=. python ci/tune.py --json tune.json     # minutes, on the GPU
PYTHONPATH=. python ci/tune.py --from report.zip    # prints the same of what `python -m xkv report` brought

The sweep is in xkv/cli/tune, as part of the wheel.
"""

import sys

from xkv.cli.tune.command import main

if __name__ == "__main__":
    sys.exit(main())
