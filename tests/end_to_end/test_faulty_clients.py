"""Clients that are silent, broken, poor or hostile, in runs from the command line and in the shipped quickstart."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax import cli, comparison
from fedrsclip_jax import config as configuration
from fedrsclip_jax.federated import engine, round
from fedrsclip_jax.federated.aggregate import aggregate
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import Prompts
from fedrsclip_jax.task import divide, encode_images, load_task
from tests.conftest import REPOSITORY
from tests.end_to_end.conftest import photographs
from tests.end_to_end.test_resume import SMALL

pytestmark = pytest.mark.optimised

QUICKSTART = REPOSITORY / "configs" / "quickstart.py"


@pytest.fixture
def train(tiny_folder, tmp_path):
    """Runs the command line; gives the summary and the lines of `metrics.jsonl`, neither of which may hold a NaN."""

    def run(*flags: str, quiet: bool = True) -> tuple[dict, list[dict]]:
        workdir = tmp_path / "run"
        words = ("train", *SMALL, f"--config.backbone={tiny_folder}", f"--workdir={workdir}", *flags)
        assert cli.main([*words, *["--quiet"] * quiet]) == 0

        def never(constant):
            raise AssertionError(f"{constant} in a run's results")

        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        summary = json.loads((workdir / "summary.json").read_text(), parse_constant=never)
        return summary, [json.loads(line, parse_constant=never) for line in lines]

    return run


def test_a_client_whose_update_is_not_finite_is_left_out_and_named(train, monkeypatch):
    broken, first_rounds = 2, []

    def poisoned(config, task, *rest):
        features = encode_images(config, task, *rest)
        rows, counts = divide(config, task).padded(np.asarray([broken]), "train")
        plain = np.array(features.plain)
        plain[rows[0, : counts[0]]] = np.nan
        return dataclasses.replace(features, plain=plain, views=(plain,))

    monkeypatch.setattr(comparison, "encode_images", poisoned)
    summary, lines = train()
    for line in lines:
        assert [entry["client"] for entry in line["refused"]] == [broken] * 2
        first_rounds += [entry["round"] for entry in line["refused"]]
    assert first_rounds == [1, 2, 3, 4, 5, 6]
    assert summary["refused_updates"] == 6
    assert summary["silent_rounds"] == 0


def test_rounds_in_which_nobody_answers_are_counted(train):
    summary, lines = train("--config.cohort=1", "--config.dropout=0.7", "--config.rounds=8")
    cohorts = [draw_cohort(0, number, 4, 1) for number in range(1, 9)]
    silent = [not draw_answering(0, number, cohort, 0.7).any() for number, cohort in enumerate(cohorts, start=1)]
    assert 0 < sum(silent) < 8, "or this shows nothing"
    assert summary["silent_rounds"] == sum(silent)
    assert [line["silent_rounds"] for line in lines] == np.cumsum(silent)[1::2].tolist()
    assert summary["bytes_sent"] == (8 - sum(silent)) * summary["uplink_bytes_per_client_round"]


def test_poor_clients_are_counted_and_never_a_nan(train, tmp_path, capfd):
    """Some with a single image, or of a single class, or without an image to test on."""
    photographs(tmp_path / "photos", {"river": 12, "lake": 12, "forest": 12})
    flags = ("--config.partition.clients=12", "--config.partition.alpha=0.05", "--config.partition.min_examples=1")
    summary, _ = train(f"--config.data.source=folder:{tmp_path / 'photos'}", *flags, quiet=False)
    with np.load(tmp_path / "run" / "partition.npz") as owners:
        train_counts, test_counts = (np.diff(owners[f"{split}_offsets"]) for split in ("train", "test"))
    assert train_counts.min() == 1
    assert test_counts.min() == 0
    without = np.sum(test_counts == 0)
    assert summary["personalised"]["without_test"] == without
    assert summary["num_scored_clients"] == 12 - without
    assert f"seed 0: {without} of 12 clients have no test image and are not scored" in capfd.readouterr().err
    accuracies = summary["personalised"]["per_client"]
    assert [accuracy is None for accuracy in accuracies] == (test_counts == 0).tolist()


# Hostile clients ----------------------------------------------------------------------------------------

FAULTY = 1  # of the quickstart's ten clients
ATTACKS = {
    "none": lambda delta: delta,
    "turned sign": lambda delta: -100 * delta,
    "scaled": lambda delta: 1000 * delta,
    "random": lambda delta: 10 * jax.random.normal(jax.random.key(0), delta.shape),
}
# Points that an attack takes from the mean at least. Random tokens say nothing to the tower, so that they leave what
# there is without a prompt (zero-shot), and take away what training has gained. Seen with JAX 0.10: 24, 20 and 7.5.
BREAKS = {"turned sign": 5, "scaled": 5, "random": 3}


@pytest.fixture(scope="module")
def quickstart():
    """Accuracy in points on the clients' own images of 20 rounds of PromptFL on a third of the quickstart's images.

    The first client sends garbage, which is put in place of its change where the server reads it.
    """
    written = configuration.load_file(str(QUICKSTART))
    few = [("method.name", "promptfl"), ("rounds", "20"), ("data.scenes.count", "800")]
    base = configuration.resolve(configuration.Config, written, few)
    task = load_task(base)
    features = encode_images(base, task, Progress(quiet=True))

    programs = {}

    def run(aggregator: str, attack: str) -> float:
        # The attack is an argument of the program: one compilation serves all of them.
        def program(which, *arguments):
            def attacked(plan, deltas, weights):
                def corrupt(leaf):
                    hostile = jnp.arange(leaf.shape[0]) < FAULTY
                    garbage = jax.lax.switch(which, [*ATTACKS.values()], leaf)
                    return jnp.where(hostile.reshape(-1, *[1] * (leaf.ndim - 1)), garbage, leaf)

                return aggregate(plan, jax.tree.map(corrupt, deltas), weights)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(round, "aggregate", attacked)
                return round.run_rounds.__wrapped__(*arguments)

        if aggregator not in programs:
            programs[aggregator] = jax.jit(program, static_argnums=1, donate_argnums=(2, 3))
        keys = {"spmd.ordered_reduce": "true", "spmd.devices": "1", "server.aggregator": aggregator}
        keys |= {"server.faulty": str(FAULTY), "server.trim": "0.3", "server.client_norm": "0.05"}
        config = configuration.resolve(
            configuration.Config, configuration.to_dict(base), [*keys.items(), ("eval.every", "20")]
        )
        with pytest.MonkeyPatch.context() as patch:
            which = jnp.asarray([*ATTACKS].index(attack))
            patch.setattr(engine, "run_rounds", partial(programs[aggregator], which))
            federation = Federation(config, task, features, divide(config, task, features.readable), Prompts())
            done = 0
            while done < config.rounds:
                done += len(federation.advance(done + 1, config.rounds - done))
            return 100 * federation.score(complete=False)["personalised"]["mean"]

    return run


@pytest.mark.long
def test_hostile_clients_break_the_mean_and_not_the_robust_averages(quickstart):
    mean = quickstart("mean", "none")
    for attack, points in BREAKS.items():
        assert quickstart("mean", attack) < mean - points, attack
    for aggregator in ("median", "trimmed_mean", "norm_clipped_mean", "multi_krum", "krum"):
        alone = quickstart(aggregator, "none")
        for attack in BREAKS:
            assert quickstart(aggregator, attack) > alone - 2, (aggregator, attack)  # seen: 0.4 with JAX 0.10
