"""Entry point: python worker.py [run | doctor | top | demo]."""

import sys

from ourvidz_sdxl.cli import main

if __name__ == "__main__":
    sys.exit(main())
