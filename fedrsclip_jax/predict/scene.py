"""A large picture read window by window: tiles, pixels as 8-bit RGB, and where tiles lie on the earth.

Rasterio (the extra `geo`) reads it, and a scene larger than memory is never held: a tile at a time, and once an
overview of at most 1024 pixels a side.
"""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from fedrsclip_jax.data import bands as raster
from fedrsclip_jax.errors import InputError, install

OVERVIEW = 1024  # pixels of the longer side
LEAST_VALID = 0.5  # share of a tile's pixels that hold data; below it, the tile is skipped


@dataclass(frozen=True)
class Tile:
    """A window of a scene.

    Attributes:
      column, row: of its upper left pixel.
      width, height: in pixels.
    """

    column: int
    row: int
    width: int
    height: int


def rasterio() -> Any:
    """The package.

    Raises:
      InputError: it is not installed.
    """
    try:
        return importlib.import_module("rasterio")
    except ImportError as error:
        raise InputError(f"a scene needs the Python package rasterio; run `{install('geo')}`") from error


def starts(size: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along a side of `size` pixels: every `stride`, and the last one so that it ends at the border.

    Every pixel is in a tile, no tile goes over the border, and none is padded. A side shorter than a tile has one
    tile of its own length.
    """
    last = max(size - tile, 0)
    return [*range(0, last, stride), last]


class Scene:
    """An open scene; for use in a `with`. Any thread may read.

    Attributes:
      path: of the file.
      tiles: row by row.
      name: of the coordinate system as GeoJSON's `crs` member has it; None where there is none.
      order: the bands that are taken for red, green, blue, where nobody says which they are; else None.
    """

    def __init__(self, path: Path, tile: int, stride: int, bands: Sequence[int] | None):
        """
        Args:
          tile, stride: pixels.
          bands: of red, green and blue, from 1; one is repeated. None is those that are called so; without names
            1, 2, 3, or 1 where there are fewer.

        Raises:
          InputError: a band that is not there.
          ValueError: the file cannot be read as a raster.
        """
        package = rasterio()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is no coordinate system is no fault
                dataset = package.open(path)
        except package.errors.RasterioError as error:
            raise ValueError(" ".join(str(error).split())) from error
        self.path, self._dataset, self._errors, self._lock = path, dataset, package.errors.RasterioError, Lock()
        self._window = package.windows.Window
        try:
            self._open(tile, stride, bands)
        except BaseException:
            dataset.close()
            raise

    def _open(self, tile: int, stride: int, bands: Sequence[int] | None) -> None:
        dataset = self._dataset
        count = dataset.count
        found = raster.of_dataset(dataset)
        chosen = tuple(bands) if bands else found.numbers
        self.order = None if bands or found.said else found.order
        if max(chosen) > count:
            raise InputError(
                f"--bands={','.join(map(str, chosen))}: {self.path} has bands 1 to {count}; give one or three of these"
            )
        kinds = {dataset.dtypes[band - 1] for band in chosen}
        if any(kind.startswith("complex") for kind in kinds):
            raise ValueError("its numbers are complex; convert it to intensities")
        if dataset.colorinterp[chosen[0] - 1].name == "palette":
            raise ValueError("its colours are a palette; convert it to RGB")
        self._bands = chosen if len(chosen) == 3 else chosen * 3
        self._limits = None
        self._scaled = kinds != {"uint8"}
        self.width, self.height = dataset.width, dataset.height
        self._transform = tuple(map(float, dataset.transform[:6]))  # x and y from column and row, an affine map
        self.name = None if dataset.crs is None else _crs_name(dataset.crs)
        self.tiles = [
            Tile(column, row, min(tile, self.width), min(tile, self.height))
            for row in starts(self.height, tile, stride)
            for column in starts(self.width, tile, stride)
        ]

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._dataset.close()

    def picture(self, tile: Tile) -> tuple[UInt8[np.ndarray, "height width 3"] | None, float]:
        """A tile as RGB, and the share of its pixels that hold data; the others take their mean.

        Returns:
          None for the picture where that share is less than `LEAST_VALID`.

        Raises:
          ValueError: it cannot be read.
        """
        self._scale()
        values, valid = self._read(window=self._window(tile.column, tile.row, tile.width, tile.height))
        share = float(valid.mean())
        return (self._rgb(values, valid) if share >= LEAST_VALID else None), share

    def overview(self) -> UInt8[np.ndarray, "height width 3"]:
        """The whole scene, at most `OVERVIEW` pixels a side; black where there is no data."""
        self._scale()
        values, valid = self._read(out_shape=self._overview_shape())
        picture = self._rgb(values, valid)
        picture[~valid] = 0
        return picture

    def polygon(self, tile: Tile) -> list[tuple[float, float]]:
        """The tile's corners in the scene's coordinates, counter-clockwise where north is up, the first one again."""
        left, top = tile.column, tile.row
        right, bottom = left + tile.width, top + tile.height
        corners = ((left, top), (left, bottom), (right, bottom), (right, top), (left, top))
        a, b, c, d, e, f = self._transform
        return [(a * column + b * row + c, d * column + e * row + f) for column, row in corners]

    def _overview_shape(self) -> tuple[int, int]:
        factor = max(self.width, self.height, OVERVIEW) / OVERVIEW
        return max(1, round(self.height / factor)), max(1, round(self.width / factor))

    def _scale(self) -> None:
        """Finds what becomes 0 and 255: of other than 8-bit data, percentiles of each band of the overview."""
        if self._limits is not None:
            return
        if not self._scaled:
            self._limits = np.zeros(3), np.full(3, 255.0)
            return
        values, valid = self._read(out_shape=self._overview_shape())
        self._limits = raster.limits(values, valid)

    def _read(self, **how: Any) -> tuple[np.ndarray, Bool[np.ndarray, "height width"]]:
        """Values [height, width, 3] of the chosen bands, and where all of them are data."""
        if "out_shape" in how:
            how["out_shape"] = (3, *how["out_shape"])
        try:
            with self._lock:
                return raster.read_bands(self._dataset, self._bands, **how)
        except self._errors as error:
            raise ValueError(" ".join(str(error).split())) from error

    def _rgb(self, values: np.ndarray, valid: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        assert self._limits is not None
        return raster.to_rgb(values, valid, self._limits)


def has_coordinates(path: Path, tile: int) -> bool:
    """Whether a TIFF has a coordinate system and is larger than a tile: then it is a scene.

    Raises:
      InputError: it looks like one, and rasterio is not installed.
    """
    try:
        package = rasterio()
    except InputError:
        if _geographic_tag(path):
            raise
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with package.open(path) as dataset:
                return dataset.crs is not None and max(dataset.width, dataset.height) > tile
    except package.errors.RasterioError:
        return False  # what is wrong with it is said when it is read


def _geographic_tag(path: Path) -> bool:
    """Whether Pillow finds GeoTIFF's directory of keys."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            return 34735 in getattr(picture, "tag_v2", {})
    except Exception:  # Pillow raises anything on what it does not know; it is named when it is read
        return False


def _crs_name(crs: Any) -> str:
    """As GDAL names it: a URN of the EPSG code, longitude first for 4326; else well-known text, which it reads too."""
    code = crs.to_epsg()
    if code == 4326:
        return "urn:ogc:def:crs:OGC:1.3:CRS84"
    return crs.to_wkt() if code is None else f"urn:ogc:def:crs:EPSG::{code}"
