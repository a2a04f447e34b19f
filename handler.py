"""Entry point on RunPod serverless: python -u handler.py (RunPod's own options, such as --test_input, come after it)."""

from ourvidz_sdxl.cli import end, serve_requests

if __name__ == "__main__":
    end(serve_requests())
