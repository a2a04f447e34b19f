"""Entry point: python worker.py [run | doctor | top | exporter | demo]."""

from ourvidz_sdxl.cli import end, main

if __name__ == "__main__":
    end(main())
