"""LEAFE in JAX: learning agency from reflective experience."""

__version__ = "0.1.0"
