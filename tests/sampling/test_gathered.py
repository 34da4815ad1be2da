"""Attention over pages in place: our reference and our call of the TPU kernel, against JAX's reference."""

import jax.numpy as jnp
import numpy as np
import pytest

from leafe_jax.sampling.paged import attend_kernel, attend_reference


@pytest.mark.parametrize(
    ("time", "heads"),
    [
        (1, (6, 2)),
        (4, (4, 4)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, (4, 4)), (4, (6, 2)))),
    ],
)
def test_the_call_of_the_kernel_equals_the_reference(time, heads, monkeypatch):
    """The kernel runs on TPUs only, and this version of JAX cannot interpret it, so JAX's own reference
    implementation replaces it here. tests/sampling/test_sharded.py compiles the kernel."""
    from jax.experimental.pallas.ops.tpu import ragged_paged_attention as module

    calls = []

    def reference(*args, sm_scale, num_kv_pages_per_block, num_queries_per_block, **limits):
        calls.append((num_kv_pages_per_block, num_queries_per_block))
        assert 0 < num_kv_pages_per_block <= args[3].shape[1] and num_queries_per_block > 0
        return module.kernel.ref_ragged_paged_attention(*args, sm_scale=sm_scale)

    monkeypatch.setattr(module, "ragged_paged_attention", reference)
    rng = np.random.default_rng(0)
    num_heads, kv_heads = heads
    batch, head_dim, columns, size, num_pages = 3, 16, 5, 4, 20
    q = jnp.asarray(rng.normal(size=(batch, time, num_heads, head_dim)), jnp.float32)
    layer = jnp.asarray(rng.normal(size=(num_pages, size, 2 * kv_heads, head_dim)), jnp.float32)
    table = jnp.asarray(rng.permutation(num_pages)[: batch * columns].reshape(batch, -1), jnp.int32)
    lengths = jnp.asarray([4, 13, 20], jnp.int32)
    ours = attend_reference(q, layer, table, lengths, sm_scale=head_dim**-0.5)
    theirs = attend_kernel(q, layer, table, lengths, sm_scale=head_dim**-0.5)
    assert calls
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
