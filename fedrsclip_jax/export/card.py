"""The model card of an exported classifier, in the manner of Hugging Face's: what it is, how good, and its limits."""

from datetime import date
from pathlib import Path
from typing import Any

from fedrsclip_jax.clip.preprocess import SETTINGS, SHORT_SIDE
from fedrsclip_jax.data.sources import split_spec
from fedrsclip_jax.export.certificate import versions
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.figures import Figures, few_classes
from fedrsclip_jax.export.linear import LinearHead
from fedrsclip_jax.export.places import place_name

FEW_IMAGES = 30  # below, one image is more than three percentage points

_TORCH = """```python
from torch_classifier import Classifier  # in this folder, or fedrsclip_jax.export.torch_classifier

classifier = Classifier.from_folder(".")
print(classifier.predict(["image.jpg"]))  # name and probability of the most likely class
```

PyTorch, transformers 5 and Pillow are enough. Images are RGB of any size. `Classifier.preprocess` prepares them as in
training: an image of {large} pixels or more on its short side is first reduced by means over blocks of pixels
(`image.reduce(short_side // {short})` in Pillow), then all go as `{settings}` says."""

_ONNX = """```python
import onnxruntime
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

image = Image.open("image.jpg").convert("RGB")
if min(image.size) >= {large}:
    image = image.reduce(min(image.size) // {short})  # as in training
pixels = CLIPImageProcessorPil.from_pretrained(".")([image], return_tensors="np")["pixel_values"]
(logits,) = onnxruntime.InferenceSession("classifier.onnx").run(["logits"], {{"pixel_values": pixels}})
```

Names of the classes are in `classifier.json`, in the order of the logits."""


def model_card(model: Model, kind: str, head: LinearHead, norms: Any, figures: Figures, tower: str) -> str:
    """The text of `README.md`.

    Args:
      kind: `classifier` or `onnx`.
      norms: of the weights, one a class.
      tower: where the image tower is, as a part of a sentence.
    """
    config, summary, names = model.run.config, model.run.summary, model.run.task.source.class_names
    backbone, dataset = place_name(config.backbone), _dataset(config.data.source)
    ours = config.backbone == "tiny"
    base = "" if ours or Path(config.backbone).expanduser().is_dir() else f"\nbase_model: {config.backbone}"
    use = {"classifier": _TORCH, "onnx": _ONNX}[kind].format(large=2 * SHORT_SIDE, short=SHORT_SIDE, settings=SETTINGS)
    return f"""---
license: {"apache-2.0" if ours else "other"}
pipeline_tag: image-classification{base}
tags: [clip, prompt-learning, federated-learning, remote-sensing]
---

# {config.method.name} on {dataset}: {model.name}
{_warnings(model, figures)}
{len(names)} classes on a frozen CLIP (`{backbone}`), learned by {config.method.name} in a federation of
{summary["num_clients"]} clients; this is {model.name} after round {model.round}.

## How good it is

{_scores(model, figures)}

## Use

{use}

## What it cannot do

- It names one of its {len(names)} classes whatever an image shows, and also where it shows none of them.
- {_calibration(figures)}
- Its figures are of images like those of `{dataset}`. Other sensors, seasons, resolutions and places were not tried.
{_limits_of_client(model, figures)}
## What is in it

{_content(kind, head, norms, tower)}
`certificate.json`: how far these logits are from those of the run, on how many images, and a digest of each file;
`fedrsclip verify FOLDER` checks it again.

## Licence

{_licence(ours, backbone, dataset)}

## Made

{_made(summary)}

## Classes

{", ".join(names)}
"""


def _dataset(spec: str) -> str:
    parts = [part.partition(":") for part in split_spec(spec)]
    return ", ".join(place_name(name) if kind == "folder" else f"{kind}{colon}{name}" for kind, colon, name in parts)


def _warnings(model: Model, figures: Figures) -> str:
    if not model.drawn:
        return "\n**This client never took part in training: its private prompt is its initial draw.**\n"
    if figures.trained_on is not None and few_classes(figures, len(model.run.task.source.class_names)):
        return (
            f"\n**This client trained on {len(figures.trained_on)} of {len(model.run.task.source.class_names)} classes "
            f"({', '.join(figures.trained_on)}). For images of all classes, export the federation's model.**\n"
        )
    return ""


