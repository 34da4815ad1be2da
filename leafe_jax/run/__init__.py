"""What happens on disk: phases, blocks, checks, results."""
