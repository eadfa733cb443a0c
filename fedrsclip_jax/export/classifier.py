"""A classifier for inference: class weights, and the image tower that they belong to; no text, no JAX."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from safetensors.numpy import save_file

from fedrsclip_jax.clip.huggingface import save_image_tower
from fedrsclip_jax.clip.preprocess import SETTINGS, SHORT_SIDE
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export import linear
from fedrsclip_jax.export.card import model_card
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.figures import Figures
from fedrsclip_jax.export.places import place_name
from fedrsclip_jax.files import write_json, write_text
from fedrsclip_jax.methods.base import head_of

FORMAT = "fedrsclip classifier 2"


def write_classifier(
    model: Model, folder: Path, figures: Figures, with_backbone: bool, kind: str = "classifier"
) -> None:
    """Writes the folder that `torch_classifier.Classifier.from_folder` loads, which itself goes with it.

    The image tower is named where everybody finds it under that name, on Hugging Face, and else copied: the embedded
    one lies in this package, and a folder of this machine is none of the next.

    Args:
      figures: for the model card.
      kind: whose card it is: `classifier`, or `onnx`, to whose export this is a step.

    Raises:
      CheckError: the model is more than weights and a bias.
    """
    from fedrsclip_jax.export import __path__ as package

    task, config = model.run.task, model.run.config
    head = linear.read_off(model)
    norms = np.linalg.norm(head.weights, axis=1)
    tensors = {"weights": head.weights / np.maximum(norms, 1e-12)[:, None], "norms": norms}
    if head_of(model.module).bias:
        tensors["bias"] = head.bias
    size = task.clip_config.image_size
    tensors["probe"] = np.asarray(task.clip.encode_image(jnp.zeros((1, size, size, 3))))[0]
    path = folder / "classifier.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it readable for the owner alone
    copied = with_backbone or config.backbone == "tiny" or Path(config.backbone).expanduser().is_dir()
    if copied:
        save_image_tower(task.clip, task.clip_config, folder / "image_tower")
    write_json(
        folder / "classifier.json",
        {
            "format": FORMAT,
            "class_names": list(task.source.class_names),
            "logit_scale": float(model.backbone.scale),
            "image_tower": "image_tower" if copied else config.backbone,
            "image_tower_revision": None if copied else _revision(task.folder),
            "backbone": place_name(config.backbone),
            "backbone_sha256": task.digest,
            "image_size": size,
            "reduced_to": SHORT_SIDE,
        },
    )
    shutil.copyfile(task.folder / SETTINGS, folder / SETTINGS)
    shutil.copyfile(Path(package[0]) / "torch_classifier.py", folder / "torch_classifier.py")
    where = "a copy is in `image_tower`" if copied else f"`{config.backbone}` on Hugging Face"
    write_text(folder / "README.md", model_card(model, kind, head, norms, figures, where))


def run_classifier(folder: Path, images: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> np.ndarray:
    """Logits of an exported classifier in PyTorch, from images as they come."""
    import torch

    from fedrsclip_jax.export.torch_classifier import Classifier
    from fedrsclip_jax.export.torch_prompts import quiet

    try:
        with quiet():
            classifier = Classifier.from_folder(folder)
    except (OSError, ValueError) as error:  # the backbone is no longer what or where it was
        raise CheckError(" ".join(str(error).split())) from error
    with torch.inference_mode():
        return classifier(classifier.preprocess(images)).numpy()


def _revision(folder: Path) -> str | None:
    """The revision of a Hugging Face name, which its folder in the cache is called by."""
    return folder.name if folder.parent.name == "snapshots" else None
