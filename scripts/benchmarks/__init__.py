"""Measurements behind `scripts/benchmark.py`: ratios within one run, since machines differ."""
