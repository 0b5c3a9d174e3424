"""Entry point of ``python -m celldial``, which is the command ``celldial``."""

import sys

from celldial.cli import main

if __name__ == "__main__":
    sys.exit(main())