def _scores(model: Model, figures: Figures) -> str:
    everyone = f"all {figures.split} images of all clients"
    rows = [
        ("this model", everyone, figures.images, figures.accuracy),
        ("zero-shot CLIP, a hand-written sentence a class", everyone, figures.images, figures.zero_shot),
    ]
    if model.client is not None:
        own = f"this client's own {figures.split} images"
        rows.insert(1, ("this model", own, figures.own_images, figures.own_accuracy))
    lines = ["| | on | images | accuracy |", "|---|---|---|---|"]
    for what, on, images, accuracy in rows:
        right = "not known" if accuracy is None else f"{100 * accuracy:.1f} %"
        lines.append(f"| {what} | {on} | {'not known' if images is None else images} | {right} |")
    if figures.macro_f1 is not None:
        lines += ["", f"Macro-F1 of this model on {everyone}: {100 * figures.macro_f1:.1f} %."]
    if model.client is not None:
        count = "not known to the run"
        if figures.trained_on is not None:
            total = len(model.run.task.source.class_names)
            count = f"{len(figures.trained_on)} of {total} ({', '.join(figures.trained_on) or 'none'})"
        lines += ["", f"Classes that this client trained on: {count}."]
    return "\n".join(lines)


def _calibration(figures: Figures) -> str:
    if figures.ece is None:
        return "How far its probabilities can be believed is not known: the calibration error was not measured."
    return (
        f"Its probabilities are off by {100 * figures.ece:.1f} percentage points on average (expected calibration "
        f"error in 15 bins, on all {figures.split} images)."
    )


def _limits_of_client(model: Model, figures: Figures) -> str:
    if model.client is None or figures.own_images is None or figures.own_images >= FEW_IMAGES:
        return ""
    if figures.own_images == 0:
        return f"- This client has no {figures.split} image of its own.\n"
    return (
        f"- Accuracy on the {figures.own_images} {figures.split} images of the client itself says little: one image is "
        f"{100 / figures.own_images:.0f} percentage points.\n"
    )


def _content(kind: str, head: LinearHead, norms: Any, tower: str) -> str:
    if kind == "onnx":
        return (
            "`classifier.onnx`: `pixel_values` [batch, 3, size, size], prepared as above, to `logits` [batch, "
            "classes],\nwith the image tower in it. `classifier.json`: class names and logit scale."
        )
    classes, embed = head.weights.shape
    bias = f", and `bias` [{classes}]" if head.bias.any() else ""
    added = " + bias[c]" if head.bias.any() else ""
    unit = "All norms are 1." if abs(norms - 1).max() < 1e-5 else f"Norms are {norms.min():.3f} to {norms.max():.3f}."
    return (
        f"`classifier.safetensors`: `weights` [{classes}, {embed}] of unit norm, `norms` [{classes}]{bias}. With an "
        f"image\nfeature f of unit norm, the logit of class c is `logit_scale * norms[c] * (f @ weights[c]){added}`. "
        f"{unit}\n"
        "`probe` is the image feature of a picture of zeros, by which another CLIP is told from the right one.\n"
        f"`classifier.json`: class names, logit scale, image tower; {tower}."
    )


def _licence(ours: bool, backbone: str, dataset: str) -> str:
    code = "`torch_classifier.py` and the embedded CLIP" if ours else "`torch_classifier.py`"
    rest = "" if ours else f" Image tower and class weights come from `{backbone}` and are under its licence."
    images = (
        "The drawn scenes that it learned from are, too."
        if dataset == "scenes"
        else f"Whether what was learned from the images of `{dataset}` may be passed on is for their licence to say."
    )
    return f"The code, {code}, is under Apache-2.0 like fedrsclip_jax.{rest} {images}"


def _made(summary: dict[str, Any]) -> str:
    def text(found: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in found.items())

    exported = f"Exported on {date.today().isoformat()} with {text(versions())}."
    made = summary.get("provenance")
    if not made:
        return f"{exported} The run has not recorded with which versions it was trained."
    trained = {name: made[name] for name in ("fedrsclip_jax", "jax", "flax", "python")}
    return f"{exported} Trained on {made['date'][:10]} with {text(trained)}, on {made['device']}."
