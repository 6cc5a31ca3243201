"""The rational-quadratic spline."""
