"""Configurations of Fed-RSIC: what their argument says, and what it may not."""

import pytest

from fedrsclip_jax import config as configuration
from fedrsclip_jax.fed_rsic import CLIENTS, partition
from tests.conftest import REPOSITORY

FILES = {
    "fed_optimal": "optimal31",
    "fed_ucmerced": "uc_merced",
    "fed_nwpu": "resisc45",
    "fed_eurosat": "eurosat/rgb",
}


@pytest.mark.parametrize(("file", "name"), FILES.items())
def test_files(file, name):
    for clients in CLIENTS:
        for text, wanted in {
            "iid": ("iid", None, None),
            "dirichlet:0.5": ("dirichlet", 0.5, None),
            "dirichlet:0.1": ("dirichlet", 0.1, None),
            "classes:6": ("classes", None, 6),
        }.items():
            spec = f"{REPOSITORY / 'configs' / file}.py:clients={clients},partition={text}"
            config = configuration.resolve(configuration.Config, configuration.load_file(spec))
            kind, alpha, classes = wanted
            assert (config.partition.kind, config.partition.clients) == (kind, clients)
            assert alpha is None or config.partition.alpha == alpha
            assert classes is None or config.partition.classes_per_client == classes
            assert config.data.source == f"tfds:{name}"
            assert (config.local.learning_rate, config.local.momentum, config.local.batch_size) == (0.002, 0.9, 32)
            assert (config.rounds, config.seeds, config.cohort, config.local.epochs) == (50, 3, 0, 1)


def test_the_rest_is_as_without_an_argument():
    assert partition("") == partition("clients=10,partition=dirichlet:0.1") == partition("clients=10")
    assert partition("partition=iid").clients == 10


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("client=5", ("'client=5'", "clients=10,partition=dirichlet:0.1")),
        ("clients", ("clients=", "5, 10, 20", "--config.partition.clients")),
        ("clients=7", ("clients=7", "5, 10, 20")),
        ("partition=dirichlet", ("partition=dirichlet", "dirichlet:0.5")),
        ("partition=dirichlet:0.2", ("dirichlet:0.2", "iid, dirichlet:0.5, dirichlet:0.1, classes:N")),
        ("partition=classes:0", ("classes:0",)),
        ("partition=classes:two", ("classes:two",)),
        ("partition=classes:N", ("classes:N",)),
        ("partition=iid:", ("iid:",)),
    ],
)
def test_refused(refused, argument, words):
    with refused(*words):
        partition(argument)
