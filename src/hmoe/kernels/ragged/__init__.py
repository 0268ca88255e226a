"""Ragged Triton kernels: all experts of a layer in one launch per product, of any widths and loads."""
