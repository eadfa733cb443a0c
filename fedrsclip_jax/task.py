"""What runs on one data set share: the images as frozen features, and the frozen text side of CLIP.

Images pass through the image tower here, once; nothing downstream opens one again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fedrsclip_jax.clip import huggingface, preprocess, tokenizer
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import CLIP, CLIPConfig
from fedrsclip_jax.config import Config, MethodConfig
from fedrsclip_jax.data import features, scenes, sources
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.progress import Progress

ENCODE_BATCH = 128


@dataclass(frozen=True)
class Task:
    """A data set seen through a frozen CLIP.

    Attributes:
      source: the images, for names, domains and digests.
      features: of the image tower, memory-mapped.
      clip, clip_config, words: the backbone and its tokenizer.
      digest: of the backbone's weights.
      seconds: spent on encoding.
    """

    source: sources.ImageSource
    features: features.Features
    clip: CLIP
    clip_config: CLIPConfig
    words: Any
    digest: str
    seconds: float

    @property
    def labels(self) -> Int[np.ndarray, " images"]:
        return self.source.labels

    def backbone(self, method: MethodConfig) -> Backbone:
        """The text side, bound to the class names, with room for the method's context."""
        context = method.context_tokens * (2 if method.combine == "concat" else 1)
        names = self.source.class_names
        suffixes = tokenizer.suffixes(self.words, names, self.clip_config, context)
        texts = [tokenizer.TEMPLATE.format(name) for name in names]
        zero_shot = self.clip.encode_text(jnp.asarray(tokenizer.tokenize(self.words, texts, self.clip_config)))
        return Backbone(
            self.clip.text,
            jnp.exp(self.clip.logit_scale[...]),
            suffixes,
            zero_shot,
            method.class_position,
        )

    def context_start(self, method: MethodConfig) -> Float[Array, "context width"] | None:
        """Embeddings of the words of `method.context_init`; None where there are none."""
        if not method.context_init:
            return None
        ids = tokenizer.words(self.words, method.context_init)
        if len(ids) != method.context_tokens:
            raise InputError(
                f"method.context_init = {method.context_init!r} has {len(ids)} tokens; set method.context_tokens = "
                f"{len(ids)} (it is {method.context_tokens})"
            )
        return self.clip.text.token[...][jnp.asarray(ids)].astype(jnp.float32)


def load_source(config: Config) -> sources.ImageSource:
    """The images that a configuration names, half of them where it says so."""
    data = config.data
    source = sources.open_source(
        data.source,
        scenes_count=data.scenes.count,
        scenes_size=data.image_size,
        scenes_domains=data.scenes.domains or scenes.FEDERATION,
        seed=data.scenes.seed,
        data_dir=data.tfds_dir or None,
    )
    if data.half == "all":
        return source
    return sources.half(source, "pretrain" if data.half == "pretrain" else "federate", data.half_seed)


def load_task(config: Config, progress: Progress, cache_dir: Path | None = None) -> Task:
    """Loads backbone and images, and encodes the images unless the cache has them.

    Raises:
      InputError: the backbone or the data cannot be used.
    """
    source = load_source(config)
    folder = huggingface.resolve(config.backbone)
    clip, clip_config = huggingface.load_clip(folder, config.dtype)
    words = tokenizer.load_tokenizer(folder)
    prepare, settings = preprocess.load_preprocess(folder)
    digest = huggingface.weights_digest(folder)
    began = time.perf_counter()
    views = config.data.views
    total = len(source) * (views + 1 if views > 1 else 1)
    with progress.track("encoding images", total, unit="images") as bar:
        encoded = features.encode(
            source,
            _encoder(clip, prepare),
            key={"weights": digest, "preprocess": settings, "dtype": config.dtype},
            views=views,
            seed=config.data.scenes.seed,
            cache_dir=cache_dir or features.default_cache_dir(),
            batch_size=ENCODE_BATCH,
            skip_unreadable=config.data.skip_unreadable,
            progress=lambda done, _: bar.advance_to(done),
        )
    unreadable = int(np.sum(~encoded.readable))
    if unreadable:
        progress.say(f"{unreadable} of {len(source)} images could not be read and are left out")
    return Task(source, encoded, clip, clip_config, words, digest, time.perf_counter() - began)


def _encoder(clip: CLIP, prepare: preprocess.Preprocess):
    """Maps lists of pictures to unit-norm features; batches are padded to one size, so that it compiles once."""
    graph, weights = nnx.split(clip)
    encode = jax.jit(lambda weights, images: nnx.merge(graph, weights).encode_image(images))

    def encoder(images):
        ready = prepare(images)
        padded = np.zeros((ENCODE_BATCH, *ready.shape[1:]), np.float32)
        padded[: len(ready)] = ready
        return np.asarray(encode(weights, padded))[: len(ready)]

    return encoder
