"""One export, from a finished run to a folder that proves itself; read it from top to bottom."""

import difflib
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.export import certificate, huggingface_folder
from fedrsclip_jax.export.chosen import Model, choose
from fedrsclip_jax.export.formats import BACKBONE, MODELS
from fedrsclip_jax.export.output import Output
from fedrsclip_jax.export.pictures import Pictures, take
from fedrsclip_jax.files import write_json
from fedrsclip_jax.finished import FinishedRun, open_run, restore
from fedrsclip_jax.progress import Progress

FORMATS = (*MODELS, BACKBONE)


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
      workdir: folder of the run.
      format: one of `FORMATS`.
      output: the folder to write.
      client: whose model; None is the federation's.
      all_clients: the model of every client that took part, each in a folder of its own.
      checkpoint: `last`, `best` or a round.
      with_backbone: of a classifier, whether a copy of the image tower goes with it.
      overwrite: whether an earlier export in `output` may be replaced.
    """

    workdir: Path
    format: str
    output: Path
    client: int | None = None
    all_clients: bool = False
    checkpoint: str = "last"
    with_backbone: bool = False
    overwrite: bool = False


def export(request: Request, overrides: Sequence[tuple[str, str]], progress: Progress) -> list[dict[str, Any]]:
    """Writes `output`, or for all clients `output/client_K`, each with `certificate.json`.

    Args:
      overrides: keys that say where things lie now; see `finished.MOVABLE`.

    Returns:
      The certificates.

    Raises:
      InputError: something that cannot be exported like this.
      CheckError: what was exported does not give our logits; nothing is left of it then.
    """
    _check(request)
    output = Output(request.output, request.overwrite)
    # Towers in fp32 whatever the run's type: that is what the other side computes in.
    with jax.default_matmul_precision("highest"):
        run = open_run(request.workdir, overrides, images=False, dtype="float32")
        models = [] if request.format == BACKBONE else _models(request, run, progress)
        with output.staged() as folder:
            certificates = _write(request, run, models, folder, progress)
    return certificates


def _check(request: Request) -> None:
    """Refuses what is wrong whatever the run."""
    if request.format not in FORMATS:
        near = difflib.get_close_matches(request.format, FORMATS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"--format={request.format} is not one of {', '.join(FORMATS)}{hint}")
    if request.all_clients and request.client is not None:
        raise InputError(f"--client={request.client} and --all-clients exclude each other; give one of them")
    if request.format == BACKBONE:
        if request.all_clients or request.client is not None:
            raise InputError(f"--format={BACKBONE} is the frozen CLIP, the same for all clients; leave --client out")
        return
    needs = MODELS[request.format]
    for module in needs.needs:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"--format={request.format} needs the Python package {module}; run `pip install "
                f"fedrsclip_jax[{needs.extra}]`"
            ) from error


def _models(request: Request, run: FinishedRun, progress: Progress) -> list[Model]:
    restored = restore(run, request.checkpoint)
    clients: list[int | None] = [request.client]
    if request.all_clients:
        clients = restored.population.took_part.tolist()
        untouched = restored.population.size - len(clients)
        if not clients:
            choose(run, restored, 0)  # refuses a method without private prompts
            raise InputError("--all-clients: no client ever took part; export one with --client=K")
        if untouched:
            progress.say(f"{untouched} of {restored.population.size} clients never took part and are left out")
    models = [choose(run, restored, client) for client in clients]
    for model in models:
        MODELS[request.format].check(model)
    return models


def _write(
    request: Request, run: FinishedRun, models: list[Model], folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    pictures = take(run)
    if request.format == BACKBONE:
        huggingface_folder.write_backbone(run, folder)
        comparison = None
        if _has_torch():
            theirs = huggingface_folder.run_backbone(run, folder, pictures)
            comparison = _compare(huggingface_folder.zero_shot(run, pictures), theirs, run, pictures)
        return [_certify(request, run, None, folder, pictures, comparison)]

    kind, verified, certificates = MODELS[request.format], _has_torch(), []

    @functools.cache
    def torch_clip() -> Any:
        from fedrsclip_jax.export.torch_prompts import TorchCLIP

        return TorchCLIP(run.task.folder)

    with progress.track(f"exporting {request.format}", len(models), unit="models") as bar:
        for done, model in enumerate(models, 1):
            place = folder / f"client_{model.client:05d}" if request.all_clients else folder
            place.mkdir(exist_ok=True)
            kind.write(model, place, request.with_backbone)
            comparison = None
            if verified:
                theirs = kind.run(model, place, pictures, torch_clip)
                comparison = _compare(model.exported_logits(pictures.features), theirs, run, pictures)
            certificates.append(_certify(request, run, model, place, pictures, comparison))
            bar.advance_to(done)
    return certificates


def _compare(ours, theirs, run: FinishedRun, pictures: Pictures) -> dict[str, Any]:
    return certificate.compare(ours, theirs, pictures.names, run.task.source.class_names)


def _certify(
    request: Request, run: FinishedRun, model: Model | None, folder: Path, pictures: Pictures, comparison: Any
) -> dict[str, Any]:
    reason = "PyTorch is not installed; install fedrsclip_jax[torch] and export again to have it compared"
    written = certificate.certify(run, model, request.format, folder, pictures, comparison, reason)
    write_json(folder / certificate.FILE, written)
    return written


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
