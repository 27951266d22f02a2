"""Kernels of our own, compiled by Apache TVM."""
