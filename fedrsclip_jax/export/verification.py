"""An export held against its certificate once more: its files, and its logits in PyTorch."""

import functools
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedrsclip_jax.errors import CheckError, InputError
from fedrsclip_jax.export import certificate
from fedrsclip_jax.export.certificate import FILE, digest_of, versions
from fedrsclip_jax.export.chosen import choose
from fedrsclip_jax.export.exporter import UNVERIFIED, compare, has_torch, torch_clip
from fedrsclip_jax.export.formats import BACKBONE, MODELS
from fedrsclip_jax.export.pictures import references, take
from fedrsclip_jax.files import write_json
from fedrsclip_jax.finished import Restored, open_run, restore

_NO_TORCH = f"{UNVERIFIED}, in which logits are computed"


class Verified(NamedTuple):
    """What became of one folder.

    Attributes:
      files: how many are as the certificate says.
      comparison: of logits, with `images`; None where none was made.
      reason: why not.
    """

    files: int
    comparison: dict[str, Any] | None
    reason: str = ""


def verify(folder: Path, workdir: Path | None, overrides: Sequence[tuple[str, str]]) -> dict[Path, Verified]:
    """Checks an export, or those of all clients below `folder`.

    Logits are compared with those of the run in `workdir`, or, of a classifier, with those that its certificate holds
    of some pictures that need no run. A certificate that said `verified: false` says `true` from then on.

    Returns:
      The outcome for each folder with a certificate.

    Raises:
      InputError: there is no certificate, it is of another run, or it has never been verified and cannot be here.
      CheckError: a file has changed, or the logits differ.
    """
    if overrides and workdir is None:
        raise InputError(f"--config.{overrides[0][0]} is of a run; give its folder, too, by --workdir=DIR")
    folders = [folder] if (folder / FILE).is_file() else sorted(path.parent for path in folder.glob(f"client_*/{FILE}"))
    if not folders:
        raise InputError(f"{folder} holds no {FILE}; give a folder that `fedrsclip export` has written")
    held = {place: _read(place) for place in folders}
    for place, said in held.items():
        _check_files(place, said)
    # As the export was: in fp32, like the other side.
    with jax.default_matmul_precision("highest"):
        comparisons = _by_run(held, workdir, overrides) if workdir else {p: _alone(p, said) for p, said in held.items()}
    for place, found in comparisons.items():
        if found.comparison is None and not held[place]["verified"]:
            raise InputError(f"{place} was never verified, and cannot be: {found.reason}")
        if found.comparison is not None and not held[place]["verified"]:
            said = {name: value for name, value in held[place].items() if name != "reason"}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            later = {"verified": True, **found.comparison, "verified_later": {"date": now, "versions": versions()}}
            write_json(place / FILE, said | later)
    return comparisons


def _read(folder: Path) -> dict[str, Any]:
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        needed = {name: said[name] for name in ("format", "verified", "files", "run", "backbone_sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE} is no certificate ({error}); export again") from error
    if needed["format"] not in (*MODELS, BACKBONE):
        raise InputError(f"{folder / FILE} is of the format {needed['format']!r}, which this version does not know")
    return said


def _check_files(folder: Path, said: dict[str, Any]) -> None:
    for name, digest in said["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckError(f"{path} is missing, and {FILE} lists it; export again")
        if digest_of(path) != digest:
            raise CheckError(f"{path} is not the file that was exported: its sha256 is another; export again")


def _alone(folder: Path, said: dict[str, Any]) -> Verified:
    """Compares the logits of the folder itself with those that its certificate holds."""
    kind, count = said["format"], len(said["files"])
    alone = MODELS[kind].alone if kind in MODELS else None
    if alone is None or "reference_logits" not in said:
        return Verified(count, None, f"logits of {kind} are compared with its run's; give it by --workdir=DIR")
    if not has_torch():
        return Verified(count, None, _NO_TORCH)
    settings = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    pictures = references(settings["image_size"])
    try:
        theirs = alone(folder, pictures)
    except ImportError as error:
        return Verified(count, None, f"logits of {kind} need the Python package {error.name}")
    names = [f"reference picture {i}" for i in range(len(pictures))]
    found = certificate.compare(
        np.asarray(said["reference_logits"], np.float32), theirs, names, tuple(settings["class_names"])
    )
    return Verified(count, {**found, "images": {"count": len(pictures), "origin": "reference"}})


def _by_run(
    held: dict[Path, dict[str, Any]], workdir: Path, overrides: Sequence[tuple[str, str]]
) -> dict[Path, Verified]:
    """Compares the logits of exported folders with those of their run, as an export does."""
    run = open_run(workdir, overrides, images=False, dtype="float32")
    pictures, clip = take(run), torch_clip(run)

    @functools.cache
    def restored(number: int) -> Restored:
        try:
            return restore(run, str(number))
        except InputError:  # of an earlier round, the best one may be kept
            best = restore(run, "best")
            if best.round != number:
                raise
            return best

    comparisons = {}
    for folder, said in held.items():
        # Not the configuration as a whole, which changes when a run goes on for more rounds.
        of_run = {"method": run.config.method.name, "seed": run.config.seed}
        pairs = {name: (said["run"].get(name), value) for name, value in of_run.items()}
        pairs["backbone_sha256"] = said["backbone_sha256"], run.summary["backbone_sha256"]
        if others := [name for name, (theirs, ours) in pairs.items() if theirs != ours]:
            raise InputError(f"--workdir: {folder} was not exported from {workdir}, whose {others[0]} is another")
        count = len(said["files"])
        if not has_torch():
            comparisons[folder] = Verified(count, None, _NO_TORCH)
            continue
        model = None
        if said["format"] != BACKBONE:
            model = choose(run, restored(said["run"]["round"]), said["run"]["client"])
            prompts = None if model.prompts is None else model.prompts.digest
            if prompts != said.get("prompts_sha256"):
                raise InputError(f"--workdir: the prompts of {folder} are not those of the run in {workdir}")
        found = compare(said["format"], run, model, folder, pictures, clip)
        images = {"count": len(pictures.images), "origin": pictures.origin}
        comparisons[folder] = Verified(count, {**found, "images": images})
    return comparisons
