"""What a population costs that nobody lists: rounds with 1e3, 1e6 and 1e9 clients, the same cohort each.

    python -m tests.benchmarks.population [--rounds 160]

FedRSCLIP on the embedded CLIP, cohorts of 64, 32 images a client; every population in a process of its own, for its
memory. 160 rounds of 64 draw about 10,000 clients. The processes take turns, several times, so that what else the
machine does falls on all of them alike.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import timing

POPULATIONS = (10**3, 10**6, 10**9)
IMAGES = 2000


def serve(clients: int, cohort: int) -> None:
    """Runs as many rounds as each line of standard input says, and answers with their seconds."""
    from fedrsclip_jax.checkpoint import Checkpoints
    from fedrsclip_jax.federated.cohort import draw_cohort
    from tests.benchmarks import federations

    config = federations.settings(cohort=cohort, rounds=10**6, eval__every=4, local__learning_rate=0.05)
    owners = federations.virtual(IMAGES, clients)
    rounds = federations.Rounds(federations.engine(config, owners, IMAGES, federations.tiny()), 1)
    for line in sys.stdin:
        rounds.each = int(line)
        began = time.perf_counter()
        if rounds.each:
            rounds()
            print(json.dumps(time.perf_counter() - began), flush=True)
            continue
        engine = rounds.engine
        with tempfile.TemporaryDirectory() as folder:
            with Checkpoints(Path(folder)) as checkpoints:
                checkpoints.save(rounds.number, engine.server, engine.population)
            saved = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        draws = timing.seconds(lambda: draw_cohort(0, rounds.number, clients, cohort), 100)
        answer = {
            "drawn": len(engine.population.took_part),
            "draw_seconds": draws,
            "checkpoint_bytes": saved,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=160, help="of each population, all turns together")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--cohort", type=int, default=64, help="clients of a round")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve, arguments.cohort)
    print(timing.machine("orbax-checkpoint"))
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.population", f"--cohort={arguments.cohort}", "--serve"]
    servers = {
        clients: subprocess.Popen([*command, str(clients)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for clients in POPULATIONS
    }

    def ask(clients: int, rounds: int):
        server = servers[clients]
        assert server.stdin
        assert server.stdout
        server.stdin.write(f"{rounds}\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {clients} clients has ended; its error stands above")
        return json.loads(answer)

    each = max(arguments.rounds // arguments.turns, 1)
    for clients in POPULATIONS:
        ask(clients, each)  # compiles
    taken: dict[int, list[float]] = {clients: [] for clients in POPULATIONS}
    for _ in range(arguments.turns - 1):
        for clients in POPULATIONS:
            taken[clients].append(ask(clients, each) / each)
    told = {clients: ask(clients, 0) for clients in POPULATIONS}
    for server in servers.values():
        assert server.stdin
        server.stdin.close()
        server.wait()

    median = {clients: statistics.median(values) for clients, values in taken.items()}
    rows = [
        (
            f"{clients:,}",
            told[clients]["drawn"],
            1e3 * median[clients],
            median[clients] / median[POPULATIONS[0]],
            1e6 * told[clients]["draw_seconds"],
            told[clients]["peak_bytes"] / 2**20,
            told[clients]["checkpoint_bytes"] / 2**20,
        )
        for clients in POPULATIONS
    ]
    columns = ("clients", "drawn", "ms a round", "ratio", "us to draw a cohort", "peak MiB", "checkpoint MiB")
    timing.print_table(f"Rounds of {arguments.cohort} clients, {arguments.turns * each} of them", columns, rows)
    small, million, billion = POPULATIONS
    timing.print_record(
        "population",
        round_time_ratio_1e6_to_1e3=median[million] / median[small],
        round_time_ratio_1e9_to_1e3=median[billion] / median[small],
        extra_bytes_1e9=told[billion]["peak_bytes"] - told[small]["peak_bytes"],
        drawn_1e9=told[billion]["drawn"],
        draw_seconds_1e9=told[billion]["draw_seconds"],
        seconds=time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
