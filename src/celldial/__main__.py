"""``python -m celldial``, which does what the command ``celldial`` does."""

import sys

from celldial.cli import main

if __name__ == "__main__":
    sys.exit(main())
