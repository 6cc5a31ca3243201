"""Self Normalizing Flows (Keller et al., ICML 2021) in NumPy and CuPy, every gradient by hand.

Import ``snfnp`` before NumPy where you can: the package settles how BLAS threads wait
(see ``snfnp.threads``), and OpenBLAS reads that only once, when it is loaded.
"""

from snfnp import threads

threads.settle_blas()

__version__ = "0.1.0"
