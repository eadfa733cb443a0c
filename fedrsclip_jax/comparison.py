"""A method beside its baselines, over seeds: every row of one seed has the same images and the same clients."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax import distributed, experiment, workdir
from fedrsclip_jax.config import Config, digest, to_dict
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.mesh import make_mesh
from fedrsclip_jax.files import write_json
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import imported
from fedrsclip_jax.report.page import write_report
from fedrsclip_jax.task import divide, encode_images, load_task

TITLES = {
    "zero_shot": "zero-shot",
    "promptfl": "PromptFL",
    "local_coop": "local CoOp",
    "fedpgp": "FedPGP",
    "fedotp": "FedOTP",
    "fedclip": "FedCLIP",
    "linear_probe": "linear probe",
    "fedrsclip": "FedRSCLIP",
}


def compare(
    config: Config, folder: Path, progress: Progress, interrupt: Interrupt, allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs method and baselines for every seed, or goes on with what an earlier start has left undone.

    The configured method with the first seed is the run of `folder` itself; the others are complete runs below
    `folder/compared/`. `comparison.json` holds the table.

    Args:
      interrupt, allowed: see `experiment.run`.

    Returns:
      The comparison: `rows` by name, `paired` differences of the method to each other row.

    Raises:
      InputError: something does not fit; if nothing is saved yet, nothing is left in `folder`.
      Stopped: as `interrupt` asked.
    """
    # The configured method last, as the table shows it.
    names = [*dict.fromkeys((*config.baselines, config.method.name))]
    for name in names:
        find_method(name, "method.name" if name == config.method.name else "baselines")
    with distributed.together():
        workdir.check(folder)
        if config.cohort > config.partition.clients:
            raise InputError(
                f"cohort = {config.cohort} of partition.clients = {config.partition.clients}; use at most that, or 0 "
                "for everyone"
            )
        task = load_task(config)
        # What does not fit is refused before the images are encoded, which can take long.
        for seed in range(config.seed, config.seed + config.seeds):
            divide(dataclasses.replace(config, seed=seed), task)
        task.backbone(config.method)
        task.context_start(config.method)
        prompts = imported(config, task.clip_config)
        make_mesh(config.spmd.devices)
        held = {
            "configuration": digest(config),
            "backbone": task.digest,
            "data.source": fingerprint(task.source),
            "init_from": prompts.digest,
        }
    distributed.check_same(held)
    with workdir.claim(folder) as dead:
        if dead:
            progress.say(f"{folder}: taken over from {dead}, which is dead")
        rows = [(seed, name) for seed in range(config.seed, config.seed + config.seeds) for name in reversed(names)]
        runs = [_row(config, folder, *row) for row in rows]
        known = {"backbone": task.digest, "data": fingerprint(task.source), "initial_prompts": prompts.digest}
        with distributed.together():  # before the images are encoded, too
            for alone, own in runs:
                experiment.check_earlier(alone, own, known, allowed)
        began = time.perf_counter()
        features = encode_images(config, task, progress, interrupt)
        encode_seconds = time.perf_counter() - began

        summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number, (alone, own) in enumerate(runs):
            if number and (stops := max(distributed.exchange(interrupt.exit_code))):
                interrupt.leave(f"{number} of {len(runs)} runs are done", stops)
            summary = experiment.run(
                alone, task, features, own, progress, interrupt, allowed=allowed, encode_seconds=encode_seconds
            )
            summaries[alone.method.name].append(summary)
            if distributed.first():
                write_report(own)
            encode_seconds = 0.0  # it was spent once
        result = {"config": to_dict(config), **tabulate(summaries, config.method.name)}
        write_json(folder / "comparison.json", result)
        return result


def _row(config: Config, folder: Path, seed: int, name: str) -> tuple[Config, Path]:
    """The configuration and the folder of one run of the comparison."""
    method = dataclasses.replace(config.method, name=name)
    alone = dataclasses.replace(config, seed=seed, seeds=1, baselines=(), method=method)
    first = name == config.method.name and seed == config.seed
    return alone, folder if first else folder / "compared" / f"{name}-seed{seed}"


def tabulate(summaries: dict[str, list[dict[str, Any]]], method: str) -> dict[str, Any]:
    """Means and deviations over seeds, and differences paired on equal partitions."""
    own = {name: [s["personalised"]["mean"] for s in runs] for name, runs in summaries.items()}
    worst = {name: [s["personalised"]["worst_decile"] for s in runs] for name, runs in summaries.items()}
    pooled = {
        name: [s["global"]["accuracy"] for s in runs]
        for name, runs in summaries.items()
        if runs[0]["uplink_params_per_client_round"]  # without a shared prompt there is no model of the federation
    }
    zero = [s["zero_shot"] for s in summaries[method]]
    own = {"zero_shot": [z["on_clients"]["mean"] for z in zero], **own}
    worst = {"zero_shot": [z["on_clients"]["worst_decile"] for z in zero], **worst}
    pooled = {"zero_shot": [z["accuracy"] for z in zero], **pooled}
    rows = {
        name: {
            "on_clients": _spread(own[name]),
            "worst_decile": _spread(worst[name]),
            "pooled": _spread(pooled[name]) if name in pooled else None,
            "uplink_params": summaries[name][0]["uplink_params_per_client_round"] if name in summaries else 0,
        }
        for name in own
    }
    paired = {
        f"{method} - {name}": _spread(list(np.subtract(own[method], own[name]))) for name in own if name != method
    }
    if "promptfl" in own and method != "promptfl":
        paired["promptfl - zero_shot"] = _spread(list(np.subtract(own["promptfl"], own["zero_shot"])))
    first = summaries[method][0]
    return {
        "seeds": [s["seed"] for s in summaries[method]],
        "split": first["split"],
        "rows": rows,
        "paired_on_clients": paired,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """The closing table, no wider than 80 columns."""
    seeds = len(result["seeds"])
    of = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"accuracy in % on {result['split']} images{of}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("clients' own", "worst tenth", "pooled", "numbers sent"):
        table.add_column(heading, justify="right")
    for name, row in result["rows"].items():
        cells = (_percent(row[column]) for column in ("on_clients", "worst_decile", "pooled"))
        table.add_row(TITLES.get(name, name), *cells, f"{row['uplink_params']:,}")
    console.print(table)
    console.print(
        "clients' own: each client's images, mean over clients; worst tenth: over the worst tenth of clients;\n"
        "pooled: all images, with the shared prompt alone; numbers sent: by a client in a round.\n",
        highlight=False,
        style="dim",
        soft_wrap=True,
    )
    paired = ", paired by seed" if seeds > 1 else ""
    console.print(f"on the clients' own images, in points{paired}:", highlight=False)
    for difference, spread in result["paired_on_clients"].items():
        left, _, right = difference.partition(" - ")
        names = f"{TITLES.get(left, left)} over {TITLES.get(right, right)}"
        console.print(f"  {names:<28} {_percent(spread, sign=True)}", highlight=False)


def _spread(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation of the sample (None for a single seed) and the values themselves."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "values": [float(v) for v in values]}


def _percent(spread: dict[str, Any] | None, sign: bool = False) -> str:
    if spread is None:
        return "-"
    mean = f"{100 * spread['mean']:{'+' if sign else ''}.1f}"
    return mean if spread["std"] is None else f"{mean} ± {100 * spread['std']:.1f}"
