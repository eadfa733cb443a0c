"""Attention with lanes folded into the batch is the attention that is written out; the fused kernel needs a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.clip import attention
from fedrsclip_jax.clip.attention import attend, causal_mask, fused

LANES, BATCH, TOKENS, HEADS, WIDTH = 3, 4, 6, 2, 8


def heads(*shape: int):
    return [jax.random.normal(key, (*shape, TOKENS, HEADS, WIDTH)) for key in jax.random.split(jax.random.key(0), 3)]


def masks(number: int | None):
    """None, one for all, or one for each of the batch, in which a token sees itself and some before it."""
    if number is None:
        return None
    keep = jax.random.bernoulli(jax.random.key(1), 0.5, (number, TOKENS, TOKENS)) | jnp.eye(TOKENS, dtype=bool)[None]
    return keep & causal_mask(TOKENS)[None]


def both(mask):
    """Values and gradients by the two ways; XLA's implementation stands for cuDNN's, whose interface it shares."""

    def written_out(q, k, v):
        return attend(q, k, v, mask)

    def folded(q, k, v):
        return fused(q, k, v, None if mask is None else mask[:, None], "xla")

    def with_gradients(f):
        return jax.value_and_grad(lambda heads: jnp.sum(jnp.sin(f(*heads))))

    return with_gradients(written_out), with_gradients(folded)


def check(theirs, ours):
    # Single precision, sums of a dozen terms.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), theirs, ours)


@pytest.mark.parametrize("number", [None, 1, BATCH])
def test_folded_lanes_are_lanes(number):
    one, other = both(masks(number))
    check(one(heads(BATCH)), other(heads(BATCH)))
    lanes = heads(LANES, BATCH)
    check(jax.jit(jax.vmap(one))(lanes), jax.jit(jax.vmap(other))(lanes))


def test_lanes_of_lanes_and_queries_alone_in_a_lane():
    one, other = both(masks(1))
    check(jax.vmap(jax.vmap(one))(heads(2, LANES, BATCH)), jax.vmap(jax.vmap(other))(heads(2, LANES, BATCH)))
    q, k, v = heads(LANES, BATCH)
    vmapped = (jax.vmap(f, in_axes=([0, None, None],)) for f in (one, other))
    check(*(f([q, k[0], v[0]]) for f in vmapped))


@pytest.mark.parametrize("number", [1, BATCH])
def test_a_lane_has_its_own_mask(number):
    late = jnp.arange(TOKENS)[None, None, None] >= jnp.arange(LANES)[:, None, None, None]
    own = (masks(number)[None] & late) | jnp.eye(TOKENS, dtype=bool)[None, None]

    def lane(way):
        return jax.vmap(lambda q, k, v, mask: both(mask)[way]([q, k, v]))(*heads(LANES, BATCH), own)

    check(lane(0), lane(1))


def test_lanes_do_not_multiply_the_mask():
    """One mask for all of them, as cuDNN takes it; a mask for each head of each lane would be larger than the heads."""
    text = jax.jit(jax.vmap(both(masks(1))[1])).lower(heads(LANES, BATCH)).as_text()
    assert f"tensor<1x1x{TOKENS}x{TOKENS}xi1>" in text
    assert f"tensor<{LANES * BATCH}x1x{TOKENS}x{TOKENS}xi1>" not in text


class Device:
    def __init__(self, platform, compute_capability=None):
        self.platform = platform
        if compute_capability:
            self.compute_capability = compute_capability


@pytest.mark.parametrize(
    ("device", "has"),
    [
        (Device("cpu"), False),
        (Device("tpu"), False),
        (Device("gpu", "9.0"), True),
        (Device("gpu", "7.5"), False),
        (Device("gpu", "gfx90a"), False),
        (Device("gpu"), False),
    ],
    ids=lambda value: getattr(value, "compute_capability", None),
)
def test_which_devices_have_the_fused_kernel(device, has, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    attention.has_fused_attention.cache_clear()
    try:
        assert attention.has_fused_attention() is has
    finally:
        attention.has_fused_attention.cache_clear()
