"""The engine's own cost: FedAvg of a linear head 512 -> 21, without a backbone, beside a plain PyTorch loop.

    python -m tests.benchmarks.engine [--rounds 100]

1,000 clients of 64 samples, cohorts of 20, one local epoch in batches of 32, rate 0.1, all data in memory; then 100,000
clients, cohorts of 100, each client's data made on demand from its number.
"""

import argparse
import time

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.engine import Engine
from fedrsclip_jax.methods.base import Batch, Shared, accuracy, cross_entropy
from tests.benchmarks import federations, timing
from tests.benchmarks.federations import Rounds, settings

INPUTS, CLASSES, SAMPLES = 512, 21, 64


class Linear(nnx.Module):
    """A linear classifier that all clients share."""

    def __init__(self, config, backbone, key, start=None):
        self.kernel = Shared(jnp.zeros((CLASSES, INPUTS)))  # lies as PyTorch's does
        self.bias = Shared(jnp.zeros(CLASSES))

    def loss(self, batch: Batch, backbone, weights):
        logits = jnp.einsum("bi,ci->bc", batch.features, self.kernel[...]) + self.bias[...][None]
        ce = cross_entropy(logits, batch)
        return ce, {"accuracy": accuracy(logits, batch)}


def samples(client: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's data, from its number alone."""
    rng = np.random.default_rng((0, client))
    return rng.standard_normal((SAMPLES, INPUTS), np.float32), rng.integers(0, CLASSES, SAMPLES).astype(np.int32)


def on_demand(rows: np.ndarray) -> Dataset:
    made = [samples(int(client)) for client in rows.reshape(-1, SAMPLES)[:, 0] // SAMPLES]
    return Dataset(np.concatenate([x for x, _ in made])[None], np.concatenate([y for _, y in made]))


def engine(clients: int, cohort: int, resident: Dataset | None) -> Engine:
    config = settings(cohort=cohort, local__learning_rate=0.1, local__momentum=0.0, rounds=10**6, eval__every=32)
    hold = None if resident is None else (lambda: resident)
    return Engine(config, Linear, None, None, federations.Even(clients, SAMPLES), on_demand, hold)


class TorchLoop:
    """FedAvg as it is usually written: clients one after another, state dictionaries copied for each."""

    def __init__(self, clients: int, cohort: int, data: Dataset | None, each: int):
        import torch

        self.torch, self.clients, self.cohort, self.each = torch, clients, cohort, each
        torch.set_num_threads(timing.cores())
        torch.manual_seed(0)
        self.model = torch.nn.Linear(INPUTS, CLASSES)
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.x = self.y = None
        if data is not None:
            self.x = torch.from_numpy(np.asarray(data.features[0]).reshape(clients, SAMPLES, INPUTS))
            self.y = torch.from_numpy(np.asarray(data.labels, np.int64).reshape(clients, SAMPLES))

    def data(self, client: int):
        if self.x is not None:
            return self.x[client], self.y[client]
        x, y = samples(client)
        return self.torch.from_numpy(x), self.torch.from_numpy(y.astype(np.int64))

    def __call__(self) -> None:
        torch, loss = self.torch, self.torch.nn.functional.cross_entropy
        for _ in range(self.each):
            states = []
            for client in torch.randperm(self.clients)[: self.cohort].tolist():
                x, y = self.data(client)
                self.model.load_state_dict(self.state)
                optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
                order = torch.randperm(SAMPLES)
                for rows in order.split(32):
                    optimizer.zero_grad()
                    loss(self.model(x[rows]), y[rows]).backward()
                    optimizer.step()
                states.append({name: value.detach().clone() for name, value in self.model.state_dict().items()})
            self.state = {name: sum(s[name] for s in states) / len(states) for name in self.state}


def in_memory(clients: int) -> Dataset:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, clients * SAMPLES, INPUTS), np.float32)
    return Dataset(features, rng.integers(0, CLASSES, clients * SAMPLES).astype(np.int32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds of one measurement with 1,000 clients")
    rounds = parser.parse_args().rounds
    few = max(rounds // 10, 1)  # with 100,000 clients, where a round takes longer

    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed: no ratio")
        has_torch = False
    else:
        has_torch = True
    print(timing.machine("torch") if has_torch else timing.machine())

    began = time.perf_counter()
    data = in_memory(1000)
    small = Rounds(engine(1000, 20, data), rounds)
    large = Rounds(engine(100_000, 100, None), few)
    while small.engine._pace < 32 and small.number < 200:  # dispatches grow to their full length
        small()
    calls = {"1k": small, "100k": large}
    if has_torch:
        calls |= {"1k torch": TorchLoop(1000, 20, data, rounds), "100k torch": TorchLoop(100_000, 100, None, few)}
    taken = timing.seconds_each(calls, repeats=5)
    each = {name: spent / (rounds if name.startswith("1k") else few) for name, spent in taken.items()}
    make = timing.seconds(lambda: [samples(k) for k in range(100)], 5)

    rows = []
    for name, clients, cohort in (("1k", "1,000", 20), ("100k", "100,000", 100)):
        torch_ms = 1e3 * each[f"{name} torch"] if has_torch else "-"
        ratio = each[f"{name} torch"] / each[name] if has_torch else "-"
        rows.append((clients, cohort, 1e3 * each[name], torch_ms, ratio))
    timing.print_table("Milliseconds a round", ("clients", "cohort", "fedrsclip_jax", "PyTorch loop", "ratio"), rows)
    print(
        f"\nMaking the data of 100 clients in NumPy takes {1e3 * make:.1f} ms of a round with 100,000, in both columns."
    )
    record = {"seconds_per_round_1k": each["1k"], "seconds_per_round_100k": each["100k"]}
    if has_torch:
        record |= {
            "torch_ratio_1k": each["1k torch"] / each["1k"],
            "torch_ratio_100k": each["100k torch"] / each["100k"],
        }
    timing.print_record("engine", **record, seconds_data_100k=make, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
