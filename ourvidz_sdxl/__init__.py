"""A Supabase-native worker that paints rows of a jobs table with SDXL. Start reading at :mod:`ourvidz_sdxl.process`."""

__version__ = "0.1.0"
