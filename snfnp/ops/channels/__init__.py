"""Sums over channels, actnorm, squeezes, and the log-densities of samples."""
