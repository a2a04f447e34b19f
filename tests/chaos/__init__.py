"""Chaos: real worker processes on the embedded Supabase, and everything that can go wrong at once, over and over.

Read in this order: `schedule` (what will happen, drawn from one seed), `pods`, `users`, `network` and `strikes` (who does it),
`witness` (who saw it), `checks` (what must hold of what was seen), `__main__` (`make chaos`).
`soak` is the quiet sister: full rate, and nothing is struck.
"""
