"""Hidden states of whole sequences for training: what is kept for the backward pass, and layers
unrolled or scanned."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding

from leafe_jax.models import decoder
from leafe_jax.models.decoder import Attend, ModelConfig
from leafe_jax.models.sharding import BATCH, stacked_shardings

# What a layer keeps for the backward pass; the rest is computed again. Names as in settings.REMAT.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(decoder.PROJECTED),  # and no scores
    "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input alone
}


def hidden_states(
    config: ModelConfig,
    params: Any,
    tokens: Array,
    positions: Array,
    attend: Attend,
    *,
    remat: str,
    scan_layers: bool,
    mesh: Mesh,
) -> Array:
    """`decoder.hidden`, with a memory policy.

    Args:
      config, params: the model, in the compute dtype.
      tokens, positions: int32 [B, T].
      attend: hook that does not depend on the layer.
      remat: one of REMAT.
      scan_layers: one compiled layer in a loop in place of all of them in a row: compile time and the
        compiler's memory stop growing with the depth, for a stacked copy of the cast weights.
      mesh: devices.

    Returns:
      [B, T, D].
    """
    rows = NamedSharding(mesh, BATCH)

    def layer(x: Array, params: Any) -> Array:
        # Given at every layer: by itself the partitioner may split the width instead of the rows.
        x = jax.lax.with_sharding_constraint(x, rows)
        return decoder.block(config, params, x, positions, attend)

    if remat != "none":
        # Inside a scan XLA cannot merge the second computation with the first anyway.
        layer = jax.checkpoint(layer, policy=REMAT[remat], prevent_cse=not scan_layers)
    x = decoder.embed(params, tokens)
    layers = [params["layers"][str(i)] for i in range(config.num_layers)]
    if scan_layers:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        stacked = jax.lax.with_sharding_constraint(stacked, stacked_shardings(stacked, mesh))
        x, _ = jax.lax.scan(lambda x, params: (layer(x, params), None), x, stacked)
    else:
        for own in layers:
            x = layer(x, own)
    return decoder.final_norm(config, params, jax.lax.with_sharding_constraint(x, rows))
