"""What an episode is: policy, rendering, the loop. Nothing here imports jax."""
