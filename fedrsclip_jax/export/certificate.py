"""The comparison that ends an export: our logits beside those of the exported thing, on the same pictures."""

import hashlib
import importlib.metadata
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fedrsclip_jax import __version__
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.export.pictures import Pictures
from fedrsclip_jax.export.places import place_name, source_name
from fedrsclip_jax.finished import FinishedRun

FILE = "certificate.json"
TOLERANCE = 1e-3  # of logits, which are about 100 x cosines: 1e-5 of their range, in fp32
_LIBRARIES = ("jax", "jaxlib", "flax", "torch", "transformers", "safetensors", "onnx", "onnxruntime", "numpy")


def compare(
    ours: Float[np.ndarray, "images classes"],
    theirs: Float[np.ndarray, "images classes"],
    images: list[str],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """What a certificate says of two sets of logits.

    Raises:
      CheckError: they differ by more than `TOLERANCE`, or in the predicted class where ours leads by more than that.
    """
    # NaN is no small difference.
    difference = np.nan_to_num(np.abs(ours.astype(np.float64) - theirs), nan=np.inf)
    row, column = np.unravel_index(np.argmax(difference), difference.shape)
    guess, other = ours.argmax(axis=1), theirs.argmax(axis=1)
    lead = ours[np.arange(len(ours)), guess] - ours[np.arange(len(ours)), other]
    if difference[row, column] > TOLERANCE:
        raise CheckError(
            f"logits differ by {difference[row, column]:.2g}, more than {TOLERANCE:g}: of {images[row]}, for class "
            f"{classes[column]!r}, JAX gives {ours[row, column]:.6g} and the export {theirs[row, column]:.6g}; nothing "
            "is kept of it"
        )
    if lead.max() > TOLERANCE:
        row = int(lead.argmax())
        raise CheckError(
            f"predicted classes differ: of {images[row]}, JAX says {classes[guess[row]]!r}, by {lead[row]:.2g}, and "
            f"the export {classes[other[row]]!r}; nothing is kept of it"
        )
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "predicted_class_agreement": float(np.mean(guess == other)),
    }


def certify(
    run: FinishedRun,
    model: Model | None,
    kind: str,
    folder: Path,
    pictures: Pictures,
    comparison: dict[str, Any] | None,
    reason: str = "",
    warning: str | None = None,
    references: Float[np.ndarray, "images classes"] | None = None,
) -> dict[str, Any]:
    """The certificate of one exported folder.

    Args:
      model: what was exported; None is the backbone alone.
      comparison: of `compare`; None where nothing was compared, and `reason` says why.
      warning: what whoever uses the export should know.
      references: our logits of `pictures.references`, so that the folder can be checked by itself.
    """
    verified = comparison is not None
    return {
        "format": kind,
        "verified": verified,
        **(comparison if comparison is not None else {"reason": reason}),
        "tolerance": TOLERANCE,
        **({} if model is None or model.grid is None else {"compared": "mean of the prompts' logits on whole images"}),
        **({} if warning is None else {"warning": warning}),
        "images": {"count": len(pictures.images) if verified else 0, "origin": pictures.origin},
        "classes": len(run.task.source.class_names),
        "run": {
            "method": run.config.method.name,
            "dataset": source_name(run.config.data.source),
            "backbone": place_name(run.config.backbone),
            "seed": run.config.seed,
            **({} if model is None else {"round": model.round, "client": model.client, "took_part": model.drawn}),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "prompts_sha256": None if model is None or model.prompts is None else model.prompts.digest,
        "backbone_sha256": run.summary["backbone_sha256"],
        "config_sha256": run.summary["config_sha256"],
        "files": {
            path.relative_to(folder).as_posix(): digest_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
        "versions": versions(),
        **({} if references is None else {"reference_logits": references.astype(float).tolist()}),
    }


def digest_of(path: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that take part, as far as they are installed."""
    # Our own is that of the code that runs: what is installed in place keeps the number of the day it was installed.
    found = {"python": platform.python_version(), "fedrsclip_jax": __version__}
    for library in _LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
