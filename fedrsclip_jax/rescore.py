"""A finished run scored again from its last checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrsclip_jax import comparison, distributed
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.finished import clients_of, open_run
from fedrsclip_jax.generalisation import score_beyond
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images


def rescore(workdir: Path, overrides: Sequence[tuple[str, str]], progress: Progress) -> dict[str, Any]:
    """The comparison table of one run, recomputed.

    Args:
      workdir: folder of a finished run.
      overrides: keys that say where things lie now; see `finished.MOVABLE`.

    Raises:
      InputError: the folder holds no finished run, or data or backbone are not the ones of the run.
    """
    with distributed.together():
        run = open_run(workdir, overrides)
    config, task = run.config, run.task
    features = encode_images(config, task, progress)
    with distributed.together():
        clients = clients_of(run, features.readable)
    federation = Federation(config, task, features, clients, run.initial_prompts)
    with Checkpoints(workdir) as checkpoints, distributed.together():
        saved = checkpoints.restore()
    federation.restore(saved.server(federation.server), saved.population)
    if "scored" not in run.summary and (ids := run.summary["personalised"].get("clients")):
        federation.scored = np.asarray(ids)  # older versions scored other virtual clients
    own = federation.score(complete=False)
    scores = {
        "seed": config.seed,
        "split": config.eval.split,
        "uplink_params_per_client_round": federation.traffic.params,
        "zero_shot": score_zero_shot(features.plain, task.labels, clients, federation.scored, federation.backbone),
        **own,
        **score_beyond(federation, task, features, own),
    }
    return comparison.tabulate({config.method.name: [scores]}, config.method.name)
