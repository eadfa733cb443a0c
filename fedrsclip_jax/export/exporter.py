"""One export, from a finished run to a folder that proves itself; read it from top to bottom."""

import difflib
import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fedrsclip_jax.config import Config
from fedrsclip_jax.errors import InputError, install
from fedrsclip_jax.export import certificate, huggingface_folder
from fedrsclip_jax.export.certificate import FILE, certify
from fedrsclip_jax.export.chosen import Model, choose
from fedrsclip_jax.export.figures import Scorer, remembered, warning
from fedrsclip_jax.export.formats import BACKBONE, MODELS
from fedrsclip_jax.export.output import Output
from fedrsclip_jax.export.pictures import Pictures, encode, references, take
from fedrsclip_jax.files import write_json
from fedrsclip_jax.finished import FinishedRun, open_run, restore
from fedrsclip_jax.progress import Progress

FORMATS = (*MODELS, BACKBONE)
UNVERIFIED = "PyTorch is not installed"


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
        run = open_run(
            request.workdir, overrides, images=False, dtype="float32", check=lambda c: _check_run(request, c)
        )
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
                f"--format={request.format} needs the Python package {module}; run `{install(needs.extra)}`"
            ) from error


def _check_run(request: Request, config: Config) -> None:
    """Refuses a method that the format cannot hold, before its images and backbone are opened."""
    if request.format != BACKBONE:
        MODELS[request.format].accept(config.method.name)


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
    pictures, clip = take(run), torch_clip(run)

    def certified(model: Model | None, place: Path, **more: Any) -> dict[str, Any]:
        comparison = compare(request.format, run, model, place, pictures, clip) if has_torch() else None
        written = certify(run, model, request.format, place, pictures, comparison, UNVERIFIED, **more)
        write_json(place / FILE, written)
        return written

    if request.format == BACKBONE:
        huggingface_folder.write_backbone(run, folder)
        return [certified(None, folder)]
    kind, scorer, certificates = MODELS[request.format], Scorer(run), []
    features = encode(run, references(run.task.clip_config.image_size))[1] if kind.alone else None
    with progress.track(f"exporting {request.format}", len(models), unit="models") as bar:
        for done, model in enumerate(models, 1):
            place = folder / f"client_{model.client:05d}" if request.all_clients else folder
            place.mkdir(exist_ok=True)
            figures = scorer.of(model) if kind.alone else remembered(run, model.round, model.client)
            kind.write(model, place, figures, request.with_backbone)
            said = warning(model, figures, "without --client, the federation's model is exported")
            answers = None if features is None else model.exported_logits(features)
            certificates.append(certified(model, place, warning=said, references=answers))
            bar.advance_to(done)
    return certificates


def compare(
    kind: str, run: FinishedRun, model: Model | None, folder: Path, pictures: Pictures, clip: Callable[[], Any]
) -> dict[str, Any]:
    """Logits of an exported folder in PyTorch beside ours; see `certificate.compare`.

    Args:
      model: what was exported; None is the backbone alone.
      clip: loads the run's CLIP in PyTorch; see `torch_clip`.
    """
    if model is None:
        ours, theirs = (
            huggingface_folder.zero_shot(run, pictures),
            huggingface_folder.run_backbone(run, folder, pictures),
        )
    else:
        ours = model.exported_logits(pictures.features)
        theirs = MODELS[kind].run(model, folder, pictures, clip)
    return certificate.compare(ours, theirs, pictures.names, run.task.source.class_names)


def torch_clip(run: FinishedRun) -> Callable[[], Any]:
    """Loads the run's CLIP in PyTorch when it is first asked for, once."""

    @functools.cache
    def load() -> Any:
        from fedrsclip_jax.export.torch_prompts import TorchCLIP

        return TorchCLIP(run.task.folder)

    return load


def has_torch() -> bool:
    """Whether an export can be compared here."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True
