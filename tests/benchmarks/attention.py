"""Our attention beside `jax.nn.dot_product_attention`, at the shapes of ViT-B/16's towers.

    python -m tests.benchmarks.attention [--dtype float32]

Text: forward and backward over the tokens of 21 classes behind 16 context tokens, masked; four clients together on a
CPU, 256 on an accelerator. Images: forward over four, or 256. JAX's is the one that it writes out itself ("xla").
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp

from fedrsclip_jax.clip.attention import attend, causal_mask
from tests.benchmarks import timing

ON_CPU = {"text": (4, 93, 8, 64), "images": (4, 197, 12, 64)}
ON_ACCELERATOR = {"text": (256, 96, 8, 64), "images": (256, 197, 12, 64)}


def theirs(q, k, v, mask=None):
    # Queries carry 1/sqrt(head) already, as ours do.
    return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[None, None], scale=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    dtype = parser.parse_args().dtype
    print(timing.machine(), dtype, sep="; ")
    began = time.perf_counter()
    rows, record = [], {}
    for tower, shape in (ON_CPU if jax.default_backend() == "cpu" else ON_ACCELERATOR).items():
        q, k, v = (jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 3))
        mask = causal_mask(shape[1])
        calls = {}
        for name, attention in (("ours", attend), ("jax.nn", theirs)):
            if tower == "text":
                run = jax.grad(
                    lambda q, k, v, a=attention, m=mask: jnp.sum(a(q, k, v, m).astype(jnp.float32)), (0, 1, 2)
                )
            else:
                run = attention
            calls[name] = partial(jax.jit(run), q, k, v)
        taken = timing.seconds_each(calls, repeats=30, warmup=3)
        record[f"{tower}_speedup"] = taken["jax.nn"] / taken["ours"]
        rows.append([tower, 1e3 * taken["ours"], 1e3 * taken["jax.nn"], record[f"{tower}_speedup"]])
    timing.print_table("Attention of one block, ms", ["tower", "ours", "jax.nn.dot_product_attention", "ratio"], rows)
    timing.print_record("attention", **record, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
