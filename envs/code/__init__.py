"""Programming problems judged in a sandbox."""
