"""The formats, by the name that `--format` takes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedrsclip_jax.clip.preprocess import load_preprocess
from fedrsclip_jax.export import classifier, layouts, linear, onnx
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.figures import Figures
from fedrsclip_jax.export.pictures import Pictures


class Format(NamedTuple):
    """One format of a model.

    Attributes:
      accept: refuses methods none of whose models it can hold, by their name, before anything is loaded.
      check: refuses a model that it cannot hold, with an InputError.
      write: writes a model into an empty folder; the last arguments are its figures, for a card, and whether a copy of
        the image tower is asked for.
      run: logits of that folder in PyTorch; the last argument loads the run's CLIP there, once.
      alone: logits of images by the folder alone, without the run; None of formats that need its CLIP.
      needs: modules that writing takes beyond our own, and the extra that brings them.
    """

    accept: Callable[[str], None]
    check: Callable[[Model], None]
    write: Callable[[Model, Path, Figures, bool], None]
    run: Callable[[Model, Path, Pictures, Any], np.ndarray]
    alone: Callable[[Path, Sequence[np.ndarray]], np.ndarray] | None = None
    needs: tuple[str, ...] = ()
    extra: str = "torch"


def _prompts(
    kind: str, check: Callable[[Model, str], None], write: Callable[[Model, Path], None], *needs: str
) -> Format:
    def run(model: Model, folder: Path, pictures: Pictures, clip: Any) -> np.ndarray:
        from fedrsclip_jax.export import torch_prompts

        return torch_prompts.run(kind, model, folder, pictures, clip())

    return Format(
        lambda method: layouts.check_of_prompts(method, kind),
        lambda model: check(model, kind),
        lambda model, folder, figures, copied: write(model, folder),
        run,
        needs=needs,
    )


def _linear(model: Model) -> None:
    """Refuses a model whose logits are not what its method says, whether or not PyTorch is there to compare."""
    linear.read_off(model)


MODELS = {
    "coop": _prompts("coop", layouts.check_single, layouts.write_coop, "torch"),
    "fedotp": _prompts("fedotp", layouts.check_pair, layouts.write_fedotp, "torch"),
    "flip": _prompts("flip", layouts.check_single, layouts.write_flip, "torch"),
    "fedtpg": _prompts("fedtpg", layouts.check_single, layouts.write_fedtpg, "torch"),
    "safetensors": _prompts("safetensors", layouts.check_prompts, layouts.write_safetensors),
    "classifier": Format(
        lambda method: layouts.check_of_linear_head(method, "classifier"),
        _linear,
        classifier.write_classifier,
        lambda model, folder, pictures, clip: classifier.run_classifier(folder, pictures.images),
        classifier.run_classifier,
    ),
    "onnx": Format(
        lambda method: layouts.check_of_linear_head(method, "onnx"),
        _linear,
        lambda model, folder, figures, copied: onnx.write_onnx(model, folder, figures),
        lambda model, folder, pictures, clip: onnx.run_onnx(folder, pictures.pixels),
        lambda folder, images: onnx.run_onnx(folder, load_preprocess(folder)(images)),
        ("torch", "onnx", "onnxscript", "onnxruntime"),
        "onnx",
    ),
}
BACKBONE = "huggingface"
