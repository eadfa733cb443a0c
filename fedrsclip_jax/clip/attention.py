"""Softmax attention: written out, or cuDNN's fused kernel on NVIDIA GPUs in half precision."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedrsclip_jax.clip.precision import FULL

EVEN_TOKENS = 8  # the fused kernel takes masks of even sides alone, and products prefer rows by the eight


def attend(
    q: Float[Array, "batch queries heads head"],
    k: Float[Array, "batch keys heads head"],
    v: Float[Array, "batch keys heads head"],
    mask: Bool[Array, "*masks queries keys"] | None = None,
    precision: jax.lax.PrecisionLike = FULL,
) -> Float[Array, "batch queries heads head"]:
    """Softmax attention; where `mask` is False a query does not see a key. Softmax in fp32.

    Args:
      q: carries 1/sqrt(head) already.
      mask: one for all of the batch, or one for each.
      precision: of products of single precision.
    """
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and (mask is None or (q.shape[1] | k.shape[1]) % 2 == 0)
    if q.dtype in (jnp.bfloat16, jnp.float16) and fits and has_fused_attention():
        sees = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
        return fused(q, k, v, sees, "cudnn")
    batch, queries, heads, _ = q.shape
    # One axis for batch and heads: XLA's CPU backend takes several times as long for sums over arrays of four axes.
    q, k, v = (t.transpose(0, 2, 1, 3).reshape(batch * heads, *t.shape[1::2]) for t in (q, k, v))
    logits = jnp.einsum("nqd,nkd->nqk", q, k, preferred_element_type=jnp.float32, precision=precision)
    if mask is not None:
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
        mask = jnp.broadcast_to(mask, (batch, heads, *mask.shape[2:])).reshape(logits.shape)
        logits = jnp.where(mask, logits, -jnp.inf)
    attended = jnp.einsum("nqk,nkd->nqd", softmax(logits).astype(v.dtype), v, precision=precision)
    return attended.reshape(batch, heads, queries, -1).transpose(0, 2, 1, 3)


def softmax(logits: Float[Array, "*rows choices"]) -> Float[Array, "*rows choices"]:
    """Over the last axis.

    Written with a reciprocal, as XLA would do it too, but by its choice in one program and not in another: a division
    would make the last bits of a round depend on whether there are several devices.
    """
    raised = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    return raised * (1 / jnp.sum(raised, axis=-1, keepdims=True))


def causal_mask(tokens: int) -> Bool[Array, "tokens tokens"]:
    """True where key j is not after query i."""
    return jnp.tril(jnp.ones((tokens, tokens), bool))


@cache
def has_fused_attention() -> bool:
    """Whether JAX's default device is an NVIDIA GPU that cuDNN's attention runs on. Starts JAX's backend."""
    device = jax.devices()[0]
    try:
        return device.platform == "gpu" and float(device.compute_capability) >= 8.0
    except (AttributeError, ValueError):  # other makers' GPUs name their kinds in other ways
        return False


def fused(
    q: Float[Array, "batch queries heads head"],
    k: Float[Array, "batch keys heads head"],
    v: Float[Array, "batch keys heads head"],
    mask: Bool[Array, "masks 1 queries keys"] | None,
    implementation: Literal["cudnn", "xla"],
) -> Float[Array, "batch queries heads head"]:
    """`jax.nn.dot_product_attention` that takes its lanes as a larger batch.

    Under `vmap` JAX would want a mask for each head of each lane. Here lanes are folded into the batch, so that one
    mask serves all of them. The backward pass runs the forward one again instead of remembering it.

    Args:
      mask: as many as the batch, or one.
      implementation: as JAX names it.
    """

    def attention(q, k, v, mask):
        if mask is not None and mask.shape[0] not in (1, q.shape[0]):
            mask = jnp.tile(mask, (q.shape[0] // mask.shape[0], 1, 1, 1))
        return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=1.0, implementation=implementation)

    def back(q, k, v, mask, gradient):
        return jax.vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)[1](gradient)

    forward, backward = _lanes_as_batch(attention), _lanes_as_batch(back)
    differentiable: Any = jax.custom_vjp(forward)
    differentiable.defvjp(
        lambda *arguments: (forward(*arguments), arguments),
        lambda arguments, gradient: (*backward(*arguments, gradient), None),
    )
    return differentiable(q, k, v, mask)


def _lanes_as_batch(function: Callable) -> Callable:
    """`function(q, k, v, mask, ...)` whose `vmap` is the function itself on a larger first axis; masks stay as few."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def _(lanes, batched, *arguments):
        queries, many = arguments[0], batched[0]
        batch = queries.shape[1] if many else queries.shape[0]

        def fold(argument, has_lanes, number):
            if argument is None or (number == 3 and not has_lanes):
                return argument
            if number == 3:  # masks of each lane: as many as its batch, or they would serve another's
                argument = jnp.tile(argument, (1, batch // argument.shape[1], 1, 1, 1))
            if not has_lanes:
                argument = jnp.broadcast_to(argument, (lanes, *argument.shape))
            return argument.reshape(math.prod(argument.shape[:2]), *argument.shape[2:])

        folded = [fold(*pair, i) for i, pair in enumerate(zip(arguments, batched, strict=True))]
        out = jax.tree.map(lambda leaf: leaf.reshape(lanes, -1, *leaf.shape[1:]), mapped(*folded))
        return out, jax.tree.map(lambda _: True, out)

    return mapped
