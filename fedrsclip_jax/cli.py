"""The command line: verbs, flags and exit codes. Parsing only; nothing here imports JAX until a verb runs.

Exit codes: 0 all is well, 1 a result that fails its check, 2 bad input (one line says what and how to mend it), 130 and
143 stopped by Ctrl-C and SIGTERM (a run is saved first, and a line says how to go on).
"""

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedrsclip_jax import __version__, distributed
from fedrsclip_jax.errors import DISK_REFUSALS, CheckError, InputError
from fedrsclip_jax.interrupt import Interrupt, Stopped

_BY_MANY = ("train", "evaluate")  # verbs that several processes may run as one


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    debug = "--debug" in words
    try:
        known, rest = parser.parse_known_args(words)
        if known.verb is None:
            parser.print_help()
            return 0
        overrides = _overrides(rest)
        if known.verb in _BY_MANY:
            distributed.start()
        else:
            distributed.refuse(known.verb)
        known.run(known, overrides)
        distributed.exchange("done")  # who leaves early is taken for dead
        sys.stdout.flush()
    except Stopped as stopped:
        distributed.exchange("done")
        if not any(word.startswith("--workdir") for word in words):
            words.append(f"--workdir={known.workdir}")
        _say(f"{stopped}; to go on: {shlex.join(['fedrsclip', *words])}")
        return stopped.exit_code
    except (InputError, CheckError) as error:
        if debug:
            raise
        _say(str(error))
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # who reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if debug or not (error.filename or error.errno in DISK_REFUSALS):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room" if full else "give one that can be read and written"
        _say(
            f"{error.filename or 'a file'} cannot be used ({error.strerror}); {remedy}, and run the same command again "
            "(what was saved is kept)"
        )
        return 2
    except KeyboardInterrupt as interrupt:
        _say("interrupted")
        return interrupt.args[0] if interrupt.args else 130
    return 0


def _say(message: str) -> None:
    """One line on standard error, by the first of several processes."""
    if distributed.first():
        print(f"fedrsclip: {' '.join(message.splitlines())}", file=sys.stderr)


