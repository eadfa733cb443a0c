"""Images through the image tower of ViT-B/16, beside PyTorch on the same weights.

    python -m tests.benchmarks.encode [--batch 32] [--dtype float32] [--layers 12]

Random weights and pixels; both sides without a gradient and with all cores; PyTorch runs `transformers.CLIPModel`
eagerly. The achieved FLOP/s count the products that the class token's feature needs.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.memory import keep_freed_pages
from tests.benchmarks import openai_sizes, timing


def needed_flops(sizes: CLIPConfig) -> float:
    """Operations of one image: products alone, a multiply-add being two; the last block for the class token alone."""
    tower, d = sizes.vision, sizes.vision.width
    patches = (sizes.image_size // sizes.patch_size) ** 2
    tokens = patches + 1
    whole = 4 * d * d + 2 * d * tower.mlp_width
    dense = 3 * sizes.patch_size**2 * d * patches + (tower.layers - 1) * whole * tokens
    dense += 2 * d * d * tokens + whole - 2 * d * d + d * sizes.embed
    attention = 2 * d * ((tower.layers - 1) * tokens**2 + tokens)
    return 2.0 * (dense + attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true")
    arguments = parser.parse_args()

    began = time.perf_counter()
    keep_freed_pages()
    sizes = openai_sizes.config(arguments.layers)
    clip = openai_sizes.clip(sizes, arguments.dtype)
    model = None if arguments.no_torch else openai_sizes.in_torch(clip, sizes)
    print(timing.machine(*(["torch", "transformers"] if model is not None else [])), arguments.dtype, sep="; ")

    pixels = np.random.default_rng(0).normal(size=(arguments.batch, sizes.image_size, sizes.image_size, 3))
    pixels = jnp.asarray(pixels, jnp.float32)
    graph, weights = nnx.split(clip)
    # As images are encoded for a run: see `task`.
    encode = jax.jit(lambda weights, images: CLIP.encode_images(nnx.merge(graph, weights), images))
    calls = {"ours": partial(encode, weights, pixels)}
    if model is not None:
        import torch

        theirs = torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2).copy())

        def eager():
            with torch.no_grad():
                return model.get_image_features(pixel_values=theirs)

        calls["PyTorch"] = eager
        out = eager()
        out = getattr(out, "pooler_output", out)
        same = torch.nn.functional.normalize(out, dim=-1).numpy()
        np.testing.assert_allclose(np.asarray(calls["ours"]()), same, rtol=0, atol=1e-4)

    products = timing.large_products(arguments.dtype)
    taken = timing.seconds_each(
        calls | {name: made.call for name, made in products.items()}, arguments.repeats, warmup=1
    )
    ceiling, needed = timing.ceiling(products, taken), needed_flops(sizes) * arguments.batch
    rows = [
        [name, arguments.batch / taken[name], needed / taken[name] / 1e9, 100 * needed / taken[name] / ceiling]
        for name in calls
    ]
    timing.print_table(
        f"Images of {sizes.image_size} pixels in batches of {arguments.batch}; matrix products reach "
        f"{ceiling / 1e9:,.0f} GFLOP/s",
        ["tower", "images/s", "GFLOP/s", "% of ceiling"],
        rows,
    )
    record = {"images_per_second": arguments.batch / taken["ours"], "ceiling_share": needed / taken["ours"] / ceiling}
    if model is not None:
        record["speedup"] = taken["PyTorch"] / taken["ours"]
    timing.print_record("encode", ceiling_gflops=ceiling / 1e9, **record, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
