"""Attention backends: the kernels against the reference, and the choice of a backend."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from test_decoder import small

from leafe_jax.errors import UserError
from leafe_jax.models import attention
from leafe_jax.models.sharding import AXES, make_mesh

SEGMENTS = jnp.asarray([[1] * 90 + [2] * 70 + [0] * 40, [1] * 3 + [2] * 1 + [3] * 196])


def drawn(heads: int, kv_heads: int, head_dim: int):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, 200, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def value_and_grads(run, q, k, v, weight):
    real = (SEGMENTS > 0)[:, :, None, None]  # the output at padding is meaningless
    return jax.value_and_grad(
        lambda q, k, v: jnp.sum(jnp.where(real, run(q, k, v) * weight, 0)), argnums=(0, 1, 2)
    )(q, k, v)


def brute_force(q, k, v):
    """Query by query, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    segments = np.asarray(SEGMENTS)
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        scores = k[b, seen, n // group] @ q[b, t, n] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
    return out


def test_the_reference_equals_brute_force():
    q, k, v, _ = drawn(4, 2, 8)
    found = attention.segment_attend(SEGMENTS)(0, q, k, v)
    np.testing.assert_allclose(found, brute_force(q, k, v), atol=1e-5)


def test_gradients_equal_jaxs_own_attention():
    arrays = drawn(4, 2, 8)
    mask = attention.segment_mask(SEGMENTS)[:, None]
    ours = value_and_grads(lambda q, k, v: attention.segment_attend(SEGMENTS)(0, q, k, v), *arrays)
    theirs = value_and_grads(
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla"),
        *arrays,
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for left, right in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 64), (4, 4, 128), (3, 1, 128)])
def test_splash_equals_the_reference(heads, kv_heads, head_dim):
    """Values and gradients, in interpret mode, at a length that is not a multiple of the block size."""
    arrays = drawn(heads, kv_heads, head_dim)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    mask = attention.segment_mask(SEGMENTS)
    ours = value_and_grads(
        lambda q, k, v: attention._splash(q, k, v, SEGMENTS, mesh, interpret=True), *arrays
    )
    reference = value_and_grads(lambda q, k, v: attention.attention(q, k, v, mask), *arrays)
    np.testing.assert_allclose(ours[0], reference[0], rtol=1e-5)
    for left, right in zip(ours[1], reference[1], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_cudnn_is_asked_for_the_same_attention(monkeypatch):
    """The call meant for cuDNN, computed by XLA: same masks, heads and scale as the reference."""
    arrays = drawn(6, 2, 64)
    real = jax.nn.dot_product_attention
    asked = []

    def by_xla(*args, implementation, **kwargs):
        asked.append(implementation)
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    attend = attention.segment_attend(SEGMENTS, "cudnn")
    ours = value_and_grads(lambda q, k, v: attend(0, q, k, v), *arrays)
    mask = attention.segment_mask(SEGMENTS)
    reference = value_and_grads(lambda q, k, v: attention.attention(q, k, v, mask), *arrays)
    assert asked == ["cudnn"]
    np.testing.assert_allclose(ours[0], reference[0], rtol=1e-5)
    for left, right in zip(ours[1], reference[1], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def mesh_of(platform: str, tensor: int = 1, **more):
    device = types.SimpleNamespace(platform=platform, **more)
    devices = np.empty((1, 1, tensor), object)
    devices[:] = device
    sizes = dict(zip(AXES, devices.shape, strict=True))
    return types.SimpleNamespace(devices=devices, shape=sizes)


H100, T4 = {"compute_capability": "9.0"}, {"compute_capability": "7.5"}


@pytest.mark.parametrize(
    ("requested", "mesh", "dtype", "expected"),
    [
        ("auto", mesh_of("cpu"), "float32", "jnp"),
        ("auto", mesh_of("tpu"), "bfloat16", "splash"),
        ("auto", mesh_of("tpu", tensor=4), "bfloat16", "jnp"),  # two key-value heads
        ("auto", mesh_of("gpu", **H100), "bfloat16", "cudnn"),
        ("auto", mesh_of("gpu", **H100), "float32", "jnp"),
        ("auto", mesh_of("gpu", **T4), "bfloat16", "jnp"),
        ("jnp", mesh_of("tpu"), "bfloat16", "jnp"),
        ("splash", mesh_of("cpu"), "float32", "splash runs on TPUs, not on 'cpu'"),
        ("splash", mesh_of("tpu", tensor=4), "float32", "train.mesh.tensor = 4 to divide the model's 2"),
        ("cudnn", mesh_of("tpu"), "bfloat16", "cudnn runs on GPUs, not on 'tpu'"),
        ("cudnn", mesh_of("gpu", **T4), "bfloat16", "compute capability 8.0, this GPU has 7.5"),
        ("cudnn", mesh_of("gpu", **H100), "float32", "16-bit compute dtype, not float32"),
        ("flash", mesh_of("cpu"), "float32", "must be one of auto, jnp, splash, cudnn"),
    ],
)  # fmt: skip
def test_the_choice_of_a_backend(requested, mesh, dtype, expected):
    if expected in attention.BACKENDS:
        assert attention.choose_backend(requested, small(), dtype, mesh) == expected
    else:
        with pytest.raises(UserError, match=f"train.attention = '{requested}': .*{expected}"):
            attention.choose_backend(requested, small(), dtype, mesh)


def test_the_choice_is_logged_once(monkeypatch):
    said = []
    monkeypatch.setattr(attention._log, "info", lambda text, *args: said.append(text % args))
    attention._announce.cache_clear()
    mesh = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    for _ in range(3):
        attention.choose_backend("auto", small(), "float32", mesh)
    assert said == ["attention backend: jnp (default for platform 'cpu')"]
