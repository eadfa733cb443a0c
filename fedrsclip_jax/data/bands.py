"""Which bands of a raster are red, green and blue: by their names, by their colours, or else in the order they have."""

import importlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float32, UInt8

RASTERS = (".tif", ".tiff", ".jp2")
PERCENTILES = (2, 98)  # of each band, which become 0 and 255 where numbers are not of 8 bits
_COLOURS = ("red", "green", "blue")
_GDAL_METADATA = 42112  # TIFF's tag with the names of bands


class Bands(NamedTuple):
    """Bands to show.

    Attributes:
      numbers: of red, green and blue from 1, or of the only one.
      said: whether the file says so; if not, they are the first ones.
    """

    numbers: tuple[int, ...]
    said: bool

    @property
    def order(self) -> str:
        """For people."""
        return f"{', '.join(map(str, self.numbers))} are taken for red, green, blue"


def choose(names: Sequence[str | None], colours: Sequence[str]) -> Bands:
    """Bands by what a file says of each.

    Args:
      names: descriptions such as `blue`, `B04 (red)` or None; what they say comes first.
      colours: GDAL's interpretation, such as `red`, `gray` or `undefined`.
    """
    for said in (by_names(names), by_names(colours)):
        if said is not None:
            return Bands(said, True)
    return Bands((1, 2, 3), False) if len(names) >= 3 else Bands((1,), True)


def by_names(names: Sequence[str | None]) -> tuple[int, ...] | None:
    """Numbers of the bands that are called red, green and blue; None unless there is one of each."""
    numbers = []
    for colour in _COLOURS:
        found = [number for number, name in enumerate(names, 1) if _is_called(name, colour)]
        if len(found) != 1:
            return None
        numbers += found
    return tuple(numbers)


def _is_called(name: str | None, colour: str) -> bool:
    words = re.findall(r"[a-z]+", (name or "").lower())
    # Red edge and infra-red are other bands.
    return words == [colour[0]] or (colour in words and not {"edge", "infra"} & set(words))


def names_in_tiff(tags: Any, samples: int) -> list[str | None]:
    """Names of bands as GDAL writes them into a TIFF; `tags` are Pillow's."""
    names: list[str | None] = [None] * samples
    try:
        for item in ElementTree.fromstring(str(tags.get(_GDAL_METADATA, "")).strip("\0 \n")):
            number = int(item.get("sample", -1))
            if item.get("role") == "description" and 0 <= number < samples:
                names[number] = item.text
    except (ElementTree.ParseError, ValueError):
        pass  # what is no such description names nothing
    return names


def rasterio() -> Any:
    """The package; ImportError where it is not installed."""
    return importlib.import_module("rasterio")


def is_raster(data: bytes) -> bool:
    """Whether bytes begin like a TIFF or a JPEG 2000."""
    starts = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
    return data.startswith(starts)


def read_raster(data: bytes, most_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """A TIFF or JPEG 2000 as RGB, through rasterio: several bands of more than 8 bits, which Pillow does not read.

    Raises:
      ImportError: rasterio is not installed.
      ValueError: it cannot be read, or has more pixels.
    """
    package = rasterio()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no coordinate system is no fault
            with package.MemoryFile(data) as file, file.open() as dataset:
                if dataset.width * dataset.height > most_pixels:
                    size = f"{dataset.width:,} x {dataset.height:,}"
                    raise ValueError(f"{size} pixels are more than {most_pixels:,}; cut it into tiles")
                chosen = of_dataset(dataset)
                values, valid = read_bands(dataset, chosen.numbers)
                plain = all(dataset.dtypes[number - 1] == "uint8" for number in chosen.numbers)
    except package.errors.RasterioError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return to_rgb(values, valid, (np.zeros(3), np.full(3, 255.0)) if plain else limits(values, valid))


def of_dataset(dataset: Any) -> Bands:
    """Bands of an open dataset of rasterio."""
    return choose(dataset.descriptions, [colour.name for colour in dataset.colorinterp])


def guessed(path: Path) -> str | None:
    """The order of bands that is taken of a file that does not say; None where it does, or cannot be looked into."""
    try:
        package = rasterio()
    except ImportError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with package.open(path) as dataset:
                chosen = of_dataset(dataset)
    except package.errors.RasterioError:
        return None
    return None if chosen.said else chosen.order


def read_bands(
    dataset: Any, numbers: Sequence[int], **how: Any
) -> tuple[Float32[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """Values of three bands, or of one three times, and where all of them are data.

    Args:
      how: of rasterio's `read`, such as a window.
    """
    masked = dataset.read([*numbers] * (3 // len(numbers)), masked=not _mistaken_for_alpha(dataset), **how)
    if not isinstance(masked, np.ma.MaskedArray) and dataset.nodata is not None:
        masked = np.ma.masked_equal(masked, dataset.nodata)
    with np.errstate(over="ignore"):  # what no single precision holds is infinite, and no data
        values = np.moveaxis(np.ma.filled(masked, 0).astype(np.float32), 0, -1)
    return values, np.asarray(~np.ma.getmaskarray(masked).any(axis=0) & np.isfinite(values).all(axis=-1))


def _mistaken_for_alpha(dataset: Any) -> bool:
    """Whether a band counts as transparency that has a name of its own: GDAL does so with the fourth of four bytes."""
    pairs = zip(dataset.colorinterp, dataset.descriptions, strict=True)
    return any(colour.name == "alpha" and name and "alpha" not in name.lower() for colour, name in pairs)


def limits(values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What becomes 0 and 255: percentiles of each band."""
    if not valid.any():
        return np.zeros(3), np.ones(3)
    low, high = np.percentile(values[valid], PERCENTILES, axis=0)
    return low, high


def to_rgb(
    values: Float32[np.ndarray, "height width 3"],
    valid: Bool[np.ndarray, "height width"],
    ends: tuple[np.ndarray, np.ndarray],
) -> UInt8[np.ndarray, "height width 3"]:
    """Bytes between two ends of each band; pixels without data take the others' mean."""
    low, high = (np.asarray(limit, np.float32) for limit in ends)
    # Numbers that are none are out of `valid`, and of no account.
    stretched = (np.where(valid[..., None], values, low) - low) * (255 / np.maximum(high - low, 1e-12))
    if valid.any() and not valid.all():
        stretched[~valid] = np.clip(stretched[valid], 0, 255).mean(axis=0)
    return np.rint(np.clip(stretched, 0, 255)).astype(np.uint8)
