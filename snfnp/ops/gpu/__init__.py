"""What the GPU rooms share: the device, launches of kernels and their text, graphs, cuBLAS."""
