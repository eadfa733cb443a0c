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


class ImageTower(CLIPVisionModelWithProjection):
    """The image tower of a CLIP folder, whose text tower is passed over without a word."""

    _keys_to_ignore_on_load_unexpected = [r"^text_", r"^logit_scale"]  # noqa: RUF012


class Classifier(torch.nn.Module):
    """logits(i, c) = logit_scale x norm_c x (f_i . w_c), with image features f_i and class weights w_c of unit norm.

    norm_c is 1, except where a model averages the logits of two prompts: the mean of two text features is shorter.
    """

    def __init__(self, tower: Any, processor: Any, weights: torch.Tensor, factors: torch.Tensor, names: Sequence[str]):
        super().__init__()
        self.tower, self.processor, self.class_names = tower, processor, tuple(names)
        self.register_buffer("weights", weights)  # [classes, embed]
        self.register_buffer("factors", factors)  # [classes]: logit_scale x norm_c

    @classmethod
    def from_folder(cls, folder: str | Path, backbone: str | Path | None = None) -> "Classifier":
        """What `fedrsclip export --format=classifier` wrote; `backbone` says where the CLIP lies now, if it moved."""
        folder = Path(folder)
        settings = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        tensors = load_state_dict(str(folder / "classifier.safetensors"))
        source, revision = settings["image_tower"], settings["image_tower_revision"]
        if (folder / "image_tower").is_dir():
            source, revision = folder / "image_tower", None
        if backbone is not None:
            source, revision = backbone, None
        chosen = {"revision": revision} if revision else {}
        tower = ImageTower.from_pretrained(source, dtype=torch.float32, **chosen).eval()
        with torch.inference_mode():
            size: Any = tower.config.image_size
            probe = torch.nn.functional.normalize(tower(torch.zeros(1, 3, size, size)).image_embeds[0], dim=0)
        if probe.shape != tensors["probe"].shape or not torch.allclose(probe, tensors["probe"], atol=1e-3):
            raise ValueError(f"{source} is another CLIP than the one of {folder}; give the right one as `backbone`")
        factors = settings["logit_scale"] * tensors["norms"]
        processor = CLIPImageProcessorPil.from_pretrained(folder)
        return cls(tower, processor, tensors["weights"], factors, settings["class_names"])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits [images, classes] of preprocessed images [images, 3, height, width]."""
        features = self.tower(pixel_values=pixel_values).image_embeds
        features = features / features.norm(dim=-1, keepdim=True)
        return self.factors * (features @ self.weights.T)

    def preprocess(self, images: Sequence[Any]) -> torch.Tensor:
        """Pixel values of images: paths, PIL images, or RGB arrays [height, width, 3] of 8 bits."""
        from PIL import Image  # transformers' own load_image turns pictures by their EXIF, unlike training

        opened = [Image.open(image) if isinstance(image, (str, Path)) else image for image in images]
        prepared = self.processor(opened, return_tensors="pt", input_data_format="channels_last")
        return prepared["pixel_values"].to(self.weights.device)

    @torch.inference_mode()
    def predict(self, images: Sequence[Any]) -> list[tuple[str, float]]:
        """Name and probability of the most likely class of each image."""
        best = self(self.preprocess(images)).softmax(dim=-1).max(dim=-1)
        return [(self.class_names[i], float(p)) for i, p in zip(best.indices, best.values, strict=True)]