class _HelpConfig(argparse.Action):
    """Prints every configuration key of a verb and ends, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from fedrsclip_jax import config, grid, manual

        kind = config.PretrainConfig if parser.prog.endswith(" pretrain") else config.Config
        others = grid.MEANINGS if parser.prog.endswith(" sweep") else None
        print(manual.manual(kind, f"Configuration keys of {parser.prog}, with their defaults", others), flush=True)
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Bad arguments are answered like any other bad input, in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fedrsclip",
        description="Federated prompt learning of CLIP for remote-sensing scene classification.",
        epilog="Every key of a configuration can be set as --config.KEY=VALUE, such as --config.rounds=5; "
        "`fedrsclip train --help-config` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedrsclip_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, run: Any, help: str, *examples: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=help,
            description=help,
            epilog="\n".join(f"example: {example}" for example in examples),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        sub.add_argument("--quiet", action="store_true", help="no progress, results only")
        sub.add_argument("--debug", action="store_true", help="errors with their traceback")
        return sub

    def configured(sub: argparse.ArgumentParser, *, default: str = "") -> None:
        meaning = f"configuration; default {default}" if default else "configuration"
        sub.add_argument("--config", metavar="FILE[:ARG]", required=not default, help=meaning)
        sub.add_argument("--help-config", action=_HelpConfig, nargs=0, help="print every configuration key, and end")

    train = verb(
        "train",
        _train,
        "run a federation, or a method beside its baselines over seeds",
        "fedrsclip train --config.rounds=5 --config.seeds=1",
        "fedrsclip train --config=configs/aid.py --config.backbone=runs/aid_clip --workdir=runs/aid",
        "fedrsclip train --config=configs/aid.py --config.data.source=folder:photographs --dry-run",
    )
    configured(train, default="configs/quickstart.py")
    train.add_argument(
        "--workdir", type=Path, help="folder for results, new or of a run to go on with; default runs/NAME-TIME"
    )
    train.add_argument(
        "--allow-changed",
        metavar="KEY,...",
        default="",
        help="go on with a run although these keys differ from its own (or `data`, `partition`, `backbone`)",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would run, its bytes, memory and time, measured on a few rounds; write nothing",
    )
    train.add_argument("--tensorboard", action="store_true", help="event files in WORKDIR/tensorboard, a folder a run")

    sweep = verb(
        "sweep",
        _sweep,
        "run every setting of a sweep with every seed, side by side in as few programs as possible",
        "fedrsclip sweep --config=configs/ablation_constraints.py --workdir=runs/constraints",
        "fedrsclip sweep --config=configs/quickstart.py --config.sweep.grid.local.learning_rate=0.03,0.1 "
        "--config.sweep.seeds=3",
    )
    configured(sweep)
    sweep.add_argument("--workdir", type=Path, help="folder for results, new or of a sweep to go on with")
    sweep.add_argument("--allow-changed", metavar="KEY,...", default="", help="as of train, of each run")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "score the last checkpoint of a run again",
        "fedrsclip evaluate --workdir=runs/aid",
        "fedrsclip evaluate --workdir=runs/aid --config.data.source=folder:moved/aid",
    )
    evaluate.add_argument("--workdir", type=Path, required=True, help="folder of a run")

    export = verb(
        "export",
        _export,
        "write prompts or a classifier of a run for PyTorch, compared with our own logits",
        "fedrsclip export --workdir=runs/aid --format=classifier --output=classifier",
        "fedrsclip export --workdir=runs/aid --format=fedotp --all-clients --output=prompts",
    )
    export.add_argument("--workdir", type=Path, required=True, help="folder of a run")
    export.add_argument(
        "--format",
        required=True,
        help="prompts: coop, fedotp, flip, fedtpg, safetensors; for inference: classifier, onnx; the CLIP: huggingface",
    )
    export.add_argument("--output", type=Path, required=True, help="new folder")
    export.add_argument("--client", type=int, metavar="K", help="the model of client K; default the federation's")
    export.add_argument("--all-clients", action="store_true", help="the model of each client, below OUTPUT/client_K")
    export.add_argument(
        "--checkpoint",
        metavar="N|best",
        default="last",
        help="of round N, or the best of a run with eval.split=validation; default the last",
    )
    export.add_argument("--with-backbone", action="store_true", help="a classifier with a copy of its image tower")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export")

    predict = verb(
        "predict",
        _predict,
        "classes and probabilities for images, folders of images and large scenes, by a finished run",
        "fedrsclip predict --workdir=runs/aid --client=3 --output=answers.csv images scene.tif",
    )
    predict.description = (
        f"{predict.description}\n\n"
        "A scene is cut into tiles, and gets a GeoJSON of tiles and a PNG overlay beside --output, or in the current\n"
        "folder. Scenes are TIFFs with a coordinate system that are larger than a tile; with --tile or --bands, all\n"
        "images are. The last tile of a line or column is shifted inside, so that it ends at the border. 8-bit data\n"
        "are taken as they are, others scaled by the percentiles 2 and 98 of each band. Scenes need the extra `geo`."
    )
    predict.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="image, or folder of images at any depth")
    predict.add_argument("--workdir", type=Path, required=True, help="folder of a run")
    predict.add_argument("--client", type=int, metavar="K", help="the model of client K; default the federation's")
    predict.add_argument("--checkpoint", metavar="N|best", default="last", help="as of export")
    predict.add_argument("--format", default="csv", help="csv (default) or jsonl, a JSON object a line")
    predict.add_argument("--output", type=Path, metavar="FILE", help="default standard output")
    predict.add_argument("--tile", type=int, metavar="PIXELS", help="side of a scene's tiles; default 256")
    predict.add_argument("--stride", type=int, metavar="PIXELS", help="between tiles; default the tile's side")
    predict.add_argument("--bands", metavar="R,G,B", help="of a scene, from 1, one or three; default 1,2,3, or 1")
    predict.add_argument("--overwrite", action="store_true", help="replace earlier predictions")

    pretrain = verb(
        "pretrain",
        _pretrain,
        "train a small CLIP of one's own and write it as a Hugging Face folder",
        "fedrsclip pretrain --config=configs/pretrain_aid.py --workdir=runs/aid_clip",
        "fedrsclip pretrain --config=configs/pretrain_aid.py:photographs --config.epochs=40 --workdir=runs/own_clip",
    )
    configured(pretrain)
    pretrain.add_argument("--workdir", type=Path, help="new folder for the CLIP; default runs/NAME-TIME")

    report = verb(
        "report",
        _report,
        "write the page of a finished run or sweep anew, or one page on several runs side by side",
        "fedrsclip report --workdir=runs/aid --workdir=runs/aid/compared/promptfl-seed0 --output=both.html",
    )
    report.add_argument(
        "--workdir", type=Path, required=True, action="append", help="folder of a run or sweep; several runs: once each"
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="new file, needed for several runs; default report.html in the folder",
    )

    data = verb(
        "data",
        _data,
        "prepare a data set, and show what it holds and what each client would own",
        "fedrsclip data --name=uc_merced --config.partition.alpha=0.5 --output=clients.png",
    )
    data.add_argument(
        "--name",
        help="scenes, optimal31, uc_merced, resisc45, eurosat/rgb, any other set of TFDS or folder:PATH; several are "
        "written A,B; default that of the configuration",
    )
    data.add_argument("--config", metavar="FILE[:ARG]", help="configuration; default the keys' own defaults")
    data.add_argument("--output", type=Path, metavar="FILE.png", help="picture of clients and classes")
    return parser


def _overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--config.KEY=VALUE` and `--config.KEY VALUE` as pairs."""
    pairs, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise InputError(f"unknown argument {word!r}; configuration keys are set as --config.KEY=VALUE")
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"{word} has no value; write {word}=VALUE")
            value = words.pop(0)
        pairs.append((name, value))
    return pairs


