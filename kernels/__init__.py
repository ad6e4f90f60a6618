"""Triton kernels, the twins of those in csrc/."""
