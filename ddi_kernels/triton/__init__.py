"""Triton kernels for NVIDIA GPUs, one file an operator, imported only when one of them runs."""
