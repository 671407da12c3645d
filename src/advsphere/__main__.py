"""`python -m advsphere` is the command `advsphere`."""

import sys

from advsphere.cli import main

if __name__ == "__main__":
    sys.exit(main())
