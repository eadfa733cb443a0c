"""Image files to RGB pictures."""

import io

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data import bands
from fedrsclip_jax.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")
MOST_PIXELS = 100_000_000  # of a picture: eight are decoded at a time
SKIP_HINT = "repair or remove it, or skip such images with --config.data.skip_unreadable=True"


class TooLarge(ValueError):
    """A picture of more than `MOST_PIXELS`; another reader would refuse it, too."""


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to RGB.

    Grey and palette pictures become RGB and an alpha channel is dropped. One-channel pictures of more than
    8 bits are stretched between their 2nd and 98th percentile, as is usual for raw sensor counts; of 16-bit
    *colour*, Pillow reads the high bytes only. Of TIFFs the bands called red, green and blue are taken. TIFFs and
    JPEG 2000 that Pillow does not read, such as those of many bands, are read by rasterio where it is installed.

    Raises:
        ValueError: the bytes are not a complete image of a known format.
    """
    try:
        return _decode(data)
    except TooLarge:
        raise
    except ValueError as error:
        if not bands.is_raster(data):
            raise
        try:
            return bands.read_raster(data, MOST_PIXELS)
        except ImportError:
            raise ValueError(f"{error}; where it has several bands: pip install rasterio, which reads it") from error


def _decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """By Pillow."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise TooLarge(
                    f"{picture.width:,} x {picture.height:,} pixels are more than {MOST_PIXELS:,}; cut it into tiles"
                )
            picture.load()
            if picture.mode.startswith("I") or picture.mode == "F":
                return _stretch(np.asarray(picture))
            if "transparency" in picture.info:
                picture = picture.convert("RGBA")
            if picture.format == "TIFF" and picture.mode in ("RGB", "RGBA"):
                names = bands.names_in_tiff(getattr(picture, "tag_v2", {}), len(picture.getbands()))
                if (order := bands.by_names(names)) is not None:
                    return np.ascontiguousarray(np.asarray(picture)[..., [number - 1 for number in order]])
            return np.array(picture.convert("RGB"))
    except (MemoryError, TooLarge):
        raise
    except Image.DecompressionBombError as error:  # so many that Pillow opens no such file
        raise TooLarge(f"{error}; cut it into tiles") from error
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise ValueError("not an image of a known format") from error
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on damaged files.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def unreadable(name: str, error: Exception) -> InputError:
    """What to say of an image that cannot be decoded."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"cannot read image {name} ({reason}); {SKIP_HINT}")


def _stretch(raw: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(raw.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = np.percentile(values, (2, 98))
    values -= low
    values *= 255 / max(high - low, 1e-12)
    grey = np.rint(np.clip(values, 0.0, 255.0, out=values), out=values).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
