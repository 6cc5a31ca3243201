"""Random numbers as a function of (seed, stream, step)."""
