"""ALFWorld: the engine in pure Python, and the real package behind an adapter."""
