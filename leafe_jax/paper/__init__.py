"""The paper's tables: a grid of runs over one directory, and a page made from their results."""
