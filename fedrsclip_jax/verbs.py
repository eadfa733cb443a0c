"""What each verb of the command line does. JAX is imported inside a verb, after its words have been checked."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.interrupt import Interrupt


def say(message: str) -> None:
    """One line on standard error, by the first of several processes."""
    if distributed.first():
        print(f"fedrsclip: {' '.join(message.splitlines())}", file=sys.stderr)


def _workdir(given: Path | None, config: str) -> Path:
    return given or Path("runs") / f"{Path(config.partition(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def train(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration
    from fedrsclip_jax import workdir

    with distributed.together():
        own = workdir.own_configuration(known.workdir) if known.workdir and not known.config else None
        file = known.config or ("" if own else str(configuration.default_file()))
        written = own or configuration.load_file(file)
        config = configuration.resolve(configuration.Config, written, overrides)
    known.workdir = _workdir(known.workdir, file)

    from rich.console import Console

    from fedrsclip_jax import comparison, compilation, forecast
    from fedrsclip_jax.progress import Progress

    quiet = known.quiet or not distributed.first()
    allowed = [key for key in known.allow_changed.split(",") if key]
    if known.dry_run:
        told = forecast.forecast(config, known.workdir, Progress(quiet=quiet), allowed)
        if distributed.first():
            forecast.show(told, Console())
        return
    compilation.keep_on_disk()
    progress = Progress(quiet=quiet)
    if own:
        progress.say(f"{known.workdir}: with the configuration that it was started with")
    with Interrupt(quiet=quiet) as interrupt:
        result = comparison.compare(
            config, known.workdir, progress, interrupt, allowed, tensorboard=known.tensorboard, report=known.report
        )
    if distributed.first():
        comparison.show(result, Console())
        print(f"results in {known.workdir}")
    comparison.check_converged(result)


def sweep(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration
    from fedrsclip_jax import grid

    read = grid.read(configuration.load_file(known.config), overrides)
    known.workdir = _workdir(known.workdir, known.config)
    _as_devices()

    from rich.console import Console

    from fedrsclip_jax import compilation, forecast
    from fedrsclip_jax.progress import Progress
    from fedrsclip_jax.report.sweep import show
    from fedrsclip_jax.sweep import sweep

    progress = Progress(quiet=known.quiet)
    if read.left_out:
        progress.say(read.left_out)
    allowed = [key for key in known.allow_changed.split(",") if key]
    if known.dry_run:
        forecast.show(forecast.forecast_sweep(read, known.workdir, progress, allowed), Console())
        return
    compilation.keep_on_disk()
    with Interrupt(quiet=known.quiet) as interrupt:
        result = sweep(
            read, known.workdir, progress, interrupt, allowed, tensorboard=known.tensorboard, report=known.report
        )
    show(result, Console())
    print(f"results in {known.workdir}")


def _as_devices() -> None:
    """Lets JAX, which has not started, see a CPU as several devices, unless the user has said how many.

    Products of small towers keep no two cores busy, and one run's waits are another's work: two devices a core, up to
    eight, as each holds the frozen weights.
    """
    flag = "--xla_force_host_platform_device_count"
    said = os.environ.get("XLA_FLAGS", "")
    if flag not in said and hasattr(os, "sched_getaffinity"):
        os.environ["XLA_FLAGS"] = f"{said} {flag}={min(2 * len(os.sched_getaffinity(0)), 8)}".strip()


def evaluate(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from rich.console import Console

    from fedrsclip_jax import comparison, compilation, rescore
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    quiet = known.quiet or not distributed.first()
    result = rescore.rescore(
        known.workdir, overrides, Progress(quiet=quiet), checkpoint=known.checkpoint, split=known.split
    )
    if distributed.first():
        print(f"after round {result['round']}")
        if result["beside"]:
            print(result["beside"])
        comparison.show(result, Console())


def export(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import compilation
    from fedrsclip_jax.export.exporter import Request, export
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    chosen = {name: value for name, value in vars(known).items() if name in Request.__dataclass_fields__}
    certificates = export(Request(**chosen), overrides, Progress(quiet=known.quiet))
    worst = max(certificates, key=lambda certificate: certificate.get("max_abs_difference", 0.0))
    if worst["verified"]:
        print(_compared(worst))
    said = [certificate["warning"] for certificate in certificates if "warning" in certificate]
    if len(certificates) == 1 and said:
        print(f"warning: {said[0]}")
    elif said:
        print(f"warning: {len(said)} of {len(certificates)} clients trained on fewer than half of the classes")
    unverified = "" if worst["verified"] else f", not verified: {worst['reason']}; later, run `fedrsclip verify`"
    print(f"{known.format} in {known.output}{unverified}")


def _compared(certificate: dict[str, Any]) -> str:
    what = {"run": "images of the run", "random": "random images", "reference": "reference pictures"}
    images = certificate["images"]
    return (
        f"logits within {certificate['max_abs_difference']:.1e} of ours on {images['count']} {what[images['origin']]}, "
        "predicted classes equal"
    )


def verify(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import compilation
    from fedrsclip_jax.export.verification import verify

    compilation.keep_on_disk()
    for folder, found in verify(known.folder, known.workdir, overrides).items():
        logits = _compared(found.comparison) if found.comparison else f"logits were not compared again: {found.reason}"
        print(f"{folder}: {found.files} files are as certified; {logits}")


def predict(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import compilation
    from fedrsclip_jax.predict.predictor import Request, predict
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    chosen = {name: value for name, value in vars(known).items() if name in Request.__dataclass_fields__}
    # A bar in a terminal would stand between the lines that are printed there.
    mixed = known.output is None and sys.stdout.isatty()
    outcome = predict(Request(**chosen), overrides, Progress(quiet=known.quiet or mixed))
    sys.stdout.flush()
    for note in outcome.notes:
        say(note)
    for file in outcome.files:
        say(f"wrote {file}") if known.output is None else print(file)


def pretrain(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration

    config = configuration.resolve(configuration.PretrainConfig, configuration.load_file(known.config), overrides)
    workdir = _workdir(known.workdir, known.config)

    from fedrsclip_jax.memory import keep_freed_pages

    keep_freed_pages()  # before JAX starts its threads, each of which would get a heap of its own

    from fedrsclip_jax import compilation
    from fedrsclip_jax.pretrain import pretrain
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    result = pretrain(config, workdir, Progress(quiet=known.quiet))
    print(
        f"zero-shot {100 * result['zero_shot_accuracy_held_out']:.1f} % on {result['held_out']} held-out images "
        f"(chance {100 * result['chance']:.1f} %), {result['parameters'] / 1e6:.1f} M parameters, "
        f"{result['seconds']:.0f} s\nbackbone in {workdir}"
    )


def report(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    if overrides:
        raise InputError(f"--config.{overrides[0][0]}: a report is of what has been run; leave it out")
    from fedrsclip_jax.report.page import FILE, write_joint_report, write_report

    alone = len(known.workdir) == 1
    output = known.output or (known.workdir[0] if alone else Path()) / FILE
    if known.output and output.exists():
        raise InputError(f"--output: {output} is there already; name a new file, so that nothing is overwritten")
    if not alone and not known.output:
        raise InputError("--output: one page on several runs needs a place; give --output=FILE.html")
    if known.output and not output.absolute().parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}; give FILE.html in one that is there")
    if alone:
        write_report(known.workdir[0], output)
    else:
        write_joint_report(known.workdir, output)
    print(f"report in {output}")


def data(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration
    from fedrsclip_jax.data.sources import named_spec, split_spec

    if known.name is not None:
        overrides = [*overrides, ("data.source", named_spec(known.name))]
    written = configuration.load_file(known.config) if known.config else {}
    config = configuration.resolve(configuration.Config, written, overrides)
    if known.output and (known.output.suffix.lower() != ".png" or not known.output.absolute().parent.is_dir()):
        raise InputError(f"--output: {known.output} cannot be written; give FILE.png in a folder that is there")

    from fedrsclip_jax.data.preparation import prepare

    for spec in split_spec(config.data.source):
        kind, _, name = spec.partition(":")
        if kind == "tfds" and name:
            prepare(name, config.data.tfds_dir or None, quiet=known.quiet)

    from rich.console import Console

    from fedrsclip_jax import task
    from fedrsclip_jax.files import write_bytes
    from fedrsclip_jax.report import dataset

    source = task.seen(config, task.load_source(config.data))
    try:
        clients, refusal = task.divide_images(config, source), None
    except InputError as error:  # the images are worth a look nevertheless
        clients, refusal = None, error
    domains = task.client_domains(config, source, clients) if clients is not None else None
    found = dataset.describe(config, source, clients, domains)
    dataset.show(found, Console())
    if refusal is not None:
        of_images = [name for name, _ in overrides if name.startswith("data.")]
        asked = len(of_images) < len(overrides) or {"data.split", "data.test_fraction"} & {*of_images}
        if asked or known.config or known.output:
            raise refusal
        print(f"clients: the default split and partition do not fit these images ({refusal})")
    if known.output:
        write_bytes(known.output, dataset.picture(found))
        print(f"picture in {known.output}")


def cache(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    if overrides:
        raise InputError(f"--config.{overrides[0][0]}: caches are those of all configurations; leave it out")
    for flag, value in (("--days", known.days), ("--most", known.most)):
        if value is not None and not known.trim:
            raise InputError(f"{flag}={value:g} says what to delete; add --trim")
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{flag}={value:g} is out of range; give 0 or more")

    from rich.console import Console

    from fedrsclip_jax import caches
    from fedrsclip_jax.data.features import default_cache_dir

    folder = default_cache_dir()
    gone = []
    if known.trim:
        days = caches.DAYS if known.days is None else known.days
        gone = caches.trim(folder, days, None if known.most is None else known.most * 2**30)
    caches.show(caches.entries(folder), folder, Console())
    if known.trim:
        print(f"deleted {len(gone)} entries of {caches.said_size(sum(entry.bytes for entry in gone))}")
