"""`python -m powerserve`: the command line, also where no script was installed."""

from __future__ import annotations

import sys

from powerserve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
