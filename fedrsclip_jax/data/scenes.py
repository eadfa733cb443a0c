"""Procedural labelled aerial scenes: sixteen land-use classes seen from above, drawn on the fly.

They stand in for a data set where none is at hand; the small CLIP can be pretrained on any number of them.
The scenes vary in place, scale, direction, palette, land cover and shadow, and borrow from each other (trees,
roads, houses, fields), so that a small network is right about nine times in ten rather than always.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data import built, landscapes
from fedrsclip_jax.data.looks import DOMAINS, FEDERATION, Look, alter, known
from fedrsclip_jax.data.pen import Pen, noise
from fedrsclip_jax.errors import InputError

VERSION = 1  # part of every digest: bump it when a drawing or `alter` changes

_PAINTERS: dict[str, Callable[[Pen], None]] = {
    "river": landscapes.river,
    "forest": landscapes.forest,
    "harbor": built.harbor,
    "runway": built.runway,
    "storage tanks": built.storage_tanks,
    "circular farmland": landscapes.circular_farmland,
    "rectangular farmland": landscapes.rectangular_farmland,
    "dense residential": built.dense_residential,
    "sparse residential": built.sparse_residential,
    "parking lot": built.parking_lot,
    "beach": landscapes.beach,
    "freeway": built.freeway,
    "baseball diamond": built.baseball_diamond,
    "lake": landscapes.lake,
    "desert": landscapes.desert,
    "roundabout": built.roundabout,
}
CLASSES: tuple[str, ...] = tuple(_PAINTERS)


def draw(class_name: str, rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """A clean scene of this class, by summer daylight; the same generator state gives the same pixels.

    Raises:
      InputError: the class is not one of CLASSES.
    """
    pen = Pen(rng, size)
    _PAINTERS[known(class_name, CLASSES, "scene class")](pen)
    image = np.asarray(pen.image.reduce(2), np.float32)
    # The world is not flat colour: surfaces vary over metres, and a lens never gives two equal pixels.
    texture = 0.05 * noise(rng, size, (7, 16, 37)) + 0.025 * rng.standard_normal((size, size), np.float32)
    return np.clip(image * (1 + texture[..., None]) + 0.5, 0, 255).astype(np.uint8)


class Scenes:
    """Labelled scenes seen by several sensors: a data source whose images are made when they are asked for.

    Attributes:
      class_names: the classes, in the order of the labels.
      labels: int32 [N], every class equally often (image i is of class i mod C).
      domain_names: the sensor domains, in the order of `domains`.
      domains: int32 [N], every domain equally often within every class.
      digests: a hexadecimal digest per image of all that determines its pixels.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0, domains: Sequence[str] = FEDERATION):
        """
        Args:
          count: number of images, at least 1.
          size: side in pixels, at least 16.
          seed: not negative; another seed gives other scenes.
          domains: names from looks.DOMAINS.
        """
        for what, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{what} of the scenes is {value}; it must be at least {least}")
        if not domains or isinstance(domains, str):
            raise InputError(f"domains of the scenes are {domains!r}; give names, such as ('dust', 'dusk')")
        self.size, self.seed = size, seed
        self.class_names = CLASSES
        self.domain_names = tuple(known(name, DOMAINS, "domain") for name in domains)
        number = np.arange(count)
        self.labels = (number % len(CLASSES)).astype(np.int32)
        # One domain for a whole run through the classes: domain and class are independent.
        self.domains = (number // len(CLASSES) % len(self.domain_names)).astype(np.int32)
        of_domain = [f"scenes {VERSION} {seed} {size} {DOMAINS[name]}" for name in self.domain_names]
        self.digests = [
            hashlib.sha256(f"{of_domain[domain]} {i}".encode()).hexdigest()
            for i, domain in enumerate(self.domains.tolist())
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def _look_and_rngs(self, i: int) -> tuple[Look, np.random.Generator, np.random.Generator]:
        if not 0 <= i < len(self):
            raise IndexError(f"scenes image {i} of {len(self)}")
        # Two streams, so that the same scene can be seen by another sensor.
        scene, sensor = np.random.default_rng((self.seed, i)).spawn(2)
        look = DOMAINS[self.domain_names[self.domains[i]]].sample(sensor)
        return look, scene, sensor

    def look(self, i: int) -> Look:
        """The look of image i, for its caption."""
        return self._look_and_rngs(i)[0]

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Image i: a pure function of (seed, i), whatever was asked for before."""
        look, scene, sensor = self._look_and_rngs(i)
        return alter(draw(CLASSES[self.labels[i]], scene, self.size), look, sensor)

    def name(self, i: int) -> str:
        """Image i in an error message."""
        return f"scenes image {i}"