def _workdir(given: Path | None, config: str) -> Path:
    return given or Path("runs") / f"{Path(config.partition(':')[0]).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _train(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration

    file = known.config or str(configuration.default_file())
    with distributed.together():
        config = configuration.resolve(configuration.Config, configuration.load_file(file), overrides)
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
    with Interrupt(quiet=quiet) as interrupt:
        result = comparison.compare(
            config, known.workdir, Progress(quiet=quiet), interrupt, allowed, tensorboard=known.tensorboard
        )
    if distributed.first():
        comparison.show(result, Console())
        print(f"results in {known.workdir}")


def _sweep(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import config as configuration
    from fedrsclip_jax import grid

    read = grid.read(configuration.load_file(known.config), overrides)
    known.workdir = _workdir(known.workdir, known.config)
    _as_devices()

    from rich.console import Console

    from fedrsclip_jax import compilation
    from fedrsclip_jax.progress import Progress
    from fedrsclip_jax.report.sweep import show
    from fedrsclip_jax.sweep import sweep

    compilation.keep_on_disk()
    allowed = [key for key in known.allow_changed.split(",") if key]
    with Interrupt(quiet=known.quiet) as interrupt:
        result = sweep(read, known.workdir, Progress(quiet=known.quiet), interrupt, allowed)
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


def _evaluate(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from rich.console import Console

    from fedrsclip_jax import comparison, compilation, rescore
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    result = rescore.rescore(known.workdir, overrides, Progress(quiet=known.quiet or not distributed.first()))
    if distributed.first():
        comparison.show(result, Console())


def _export(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
    from fedrsclip_jax import compilation
    from fedrsclip_jax.export.exporter import Request, export
    from fedrsclip_jax.progress import Progress

    compilation.keep_on_disk()
    chosen = {name: value for name, value in vars(known).items() if name in Request.__dataclass_fields__}
    certificates = export(Request(**chosen), overrides, Progress(quiet=known.quiet))
    worst = max(certificates, key=lambda certificate: certificate.get("max_abs_difference", 0.0))
    if worst["verified"]:
        print(
            f"logits within {worst['max_abs_difference']:.1e} of ours on {worst['images']['count']} "
            f"{'images of the run' if worst['images']['origin'] == 'run' else 'random images'}, predicted classes equal"
        )
    else:
        print(f"not verified: {worst['reason']}")
    if any(certificate["run"].get("took_part") is False for certificate in certificates):
        print(f"warning: client {known.client} never took part; its private prompt is its initial draw, untrained")
    print(f"{known.format} in {known.output}")


def _predict(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
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
        _say(note)
    for file in outcome.files:
        _say(f"wrote {file}") if known.output is None else print(file)


def _pretrain(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
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


def _report(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
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


def _data(known: argparse.Namespace, overrides: list[tuple[str, str]]) -> None:
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
    clients = task.divide_images(config, source)
    found = dataset.describe(config, source, clients, task.client_domains(config, source, clients))
    dataset.show(found, Console())
    if known.output:
        write_bytes(known.output, dataset.picture(found))
        print(f"picture in {known.output}")


if __name__ == "__main__":
    sys.exit(main())
