"""Text environments in pure Python; nothing in this package imports jax or leafe_jax."""
