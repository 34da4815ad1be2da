"""A small laboratory of our own."""
