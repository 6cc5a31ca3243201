"""The GPU as a device: launches of kernels and their text, graphs, streams, cuBLAS, NCCL."""
