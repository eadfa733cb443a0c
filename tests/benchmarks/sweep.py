"""Sixteen runs of the quickstart as one program, beside separate `fedrsclip train` calls.

    python -m tests.benchmarks.sweep [--rounds 50] [--alone 2]

Four weights of PACL with four seeds, unless told otherwise. Both sides are whole processes as a user starts them, from
nothing but images that are encoded already and programs that are compiled already, unless `--cold`. Of the separate
calls only some are made, one of each of the first seeds, and their mean is taken for all.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import timing

REPOSITORY = Path(__file__).resolve().parents[2]


def seconds_of(words: list[str], cache: Path) -> float:
    """Wall time of one process of the command line."""
    began = time.perf_counter()
    environment = {**os.environ, "FEDRSCLIP_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "fedrsclip_jax.cli", *words], cwd=REPOSITORY, env=environment, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--alone", type=int, default=2, help="separate calls that are made")
    parser.add_argument("--scenes", type=int, default=2400, help="images")
    parser.add_argument(
        "--cold", action="store_true", help="leave out the runs that fill the caches first; whether it all runs"
    )
    arguments = parser.parse_args()
    weights, seeds = arguments.weights, arguments.seeds
    print(timing.machine(), flush=True)
    began = time.perf_counter()
    common = ["--quiet", "--config=configs/quickstart.py", "--config.baselines=", "--config.seeds=1"]
    common.append(f"--config.data.scenes.count={arguments.scenes}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"

        def alone(number: int, rounds: int, into: str) -> float:
            keys = [f"--config.seed={number % seeds}", f"--config.method.pacl_weight={weights[number // seeds]}"]
            keys += [f"--config.rounds={rounds}", f"--workdir={folder / into}"]
            return seconds_of(["train", *common, *keys], cache)

        def together(rounds: int, into: str) -> float:
            values = ",".join(map(str, weights))
            keys = [f"--config.sweep.seeds={seeds}", f"--config.sweep.grid.method.pacl_weight={values}"]
            keys += [f"--config.rounds={rounds}", f"--workdir={folder / into}"]
            return seconds_of(["sweep", *common, *keys], cache)

        if not arguments.cold:
            # A dispatch holds as many rounds as there will be, so that the programs are the same.
            every = min(10, arguments.rounds)
            alone(0, every, "warm")
            together(every, "warm-together")
        whole = together(arguments.rounds, "together")
        each = [alone(number, arguments.rounds, f"alone{number}") for number in range(arguments.alone)]
    runs = len(weights) * seeds
    apart = runs * statistics.mean(each)
    timing.print_table(
        f"{runs} runs of {arguments.rounds} rounds, seconds",
        ["one sweep", f"{runs} calls (from {len(each)})", "ratio"],
        [[whole, apart, whole / apart]],
    )
    timing.print_record(
        "sweep", wall_ratio=whole / apart, sweep_seconds=whole, train_seconds=statistics.mean(each),
        cold=arguments.cold, seconds=time.perf_counter() - began,
    )  # fmt: skip


if __name__ == "__main__":
    main()
