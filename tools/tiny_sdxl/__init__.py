"""How the bundled miniature of SDXL in `models/tiny-sdxl/` was made, and how its pictures are judged."""
