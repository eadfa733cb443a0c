"""The words of the command line: verbs, flags and examples. Imports no JAX."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedrsclip_jax import __version__, verbs
from fedrsclip_jax.errors import InputError


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

    def unknown(self, word: str) -> InputError:
        """What is said of a word that is no argument: the flag that may be meant, or those that there are."""
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        near = difflib.get_close_matches(word.partition("=")[0], flags, 1)
        remedies = [f"did you mean {near[0]}?"] if near else []
        if "--config" in flags:
            remedies.append("configuration keys are set as --config.KEY=VALUE")
        elif not near:
            remedies.append(f"{self.prog} takes {', '.join(flags)}")
        return InputError(f"unknown argument {word!r}; {' '.join(remedies)}")


def parser() -> argparse.ArgumentParser:
    whole = _Parser(
        prog="fedrsclip",
        description="Federated prompt learning of CLIP for remote-sensing scene classification.",
        epilog="Every key of a configuration can be set as --config.KEY=VALUE, such as --config.rounds=5; "
        "`fedrsclip train --help-config` lists them.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"fedrsclip_jax {__version__}")
    subparsers = whole.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, run: Any, help: str, *examples: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name,
            help=help,
            description=help,
            epilog="\n".join(f"example: {example}" for example in examples),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, parser=sub)
        sub.add_argument("--quiet", action="store_true", help="no progress, results only")
        sub.add_argument("--debug", action="store_true", help="errors with their traceback")
        return sub

    def configured(sub: argparse.ArgumentParser, *, default: str = "") -> None:
        meaning = f"configuration; default {default}" if default else "configuration"
        sub.add_argument("--config", metavar="FILE[:ARG]", required=not default, help=meaning)
        sub.add_argument("--help-config", action=_HelpConfig, nargs=0, help="print every configuration key, and end")

    def written(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--tensorboard", action="store_true", help="event files in WORKDIR/tensorboard, a folder a run"
        )
        sub.add_argument(
            "--report",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="draw report.html (default); --no-report removes older ones, and `fedrsclip report` draws one later",
        )

    train = verb(
        "train",
        verbs.train,
        "run a federation, or a method beside its baselines over seeds",
        "fedrsclip train --config.rounds=5 --config.seeds=1",
        "fedrsclip train --config=configs/aid.py --config.backbone=runs/aid_clip --workdir=runs/aid",
        "fedrsclip train --config=configs/aid.py --config.data.source=folder:photographs --dry-run",
        "fedrsclip train --workdir=runs/aid --config.rounds=200",
    )
    configured(train, default="that of the run in --workdir, or configs/quickstart.py")
    train.add_argument(
        "--workdir", type=_path, help="folder for results, new or of a run to go on with; default runs/NAME-TIME"
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
    written(train)

    sweep = verb(
        "sweep",
        verbs.sweep,
        "run every setting of a sweep with every seed, side by side in as few programs as possible",
        "fedrsclip sweep --config=configs/ablation_constraints.py --workdir=runs/constraints",
        "fedrsclip sweep --config=configs/quickstart.py --config.sweep.grid.local.learning_rate=0.03,0.1 "
        "--config.sweep.seeds=3",
    )
    configured(sweep)
    sweep.add_argument("--workdir", type=_path, help="folder for results, new or of a sweep to go on with")
    sweep.add_argument("--allow-changed", metavar="KEY,...", default="", help="as of train, of each run")
    sweep.add_argument("--dry-run", action="store_true", help="as of train; a sweep takes less, side by side")
    written(sweep)

    evaluate = verb(
        "evaluate",
        verbs.evaluate,
        "score a checkpoint of a run again",
        "fedrsclip evaluate --workdir=runs/aid",
        "fedrsclip evaluate --workdir=runs/chosen --checkpoint=best --split=test",
        "fedrsclip evaluate --workdir=runs/aid --config.data.source=folder:moved/aid",
    )
    evaluate.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    evaluate.add_argument("--checkpoint", metavar="N|best", default="last", help="as of export")
    evaluate.add_argument(
        "--split",
        default="",
        metavar="test|validation",
        help="images to score; default those of the run. A run with eval.split=validation has seen no test image: "
        "--checkpoint=best --split=test scores the round that validation chose",
    )

    export = verb(
        "export",
        verbs.export,
        "write prompts or a classifier of a run for PyTorch, compared with our own logits",
        "fedrsclip export --workdir=runs/aid --format=classifier --output=classifier",
        "fedrsclip export --workdir=runs/aid --format=fedotp --all-clients --output=prompts",
    )
    export.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    export.add_argument(
        "--format",
        required=True,
        help="prompts: coop, fedotp, flip, fedtpg, safetensors; for inference: classifier, onnx; the CLIP: huggingface",
    )
    export.add_argument("--output", type=_path, required=True, help="new folder")
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

    verify = verb(
        "verify",
        verbs.verify,
        "check an export against its certificate: its files, and its logits in PyTorch",
        "fedrsclip verify classifier",
        "fedrsclip verify prompts --workdir=runs/aid",
    )
    verify.add_argument("folder", type=_path, metavar="DIR", help="what export has written")
    verify.add_argument("--workdir", type=_path, help="folder of the run; prompts and CLIPs are compared with it alone")

    predict = verb(
        "predict",
        verbs.predict,
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
    predict.add_argument("paths", type=_path, nargs="+", metavar="PATH", help="image, or folder of images at any depth")
    predict.add_argument("--workdir", type=_path, required=True, help="folder of a run")
    predict.add_argument("--client", type=int, metavar="K", help="the model of client K; default the federation's")
    predict.add_argument("--checkpoint", metavar="N|best", default="last", help="as of export")
    predict.add_argument("--format", default="csv", help="csv (default) or jsonl, a JSON object a line")
    predict.add_argument("--output", type=_path, metavar="FILE", help="default standard output")
    predict.add_argument("--tile", type=int, metavar="PIXELS", help="side of a scene's tiles; default 256")
    predict.add_argument("--stride", type=int, metavar="PIXELS", help="between tiles; default the tile's side")
    predict.add_argument("--bands", metavar="R,G,B", help="of a scene, from 1, one or three; default 1,2,3, or 1")
    predict.add_argument("--overwrite", action="store_true", help="replace earlier predictions")

    pretrain = verb(
        "pretrain",
        verbs.pretrain,
        "train a small CLIP of one's own and write it as a Hugging Face folder",
        "fedrsclip pretrain --config=configs/pretrain_aid.py --workdir=runs/aid_clip",
        "fedrsclip pretrain --config=configs/pretrain_aid.py:photographs --config.epochs=40 --workdir=runs/own_clip",
    )
    configured(pretrain)
    pretrain.add_argument("--workdir", type=_path, help="new folder for the CLIP; default runs/NAME-TIME")

    report = verb(
        "report",
        verbs.report,
        "write the page of a finished run or sweep anew, or one page on several runs side by side",
        "fedrsclip report --workdir=runs/aid --workdir=runs/aid/compared/promptfl-seed0 --output=both.html",
    )
    report.add_argument(
        "--workdir",
        type=_path,
        required=True,
        action="append",
        help="folder of a run or sweep; several runs: one each",
    )
    report.add_argument(
        "--output",
        type=_path,
        metavar="FILE.html",
        help="new file, needed for several runs; default report.html in the folder",
    )

    data = verb(
        "data",
        verbs.data,
        "prepare a data set, and show what it holds and what each client would own",
        "fedrsclip data --name=uc_merced --config.partition.alpha=0.5 --output=clients.png",
    )
    data.add_argument(
        "--name",
        help="scenes, optimal31, uc_merced, resisc45, eurosat/rgb, any other set of TFDS or folder:PATH; several are "
        "written A,B; default that of the configuration",
    )
    data.add_argument("--config", metavar="FILE[:ARG]", help="configuration; default the keys' own defaults")
    data.add_argument("--output", type=_path, metavar="FILE.png", help="picture of clients and classes")

    cache = verb(
        "cache",
        verbs.cache,
        "show what features and compiled programs take on this machine's disk, and trim them",
        "fedrsclip cache --trim",
        "fedrsclip cache --trim --days=7 --most=5",
    )
    cache.add_argument(
        "--trim",
        action="store_true",
        help="delete what was not used for --days days, and programs that no version reads any more",
    )
    cache.add_argument("--days", type=float, metavar="N", help="with --trim; default 30, and 0 deletes everything")
    cache.add_argument("--most", type=float, metavar="GIB", help="with --trim: of more, the longest unused go as well")
    return whole


def _path(text: str) -> Path:
    """A place; a shell leaves `~` as it is behind `--workdir=`."""
    return Path(text).expanduser()


def overrides(rest: Sequence[str], of_verb: _Parser) -> list[tuple[str, str]]:
    """`--config.KEY=VALUE` and `--config.KEY VALUE` as pairs; any other word is none that `of_verb` knows."""
    pairs, words = [], list(rest)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise of_verb.unknown(word)
        name, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"{word} has no value; write {word}=VALUE")
            value = words.pop(0)
        pairs.append((name, value))
    return pairs
