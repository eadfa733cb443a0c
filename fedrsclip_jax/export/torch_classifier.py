"""An exported classifier in PyTorch. Needs torch and transformers (with Pillow, to prepare images), and no JAX.

classifier = Classifier.from_folder("FOLDER")
classifier.predict(["scene.jpg"])  # [("river", 0.93)]
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection
from transformers.modeling_utils import load_state_dict
from transformers.models.clip import CLIPImageProcessorPil

FORMATS = ("fedrsclip classifier 1", "fedrsclip classifier 2")  # the first knows no bias
GDAL_METADATA = 42112  # TIFF's tag with the names of bands, by which training finds red, green and blue
SHORT_SIDE = 1024  # pixels that training leaves of a large picture at least, before it is resized


class ImageTower(CLIPVisionModelWithProjection):
    """The image tower of a CLIP folder, whose text tower is passed over without a word."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale"]  # noqa: RUF012


class Classifier(torch.nn.Module):
    """logits(i, c) = logit_scale x norm_c x (f_i . w_c) + b_c, with image features f_i and weights w_c of unit norm.

    norm_c is 1 of text features, except where a model averages the logits of two prompts: the mean of two text features
    is shorter. The bias b_c is zero of all models but linear probes.
    """

    def __init__(
        self,
        tower: Any,
        processor: Any,
        weights: torch.Tensor,
        factors: torch.Tensor,
        bias: torch.Tensor,
        names: Sequence[str],
    ):
        super().__init__()
        self.tower, self.processor, self.class_names = tower, processor, tuple(names)
        self.register_buffer("weights", weights)  # [classes, embed]
        self.register_buffer("factors", factors)  # [classes]: logit_scale x norm_c
        self.register_buffer("bias", bias)  # [classes]

    @classmethod
    def from_folder(cls, folder: str | Path, backbone: str | Path | None = None) -> "Classifier":
        """What `fedrsclip export --format=classifier` wrote; `backbone` says where the CLIP lies now, if it moved.

        Raises:
          OSError: the image tower is not where it was.
          ValueError: the CLIP that lies there is another one, or a newer version has written the folder.
        """
        folder = Path(folder)
        settings = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        if settings["format"] not in FORMATS:
            raise ValueError(f"{folder} is a {settings['format']!r}; use the torch_classifier.py that lies in it")
        tensors = load_state_dict(str(folder / "classifier.safetensors"))
        source, revision = settings["image_tower"], settings["image_tower_revision"]
        if (folder / "image_tower").is_dir():
            source, revision = folder / "image_tower", None
        if backbone is not None:
            source, revision = backbone, None
        chosen = {"revision": revision} if revision else {}
        try:
            tower = ImageTower.from_pretrained(source, dtype=torch.float32, **chosen).eval()
        except (OSError, ValueError) as error:
            raise OSError(
                f"the image tower of {folder} cannot be loaded from {source}; say where that CLIP lies by "
                "Classifier.from_folder(..., backbone=FOLDER), or export again with --with-backbone, which copies it"
            ) from error
        with torch.inference_mode():
            size: Any = tower.config.image_size
            probe = torch.nn.functional.normalize(tower(torch.zeros(1, 3, size, size)).image_embeds[0], dim=0)
        if probe.shape != tensors["probe"].shape or not torch.allclose(probe, tensors["probe"], atol=1e-3):
            raise ValueError(f"{source} is another CLIP than the one of {folder}; give the right one as `backbone`")
        factors = settings["logit_scale"] * tensors["norms"]
        bias = tensors.get("bias", torch.zeros_like(factors))
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        return cls(tower, processor, tensors["weights"], factors, bias, settings["class_names"])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits [images, classes] of preprocessed images [images, 3, height, width]."""
        features = self.tower(pixel_values=pixel_values).image_embeds
        features = features / features.norm(dim=-1, keepdim=True)
        return self.factors * (features @ self.weights.T) + self.bias

    def preprocess(self, images: Sequence[Any]) -> torch.Tensor:
        """Pixel values of images: paths, PIL images, or RGB arrays [height, width, 3] of 8 bits."""
        prepared = self.processor(
            [_rgb(image) for image in images], return_tensors="pt", input_data_format="channels_last"
        )
        return prepared["pixel_values"].to(self.weights.device)

    @torch.inference_mode()
    def predict(self, images: Sequence[Any]) -> list[tuple[str, float]]:
        """Name and probability of the most likely class of each image."""
        best = self(self.preprocess(images)).softmax(dim=-1).max(dim=-1)
        return [(self.class_names[i], float(p)) for i, p in zip(best.indices, best.values, strict=True)]


def _rgb(image: Any) -> Any:
    """An image as training reads it: 8-bit RGB, raw counts of one channel stretched, a large one by block means."""
    import numpy as np
    from PIL import Image  # transformers' own load_image turns pictures by their EXIF, unlike training

    if isinstance(image, (str, Path)):
        with Image.open(image) as opened:
            return _rgb(opened)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if 'role="description"' in str(getattr(picture, "tag_v2", {}).get(GDAL_METADATA, "")):
        raise ValueError("a TIFF with named bands, which may stand in any order: give red, green and blue as an array")
    if picture.mode.startswith("I") or picture.mode == "F":
        counts = np.nan_to_num(np.asarray(picture, np.float64), posinf=0.0, neginf=0.0)
        low, high = np.percentile(counts, (2, 98))
        grey = np.rint(np.clip((counts - low) * (255 / max(high - low, 1e-12)), 0, 255))
        picture = Image.fromarray(grey.astype(np.uint8))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    picture = picture.convert("RGB")
    factor = min(picture.size) // SHORT_SIDE
    return picture if factor < 2 else picture.reduce(factor)
