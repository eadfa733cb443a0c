"""The formats, by the name that `--format` takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedrsclip_jax.export import classifier, layouts, onnx
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.pictures import Pictures


class Format(NamedTuple):
    """One format of a model.

    Attributes:
      check: refuses a model that it cannot hold, with an InputError.
      write: writes a model into an empty folder.
      run: logits of that folder in PyTorch; the last argument loads the run's CLIP there, once.
      needs: modules that writing takes beyond our own, and the extra that brings them.
    """

    check: Callable[[Model], None]
    write: Callable[..., None]
    run: Callable[[Model, Path, Pictures, Any], np.ndarray]
    needs: tuple[str, ...] = ()
    extra: str = "torch"


def _prompts(
    kind: str, check: Callable[[Model, str], None], write: Callable[[Model, Path], None], *needs: str
) -> Format:
    def run(model: Model, folder: Path, pictures: Pictures, clip: Any) -> np.ndarray:
        from fedrsclip_jax.export import torch_prompts

        return torch_prompts.run(kind, model, folder, pictures, clip())

    return Format(lambda model: check(model, kind), lambda model, folder, copied: write(model, folder), run, needs)


MODELS = {
    "coop": _prompts("coop", layouts.check_single, layouts.write_coop, "torch"),
    "fedotp": _prompts("fedotp", layouts.check_pair, layouts.write_fedotp, "torch"),
    "flip": _prompts("flip", layouts.check_single, layouts.write_flip, "torch"),
    "fedtpg": _prompts("fedtpg", layouts.check_single, layouts.write_fedtpg, "torch"),
    "safetensors": _prompts("safetensors", layouts.check_prompts, layouts.write_safetensors),
    "classifier": Format(
        lambda model: layouts.check_linear(model, "classifier"),
        classifier.write_classifier,
        lambda model, folder, pictures, clip: classifier.run_classifier(folder, pictures),
    ),
    "onnx": Format(
        lambda model: layouts.check_linear(model, "onnx"),
        lambda model, folder, copied: onnx.write_onnx(model, folder),
        lambda model, folder, pictures, clip: onnx.run_onnx(folder, pictures),
        ("torch", "onnx", "onnxscript", "onnxruntime"),
        "onnx",
    ),
}
BACKBONE = "huggingface"
