"""Matrix products, inverses and determinants, and sums over whole arrays."""
