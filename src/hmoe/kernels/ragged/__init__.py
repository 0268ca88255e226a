"""Ragged Triton kernels: all experts of a layer in one launch per product, whatever their widths and loads."""
