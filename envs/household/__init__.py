"""A small household of our own."""
