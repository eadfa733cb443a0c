"""A classifier for inference: class weights, and the image tower that they belong to; no text, no JAX."""

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from fedrsclip_jax.clip.huggingface import save_image_tower
from fedrsclip_jax.clip.preprocess import SETTINGS
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.pictures import Pictures
from fedrsclip_jax.files import write_json, write_text

FORMAT = "fedrsclip classifier 1"


def write_classifier(model: Model, folder: Path, with_backbone: bool) -> None:
    """Writes the folder that `torch_classifier.Classifier.from_folder` loads, which itself goes with it."""
    from fedrsclip_jax.export import __path__ as package

    task, config = model.run.task, model.run.config
    place, revision = _reference(config.backbone, task.folder)
    vectors = model.class_weights()
    norms = np.linalg.norm(vectors, axis=1)
    weights = vectors / np.maximum(norms, 1e-12)[:, None]
    path = folder / "classifier.safetensors"
    size = task.clip_config.image_size
    probe = np.asarray(task.clip.encode_image(jnp.zeros((1, size, size, 3))))[0]
    save_file({"weights": weights, "norms": norms, "probe": probe}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it readable for the owner alone
    copied = with_backbone or config.backbone == "tiny"  # which lies in the package, and nowhere else
    if copied:
        save_image_tower(task.clip, task.clip_config, folder / "image_tower")
    write_json(
        folder / "classifier.json",
        {
            "format": FORMAT,
            "class_names": list(task.source.class_names),
            "logit_scale": float(model.backbone.scale),
            "image_tower": "image_tower" if copied else place,
            "image_tower_revision": None if copied else revision,
            "backbone": config.backbone,
            "backbone_sha256": task.digest,
            "image_size": size,
        },
    )
    shutil.copyfile(task.folder / SETTINGS, folder / SETTINGS)
    shutil.copyfile(Path(package[0]) / "torch_classifier.py", folder / "torch_classifier.py")
    write_text(folder / "README.md", model_card(model, weights.shape, norms, copied))


def run_classifier(folder: Path, pictures: Pictures) -> np.ndarray:
    """Logits of an exported classifier in PyTorch, from the pictures as they come."""
    import torch

    from fedrsclip_jax.export.torch_classifier import Classifier
    from fedrsclip_jax.export.torch_prompts import quiet

    try:
        with quiet():
            classifier = Classifier.from_folder(folder)
    except ValueError as error:  # the backbone is no longer what it was when it was opened
        raise CheckError(" ".join(str(error).split())) from error
    with torch.inference_mode():
        return classifier(classifier.preprocess(pictures.images)).numpy()


def model_card(model: Model, shape: tuple[int, ...], norms: Float[np.ndarray, " classes"], copied: bool) -> str:
    """A card in the manner of Hugging Face's: what it is, whose, how good, how to load it."""
    config, summary, names = model.run.config, model.run.summary, model.run.task.source.class_names
    scores = _scores(model)
    tower = "a copy is in `image_tower`" if copied else "it is loaded from where `classifier.json` says"
    unit = "All norms are 1." if np.allclose(norms, 1, atol=1e-5) else (
        f"Norms are {norms.min():.3f} to {norms.max():.3f}: this model averages the logits of two prompts, and the "
        "mean of two text features is shorter than 1."
    )  # fmt: skip
    warning = "**This client never took part in training: its private prompt is its initial draw.**"
    untouched = "" if model.drawn else f"\n{warning}\n"
    public = config.backbone != "tiny" and not Path(config.backbone).expanduser().is_dir()
    base = f"\nbase_model: {config.backbone}" if public else ""
    return f"""---
pipeline_tag: image-classification{base}
tags: [clip, prompt-learning, federated-learning, remote-sensing]
---

# {config.method.name} on {config.data.source}: {model.name}
{untouched}
{len(names)} classes, told apart by prompts that were learned on a frozen CLIP (`{config.backbone}`) in a federation of
{summary["num_clients"]} clients; this is {model.name} after round {model.round}.
{scores}
## Use

```python
from torch_classifier import Classifier  # in this folder, or fedrsclip_jax.export.torch_classifier

classifier = Classifier.from_folder(".")
print(classifier.predict(["image.jpg"]))  # name and probability of the most likely class
```

PyTorch, transformers 5 and Pillow are enough. Images are 8-bit RGB of any size, prepared as `{SETTINGS}` says.

## What is in it

`classifier.safetensors`: `weights` [{shape[0]}, {shape[1]}], text features of unit norm, prompts already combined, and
`norms` [{shape[0]}]. With an image feature f of unit norm, the logit of class c is
`logit_scale * norms[c] * (f @ weights[c])`. {unit}
`probe` is the image feature of a picture of zeros, by which another CLIP is told from the right one.
`classifier.json`: class names, logit scale, image tower; {tower}.
`certificate.json`: how far these logits are from those of the run, on how many images.

## Classes

{", ".join(names)}
"""


def _scores(model: Model) -> str:
    """What the run's summary says of this model, where it is of the same round."""
    summary: dict[str, Any] = model.run.summary
    if model.round != summary["rounds"]:
        return ""
    if model.client is None:
        scores = summary["global"]
        accuracy, f1 = 100 * scores["accuracy"], 100 * scores["macro_f1"]
        return f"\nAccuracy {accuracy:.1f} % on all {summary['split']} images, macro-F1 {f1:.1f} %.\n"
    own = summary["personalised"]["per_client"]
    score = own[model.client] if len(own) == summary["num_clients"] else None
    return "" if score is None else f"\nAccuracy {100 * score:.1f} % on this client's own {summary['split']} images.\n"


def _reference(backbone: str, folder: Path) -> tuple[str, str | None]:
    """Where transformers finds a backbone again: a folder, or a Hugging Face name with its revision."""
    if Path(backbone).expanduser().is_dir():
        return str(Path(backbone).expanduser().resolve()), None
    return backbone, folder.name if folder.parent.name == "snapshots" else None
