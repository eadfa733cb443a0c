"""Federated prompt learning of CLIP for remote-sensing scene classification, simulated at scale in JAX."""

__version__ = "0.1.0"
