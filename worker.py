"""Entry point: python worker.py [run | doctor | top | demo]."""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no model ever comes from the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell every operator that torchvision is not needed here
# Without it torch looks for a folder that can be written, and does not start where the disk is full. Nothing of ours is compiled.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/tmp")  # noqa: S108

from ourvidz_sdxl.cli import main

if __name__ == "__main__":
    sys.exit(main())
