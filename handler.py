"""Entry point on RunPod serverless: python -u handler.py (RunPod's own options, such as --test_input, come after it)."""

import sys

from ourvidz_sdxl.cli import serve_requests

if __name__ == "__main__":
    sys.exit(serve_requests())
