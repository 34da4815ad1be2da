"""The real ScienceWorld behind an adapter."""
