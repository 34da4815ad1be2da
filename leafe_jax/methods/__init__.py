"""One file is one method; they share the search and the making of examples."""
