"""A finished run scored again from one of its checkpoints."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrsclip_jax import comparison, distributed, experiment
from fedrsclip_jax.config import GIVEN, SCORED
from fedrsclip_jax.data.layout import natural
from fedrsclip_jax.data.split import given_sides, scored_side
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.finished import FinishedRun, clients_of, open_run, read_checkpoint
from fedrsclip_jax.generalisation import score_beyond
from fedrsclip_jax.methods import TITLES
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import divide, encode_images
from fedrsclip_jax.task import split as divided


def rescore(
    workdir: Path,
    overrides: Sequence[tuple[str, str]],
    progress: Progress,
    *,
    checkpoint: str = "last",
    split: str = "",
) -> dict[str, Any]:
    """The comparison table of one run, recomputed.

    Args:
      workdir: folder of a finished run.
      overrides: keys that say where things lie now; see `finished.MOVABLE`.
      checkpoint: `last`, `best` or a round.
      split: images to score, by default those of the run. `test` images of a run that chose on validation images are
        ones that it neither trained nor chose on.

    Returns:
      What `comparison.tabulate` gives, with `round`, and `beside`: where the other runs of its comparison are, if any.

    Raises:
      InputError: the folder holds no finished run, data or backbone are not the ones of the run, it has no such
        checkpoint, or has trained on the images that are to be scored.
    """
    if split not in ("", *SCORED):
        raise InputError(f"--split={split} is not known; give {' or '.join(SCORED)}")
    experiment.check_seen(workdir)
    with distributed.together():
        run = open_run(workdir, overrides)
        config, task = run.config, run.task
        if split == "validation" and config.eval.split == "test" and not _brings_validation(run):
            raise InputError(
                f"--split=validation: the run in {workdir} has trained on its validation images, as runs with "
                "eval.split = test do unless their images are in train/, val/ and test/; leave --split out"
            )
        if split and split != config.eval.split and config.partition.kind == GIVEN:
            raise InputError(f"--split={split}: owners were given for {config.eval.split} images; leave --split out")
        saved = read_checkpoint(workdir, checkpoint)
    features = encode_images(config, task, progress)
    scored = dataclasses.replace(config, eval=dataclasses.replace(config.eval, split=split or config.eval.split))
    with distributed.together():
        clients = clients_of(run, features.readable)
        if scored != config:
            if divide(config, task, features.readable).digest() != clients.digest():
                raise InputError(
                    f"--split={split}: the version that trained the run in {workdir} divided these images otherwise, "
                    "and may have trained on some of those; leave --split out"
                )
            _, tests = divided(scored, task.source, features.readable)
            clients = divide(config, task, features.readable, tests)
    federation = Federation(scored, task, features, clients, run.initial_prompts)
    federation.restore(saved.server(federation.server), saved.population)
    federation.population.forget_untrained()
    if "scored" not in run.summary and (ids := run.summary["personalised"].get("clients")):
        federation.scored = np.asarray(ids)  # older versions scored other virtual clients
    own = federation.score(complete=False)
    scores = {
        "seed": config.seed,
        "split": scored.eval.split,
        "uplink_params_per_client_round": federation.traffic.params,
        "zero_shot": score_zero_shot(features.plain, task.labels, clients, federation.scored, federation.backbone),
        **own,
        **score_beyond(federation, task, features, own),
    }
    table = comparison.tabulate({config.method.name: [scores]}, config.method.name)
    return {"round": saved.round, "beside": _beside(run), **table}


def _beside(run: FinishedRun) -> str:
    """Says of the first run of a comparison which one it is and where the others are; empty of any other run."""
    others = sorted((path.parent for path in run.workdir.glob("compared/*/summary.json")), key=natural)
    if not others:
        return ""
    name, listed = run.config.method.name, ", ".join(f"compared/{folder.name}" for folder in others)
    which = f"this is {TITLES.get(name, name)}, seed {run.config.seed}"
    return f"{which}; the other runs of its comparison are in {run.workdir}: {listed}"


def _brings_validation(run: FinishedRun) -> bool:
    """Whether the run's folders have validation images that it neither trained on nor scored."""
    sides = given_sides(run.config.data.split, run.task.source)
    return sides is not None and scored_side(sides, validation=True) is not None
