"""Kills a run at random moments, starts it again until it ends, and holds the end against a run that was left alone.

    python -m tests.faults.kill [--times 50] [--seed 0]

Five kills fall on one run, one in each phase of `victim` and in changing order but for the encoding, which comes first;
then it is left to end. The last of the five waits for a checkpoint. Whatever the moment, the prompts have to end in the
same bits, and `metrics.jsonl` in the same bytes. Starts that found a checkpoint to go on from are counted, as a run
that always begins anew would end alike, too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.victim import PHASES, has_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS = (
    f"--config={REPOSITORY / 'configs' / 'quickstart.py'}",
    "--quiet",
    "--no-report",
    "--config.seeds=1",
    "--config.baselines=",
    "--config.data.scenes.count=320",
    "--config.partition.clients=4",
    "--config.partition.alpha=0.5",
    "--config.local.batch_size=16",
    "--config.rounds=60",
    "--config.cohort=3",
    "--config.dropout=0.2",
    "--config.server.optimizer=adam",
    "--config.server.learning_rate=0.01",
    "--config.eval.every=2",
    "--config.eval.split=validation",
    "--config.checkpoint.every=3",
)

MISSES = 2  # runs that may end before they are killed; their phases are still owed


def start(module: list[str], workdir: Path, cache: Path, xla: Path) -> int:
    """One start of the run; its exit code, negative for a signal."""
    cache.mkdir(exist_ok=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    # Compiled programs are kept through all runs: they are not what is tested.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(xla), **os.environ}
    environment |= {"FEDRSCLIP_CACHE": str(cache), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", *module, "train", *FLAGS, f"--workdir={workdir}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done.returncode


def left(workdir: Path) -> dict[str, object]:
    """All of a finished run that has to be the same."""
    summary = json.loads((workdir / "summary.json").read_text())
    for of_the_clock in ("seconds", "client_steps_per_second", "provenance"):
        del summary[of_the_clock]
    best = sorted(path.name for path in (workdir / "best").iterdir())
    return {"lines": (workdir / "metrics.jsonl").read_bytes(), "best": best, **summary}


def kill(times: int, seed: int, say=print) -> tuple[dict[str, int], int]:
    """Kills `times` times; how often in each phase, and how many starts after a kill found a checkpoint.

    Raises:
      AssertionError: a run ended otherwise than it should have, or was never killed in one of the phases.
    """
    counts, went_on, done, missed = dict.fromkeys(PHASES, 0), 0, 0, 0
    lots = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        xla = folder / "xla"
        xla.mkdir()
        assert start(["fedrsclip_jax.cli"], folder / "alone", folder / "cache", xla) == 0
        expected = left(folder / "alone")
        owed: list[str] = []
        while done < times:
            workdir, cache = folder / f"run{done + missed}", folder / f"cache{done + missed}"
            first, *others = PHASES
            lots.shuffle(others)
            owed = owed or [first, *others][: times - done]
            killed = False
            while owed:
                phase = owed[0]
                after = str(workdir) if len(owed) == 1 and phase != first else "-"
                began, goes_on = time.monotonic(), killed and has_checkpoint(workdir)
                victim = ["tests.faults.victim", phase, str(lots.randrange(2**31)), after]
                if start(victim, workdir, cache, xla) == 0:  # on a busy machine nobody may have looked in time
                    missed += 1
                    assert missed <= MISSES, f"the run ended before it could be killed in the phase: {phase}"
                    say(f"     the run ended before it could be killed at: {phase}; once more, in a new run")
                    break
                killed = True
                went_on += goes_on
                counts[phase] += 1
                done += 1
                del owed[0]
                say(f"{done:3d}  killed at: {phase} ({time.monotonic() - began:.1f} s)")
            went_on += killed and not owed and has_checkpoint(workdir)
            assert start(["fedrsclip_jax.cli"], workdir, cache, xla) == 0
            found = left(workdir)
            differ = [key for key in expected if found[key] != expected[key]]
            assert not differ, f"after the kills the run ends in another {', '.join(differ)}"
            say("     and the run ended as the one that was left alone")
            shutil.rmtree(workdir)
            shutil.rmtree(cache)
    return counts, went_on


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survived, went_on = kill(arguments.times, arguments.seed, lambda line: print(line, flush=True))
    told = {"kills": sum(survived.values()), "survived": survived, "starts_from_a_checkpoint": went_on}
    print(json.dumps(told))
