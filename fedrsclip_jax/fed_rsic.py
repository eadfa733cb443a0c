"""The settings of the benchmark Fed-RSIC (Fed-Optimal, Fed-UCMerced, Fed-NWPU, and Fed-EuroSAT), as an argument.

What its paper calls several federated configurations is not known to us, so that clients and partitions are ours.
"""

from ml_collections import ConfigDict

from fedrsclip_jax.errors import InputError

CLIENTS = (5, 10, 20)
PARTITIONS = ("iid", "dirichlet:0.5", "dirichlet:0.1", "classes:N")


def config(dataset: str, argument: str) -> ConfigDict:
    """The recipe, which is the same for all data sets.

    Args:
      dataset: as TFDS names it.
      argument: see `partition`.
    """
    made = ConfigDict()
    made.seed = 0
    made.seeds = 3
    made.baselines = ("promptfl", "local_coop")
    made.backbone = "openai/clip-vit-base-patch16"
    made.rounds = 50
    made.data = ConfigDict({"source": f"tfds:{dataset}"})
    made.partition = partition(argument)
    made.local = ConfigDict(
        {"epochs": 1, "batch_size": 32, "optimizer": "sgd", "learning_rate": 0.002, "momentum": 0.9}
    )
    made.eval = ConfigDict({"every": 10})
    return made


def partition(argument: str) -> ConfigDict:
    """The group `partition` for `clients=10,partition=dirichlet:0.1`, which is the default of both.

    Raises:
      InputError: an unknown word, or a value that is not one of the benchmark's.
    """
    given = {"clients": "10", "partition": "dirichlet:0.1"}
    for word in filter(None, argument.split(",")):
        name, _, value = word.partition("=")
        if name not in given:
            raise InputError(f"--config: argument {word!r} is not known; write clients=10,partition=dirichlet:0.1")
        given[name] = value
    if given["clients"] not in map(str, CLIENTS):
        raise InputError(
            f"--config: clients={given['clients']} is none of {', '.join(map(str, CLIENTS))}; others by "
            "--config.partition.clients=N"
        )
    kind, _, number = given["partition"].partition(":")
    found = ConfigDict({"kind": kind, "clients": int(given["clients"])})
    if kind == "classes" and number.isdecimal() and int(number):
        found.classes_per_client = int(number)
    elif given["partition"] not in PARTITIONS[:3]:
        raise InputError(
            f"--config: partition={given['partition']} is none of {', '.join(PARTITIONS)}; others by "
            "--config.partition.kind and its keys"
        )
    elif number:
        found.alpha = float(number)
    return found
