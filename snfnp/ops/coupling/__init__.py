"""The affine coupling and its network."""
