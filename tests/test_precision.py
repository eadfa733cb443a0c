"""What accelerators are told about products: programs lowered for GPUs and TPUs, and read."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fedrsclip_jax.clip.huggingface import load_clip
from fedrsclip_jax.clip.precision import ARITHMETIC
from fedrsclip_jax.config import Config, keys, resolve
from fedrsclip_jax.federated.round import run_rounds
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images, images_to_encode, load_task
from tests import toy

PLATFORMS = ("cuda", "tpu")
EXPECTED = {"float32": {"HIGHEST"}, "tensorfloat32": {"HIGH"}, "bfloat16": {"DEFAULT"}}


def products(function, *arguments) -> list[tuple[str, str]]:
    """Type of a factor and precision of every product, in a program for GPUs and in one for TPUs."""
    found = []
    for platform in PLATFORMS:
        with jax.numpy_dtype_promotion("standard"):  # Flax mixes types in a layer normalisation of bfloat16
            text = jax.export.export(function, platforms=[platform])(*arguments).mlir_module()
        assert "stablehlo.convolution" not in text
        lines = [line for line in text.splitlines() if "stablehlo.dot" in line]
        assert lines
        for line in lines:
            kinds = re.findall(r"tensor<(?:\d+x)*(\w+)>", line.rsplit(" : ", 1)[1])
            precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
            assert precision is None or precision[1] == precision[2]
            found.append(
                ("f32" if set(kinds[:2]) == {"f32"} else "bf16", "DEFAULT" if precision is None else precision[1])
            )
    return found


@pytest.mark.parametrize("dtype", ARITHMETIC)
def test_towers_compute_as_dtype_says(tiny_folder, dtype):
    clip, config = load_clip(tiny_folder, dtype)
    graph, weights = nnx.split(clip)
    side = config.image_size

    @jax.jit
    def encode(weights, images, tokens):
        clip = nnx.merge(graph, weights)
        return clip.encode_images(images), clip.encode_images(images, 2), clip.encode_text(tokens)

    found = products(encode, weights, jnp.zeros((3, side, side, 3)), jnp.zeros((2, 9), jnp.int32))
    assert {precision for _, precision in found} == EXPECTED[dtype]
    assert {kind for kind, _ in found} == {"bf16" if dtype == "bfloat16" else "f32"}


def in_a_round(folder, name: str, dtype: str) -> list[str]:
    frozen = toy.backbone(folder, dtype=dtype)
    frozen.transposed = nnx.data(None)  # as it is where there is an accelerator
    config = toy.settings(**{"method.name": name})
    g = toy.Game(partial(METHODS[name], config.method, frozen), config, frozen, toy.dataset_for(name))
    return [precision for _, precision in products(run_rounds, *g.arguments())]


@pytest.mark.parametrize("name", METHODS)
def test_rounds_in_float32_compute_every_product_in_full(tiny_folder, name):
    assert set(in_a_round(tiny_folder, name, "float32")) == {"HIGHEST"}


@pytest.mark.parametrize("name", ["fedrsclip", "fedpgp"])
def test_rounds_in_less_compute_all_but_the_towers_in_full(tiny_folder, name):
    rounded, half = (in_a_round(tiny_folder, name, dtype) for dtype in ("tensorfloat32", "bfloat16"))
    assert set(rounded) == {"HIGHEST", "HIGH"}
    assert set(half) == {"HIGHEST", "DEFAULT"}
    assert rounded.count("HIGHEST") == half.count("HIGHEST")


def test_products_of_a_method_of_ones_own_are_in_full(tiny_folder):
    class Plain(METHODS["linear_probe"]):
        def loss(self, batch, backbone, weights):
            logits = batch.features @ self.kernel[...].T
            return jnp.mean(logits**2), {"ce": jnp.mean(logits)}

    frozen, config = toy.backbone(tiny_folder), toy.settings()
    g = toy.Game(partial(Plain, config.method, frozen), config, frozen, toy.dataset())
    assert {precision for _, precision in products(run_rounds, *g.arguments())} == {"HIGHEST"}


def test_every_choice_of_the_key_is_an_arithmetic():
    assert {name: f.metadata["among"] for name, _, f in keys(Config)}["dtype"] == tuple(ARITHMETIC)


def test_features_that_are_computed_otherwise_are_others_in_the_cache(tiny_folder, tmp_path, monkeypatch):
    """Where products are rounded those of one kind of device are not those of another."""
    monkeypatch.setenv("FEDRSCLIP_CACHE", str(tmp_path))
    keys = {"backbone": str(tiny_folder), "data.scenes.count": "32", "data.image_size": "16"}
    configs = {name: resolve(Config, {}, [*keys.items(), ("dtype", name)]) for name in ARITHMETIC}
    tasks = {name: load_task(config) for name, config in configs.items()}

    def missing(platform: str) -> dict[str, int]:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return {name: images_to_encode(configs[name], tasks[name]) for name in ARITHMETIC}

    assert missing("cpu") == {"float32": 32, "tensorfloat32": 32, "bfloat16": 32}
    encode_images(configs["float32"], tasks["float32"], Progress(quiet=True))
    assert missing("cpu") == {"float32": 0, "tensorfloat32": 32, "bfloat16": 32}
    encode_images(configs["tensorfloat32"], tasks["tensorfloat32"], Progress(quiet=True))
    assert missing("cpu") == {"float32": 0, "tensorfloat32": 0, "bfloat16": 32}
    for other in ("gpu", "tpu"):
        assert missing(other) == {"float32": 0, "tensorfloat32": 32, "bfloat16": 32}
