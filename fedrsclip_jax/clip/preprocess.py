"""Images as CLIP wants them: large ones reduced, then resized, cropped and normalised by `preprocessor_config.json`.

What `load_preprocess` returns is the one way to prepare an image: for training, answers, certificates, and, written out
once more in `export.torch_classifier` for where there is no JAX, in exported classifiers.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fedrsclip_jax.errors import InputError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images, RGB in 0 to 1
STD = (0.26862954, 0.26130258, 0.27577711)
SETTINGS = "preprocessor_config.json"
SHORT_SIDE = 1024  # pixels that a large picture keeps at least, several times what any CLIP looks at

Preprocess = Callable[[Sequence[UInt8[np.ndarray, "_h _w 3"]]], Float[np.ndarray, "batch size size 3"]]


def load_preprocess(folder: Path) -> Preprocess:
    """The image preprocessing of a CLIP folder.

    Raises:
      InputError: the settings are missing or cannot be used.
    """
    settings = _settings(folder)
    # Seconds where PyTorch is installed, as transformers then loads much of it.
    from transformers.models.clip import CLIPImageProcessorPil

    try:
        processor = CLIPImageProcessorPil(
            **{k: v for k, v in settings.items() if k not in ("image_processor_type", "feature_extractor_type")}
        )
    except Exception as error:  # settings that transformers refuses
        raise _unusable(folder, error) from error

    def preprocess(images):
        small = [shrink(image) for image in images]
        pixels = processor(small, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        return np.moveaxis(np.asarray(pixels, np.float32), 1, -1)

    return preprocess


def settings_digest(folder: Path) -> str:
    """sha256 of the settings of a CLIP folder's preprocessing, which name cached features.

    Raises:
      InputError: the settings are missing or cannot be read.
    """
    return hashlib.sha256(json.dumps(_settings(folder), sort_keys=True).encode()).hexdigest()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    if not path.is_file():
        raise InputError(f"backbone: {folder} has no {SETTINGS}; download the whole folder")
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"{type(settings).__name__} instead of an object")
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    return settings


def _unusable(folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"backbone: {folder / SETTINGS} cannot be used ({reason}); download the folder again")


def shrink(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "_height _width 3"]:
    """A large picture by means over blocks of pixels, with `SHORT_SIDE` or more on its short side; others as they are.

    So what waits for the encoder does not grow with the pictures on the disk. A picture that was shrunk stays as it is.
    """
    factor = min(image.shape[:2]) // SHORT_SIDE
    if factor < 2:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).reduce(factor))


def save_preprocess(folder: Path, size: int) -> None:
    """Writes the settings of OpenAI's preprocessing for images of `size` pixels."""
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def normalise(images: UInt8[np.ndarray, "batch size size 3"]) -> Float[np.ndarray, "batch size size 3"]:
    """Images already of the right size, scaled and normalised with OpenAI's mean and deviation."""
    return ((images / np.float32(255) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)).astype(np.float32)
