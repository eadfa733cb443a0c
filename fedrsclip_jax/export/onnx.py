"""A classifier with its image tower as one ONNX file, through PyTorch's exporter."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fedrsclip_jax.clip.preprocess import SETTINGS
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.classifier import write_classifier
from fedrsclip_jax.export.figures import Figures
from fedrsclip_jax.files import write_json

FILE = "classifier.onnx"
INPUT, OUTPUT = "pixel_values", "logits"


def write_onnx(model: Model, folder: Path, figures: Figures) -> None:
    """Writes `classifier.onnx`: pixel_values [batch, 3, size, size], preprocessed, to logits [batch, classes].

    Class names are in its metadata; `classifier.json`, a model card and the preprocessing settings go with it.
    """
    import onnx
    import torch

    from fedrsclip_jax.export.torch_classifier import Classifier
    from fedrsclip_jax.export.torch_prompts import quiet

    size = model.run.task.clip_config.image_size
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name)
        write_classifier(model, whole, figures, with_backbone=True, kind="onnx")
        with quiet():
            classifier = Classifier.from_folder(whole)
        settings = json.loads((whole / "classifier.json").read_text(encoding="utf-8"))
        for name in (SETTINGS, "README.md"):
            shutil.copyfile(whole / name, folder / name)
    # The image tower is in the graph.
    held = {key: value for key, value in settings.items() if not key.startswith("image_tower")}
    write_json(folder / "classifier.json", held)
    with _quiet_exporter():
        torch.onnx.export(
            classifier,
            (torch.zeros(2, 3, size, size),),
            folder / FILE,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(folder / FILE)
    onnx.helper.set_model_props(
        graph, {"class_names": json.dumps(classifier.class_names, ensure_ascii=False), "round": str(model.round)}
    )
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, folder / FILE)


def run_onnx(folder: Path, prepared: Float[np.ndarray, "images size size 3"]) -> np.ndarray:
    """Logits of an exported file in onnxruntime: of the first picture alone, and of the others as one batch."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    pixels = np.ascontiguousarray(np.moveaxis(prepared, -1, 1))
    parts = [part for part in (pixels[:1], pixels[1:]) if len(part)]
    return np.concatenate([session.run([OUTPUT], {INPUT: part})[0] for part in parts])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's words about its own future and about libraries that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
