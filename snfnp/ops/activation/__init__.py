"""Elementwise activations and their log-determinants."""
