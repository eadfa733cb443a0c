"""What a round costs and wastes, by lanes, cohort and devices; what it reduces, and how long it compiles.

    python -m tests.benchmarks.round [--repeats 3]

FedRSCLIP on the embedded CLIP, 100 clients by Dirichlet 0.1 over 4,000 images. On a CPU the devices are virtual and
share its cores: they show what the program costs, not what it gains.
"""

import argparse
import os
import re
import time

if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax

from fedrsclip_jax import compilation
from tests.benchmarks import federations, timing
from tests.benchmarks.federations import Rounds, settings

CLIENTS, IMAGES = 100, 4000
_BYTES = {"f32": 4, "s32": 4, "bf16": 2, "pred": 1}


def reduced_bytes(text: str) -> int:
    """Bytes of every all-reduce in the text of a compiled program."""
    total = 0
    for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        for kind, sizes in re.findall(r"(f32|s32|bf16|pred)\[([\d,]*)\]", shapes):
            count = 1
            for size in filter(None, sizes.split(",")):
                count *= int(size)
            total += count * _BYTES[kind]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", choices=["tiny", "base16"], help="of the text tower; default tiny on a CPU")
    parser.add_argument("--quick", action="store_true", help="two cases and a tower of two layers: whether it all runs")
    arguments = parser.parse_args()
    repeats, on_cpu = arguments.repeats, jax.default_backend() == "cpu"
    print(timing.machine())
    began = time.perf_counter()
    size = arguments.size or ("tiny" if on_cpu else "base16")
    frozen = {"tiny": federations.tiny, "base16": federations.base16}[size]()
    owners = federations.dirichlet(IMAGES, CLIENTS, 0.1)
    devices = [n for n in (1, 2, 4, 8) if n <= len(jax.devices())]
    more = (8, 16) if on_cpu else (8, 16, 32, 64)
    cases = [(n, lanes, 0) for n in devices for lanes in (1, 4)] + [(1, lanes, 0) for lanes in more] + [(1, 0, 10)]
    if arguments.quick:
        cases = [(1, 1, 0), (devices[-1], 4, 0)]
    rows, wasted, reduced, rates = [], 0.0, 0, {}
    for number, lanes, cohort in cases:
        keys = {"spmd__devices": number, "spmd__clients_per_device": lanes, "cohort": cohort}
        config = settings(rounds=10**6, eval__every=1, local__learning_rate=0.05, **keys)
        rounds = Rounds(federations.engine(config, owners, IMAGES, frozen), 1)
        spent = timing.seconds(rounds, repeats, warmup=1)
        engine = rounds.engine
        done = engine.advance(rounds.number + 1, 1)[0]
        wasted = max(wasted, done.wasted)
        rows.append((number, engine.lanes, cohort or CLIENTS, 1 / spent, done.steps / spent, done.wasted))
        if (number, cohort) == (1, 0):
            rates[engine.lanes] = done.steps / spent
        if number == devices[-1]:
            reduced = reduced_bytes(engine.compiled().as_text())
    columns = ("devices", "lanes", "cohort", "rounds a second", "client-steps a second", "wasted share")
    timing.print_table(f"Rounds of 100 clients, text tower: {size}", columns, rows)

    # The program of a real run: ViT-B/16's text tower, ten clients.
    large = federations.engine(
        settings(rounds=10**6, eval__every=5, spmd__devices=1),
        federations.dirichlet(2000, 10, 0.1),
        2000,
        federations.base16(2 if arguments.quick else 12),
    )
    seconds = {"compile": 0.0, "train": 0.0}
    with compilation.measure(seconds, "train"):
        large.compiled()
    sent = engine.traffic.bytes
    print(f"\nAn update is {sent} bytes; all that a round reduces, weights and figures included: {reduced} bytes.")
    print(f"Compiling the rounds of a run at ViT-B/16's size: {seconds['compile']:.1f} s, once.")
    timing.print_record(
        "round",
        wasted_lane_share=wasted,
        compile_seconds=seconds["compile"],
        reduced_bytes=reduced,
        lanes_speedup=max(rates.values()) / rates[1],
        update_bytes=sent,
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
