"""`predictions.csv` of a run: what the federation's model says of each pooled test image after the last round."""

import csv
import io
from pathlib import Path

from fedrsclip_jax.data.sources import ImageSource
from fedrsclip_jax.evaluate import Answers
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.files import write_bytes

FILE = "predictions.csv"
COLUMNS = ("path", "truth", "guess", "probability", "model")


def write_predictions(federation: Federation, source: ImageSource, answers: Answers, folder: Path) -> None:
    """Writes a line an image.

    Args:
      source: of the images that the federation sees.
      answers: `Federation.answers()`. Of a method that shares nothing they are zero-shot CLIP's, and `model` says so.
    """
    model, names = "federation" if federation.traffic.params else "zero_shot", source.class_names
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS)
    for image, guess, probability in zip(federation.clients.pooled, *answers, strict=True):
        truth = names[federation.labels[image]]
        lines.writerow([source.name(int(image)), truth, names[guess], f"{probability:.6f}", model])
    write_bytes(folder / FILE, out.getvalue().encode(errors="surrogateescape"))
