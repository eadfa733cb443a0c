"""The pictures on which an export is compared: the run's own, or some that need no run."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, UInt8

from fedrsclip_jax.clip.preprocess import load_preprocess
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.finished import FinishedRun

COUNT = 16
_REFERENCES = 4


@dataclass(frozen=True)
class Pictures:
    """Images as they come, and what our image tower makes of them.

    Attributes:
      images: RGB.
      names: what to call them in a message.
      origin: `run` or `random`.
      pixels: preprocessed.
      features: of unit norm.
    """

    images: list[UInt8[np.ndarray, "_h _w 3"]]
    names: list[str]
    origin: str
    pixels: Float[np.ndarray, "images size size 3"]
    features: Float[np.ndarray, "images embed"]


def take(run: FinishedRun, count: int = COUNT) -> Pictures:
    """Pictures spread evenly over the run's images, or random ones where these cannot be opened."""
    source, size = run.task.source, run.task.clip_config.image_size
    images, names = [], []
    for i in np.unique(np.linspace(0, max(len(source) - 1, 0), min(count, len(source))).astype(int)):
        try:
            images.append(source.image(int(i)))
            names.append(source.name(int(i)))
        except InputError:  # one that cannot be read; the others will do
            continue
    origin = "run" if images else "random"
    if not images:
        images = list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))
        names = [f"random image {i}" for i in range(count)]
    return Pictures(images, names, origin, *encode(run, images))


def encode(
    run: FinishedRun, images: list[UInt8[np.ndarray, "_h _w 3"]]
) -> tuple[Float[np.ndarray, "images size size 3"], Float[np.ndarray, "images embed"]]:
    """Images as the run's image tower sees them, and its features of unit norm."""
    prepare = load_preprocess(run.task.folder)
    pixels = prepare(images)
    return pixels, np.asarray(jax.jit(run.task.clip.encode_image)(pixels))


def references(size: int) -> list[UInt8[np.ndarray, "_h _w 3"]]:
    """A few pictures that follow from a formula, so that a certificate can be checked without the run.

    Args:
      size: pixels a side that the image tower looks at; the pictures are larger, of several shapes.
    """
    pictures = []
    for number in range(1, _REFERENCES + 1):
        y, x, channel = np.ogrid[: size + 7 * number, : size + 16 * number, :3]
        pictures.append(((3 * y * y // size + number * x + 85 * channel) % 256).astype(np.uint8))
    return pictures
