"""Random parameters from numpy: what decoder.init_params draws takes seconds to compile."""

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.models import decoder


def params(config, seed: int = 0, deviation: float = 0.02) -> dict:
    """Matrices are normal with this standard deviation, norms are one and biases zero."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "bias"):
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(deviation * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, decoder.abstract_params(config))
