"""Tests on a device: a GPU, or the stand-in that runs CuPy on a CPU. A package, so that its files
may be named like those beside it."""
