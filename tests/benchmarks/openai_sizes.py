"""CLIP at the sizes of openai/clip-vit-base-patch16 with random weights, and the same weights in PyTorch."""

import tempfile
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from fedrsclip_jax.clip.huggingface import save_clip
from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.clip.transformer import TowerConfig
from tests.benchmarks import names, timing


def config(layers: int = 12) -> CLIPConfig:
    return CLIPConfig(
        text=TowerConfig(width=512, layers=layers, heads=8, mlp_width=2048),
        vision=TowerConfig(width=768, layers=layers, heads=12, mlp_width=3072),
        embed=512,
        vocabulary=49408,
        positions=77,
        image_size=224,
        patch_size=16,
        sos_id=names.SOS,
        eos_id=names.EOS,
    )


def clip(sizes: CLIPConfig, dtype: str) -> CLIP:
    made = CLIP(sizes, rngs=nnx.Rngs(0))
    graph, state = nnx.split(made)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(dtype), state))


def in_torch(ours: CLIP, sizes: CLIPConfig) -> Any | None:
    """`transformers.CLIPModel` of the same weights, frozen, on all cores; None where it cannot be compared."""
    if jax.default_backend() != "cpu":
        print("JAX runs on an accelerator: no comparison with PyTorch on the processor")
        return None
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: the ratios are left out")
        return None
    import transformers

    torch.set_num_threads(timing.cores())
    with tempfile.TemporaryDirectory() as folder:
        save_clip(ours, sizes, Path(folder))
        model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval().requires_grad_(False)
