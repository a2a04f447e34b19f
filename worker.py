"""Entry point: python worker.py [run | doctor | demo]."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no model ever comes from the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell every operator that torchvision is not needed here

from ourvidz_sdxl.cli import main

if __name__ == "__main__":
    sys.exit(main())
