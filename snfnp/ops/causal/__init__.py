"""The inverse of a causal convolution."""
