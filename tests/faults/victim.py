"""The command line in a process that kills itself, without a word to anybody, while it is at something.

    python -m tests.faults.victim PHASE SEED FOLDER ARGUMENTS OF fedrsclip...

A thread looks every millisecond, or as often as it gets its turn, whether PHASE is going on. It lets it begin some
times, a number drawn by lot, and then draws a lot at each look, until one falls and the process is gone by SIGKILL; the
tenth look is fatal, and any look from the third further beginning on. With a run's FOLDER (- for none) it begins to
look when that holds a checkpoint.
"""

import functools
import importlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

_ORBAX = "orbax.checkpoint._src.checkpointers.async_checkpointer"
# By phase: module and name of the function that it is, the last beginning that may be drawn, and the chance of death at
# each look from the drawn beginning on.
PHASES = {
    "encoding": ("fedrsclip_jax.data.features", "_compute", 1, 0.1),
    "round": ("fedrsclip_jax.federated.engine", "Engine.advance", 5, 0.1),
    "evaluation": ("fedrsclip_jax.evaluate", "score_federation", 3, 0.1),
    "save": ("fedrsclip_jax.checkpoint", "Checkpoints.save", 4, 0.5),
    "save in the background": (_ORBAX, "_background_wait_for_commit_futures", 3, 0.2),
}


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is one under its final name."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


class Phase:
    """How often a function has begun, and whether it is going on in any thread.

    It is wrapped before others import it by name. (To walk the stacks of running threads now and then crashes CPython
    3.11.)
    """

    def __init__(self, module: str, name: str):
        self.entries = self.inside = 0
        owner = importlib.import_module(module)
        *classes, name = name.split(".")
        for part in classes:
            owner = getattr(owner, part)
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*arguments, **named):
            self.entries += 1
            self.inside += 1
            try:
                return function(*arguments, **named)
            finally:
                self.inside -= 1

        setattr(owner, name, watched)


def watch(phase: Phase, most: int, chance: float, seed: int, folder: str) -> None:
    lots = random.Random(seed)
    while folder != "-" and not has_checkpoint(Path(folder)):
        time.sleep(0.001)
    fatal, looks = phase.entries + lots.randint(1, most), 0
    while True:
        time.sleep(0.001)
        if phase.inside and phase.entries >= fatal:
            looks += 1
            if looks >= 10 or phase.entries >= fatal + 3 or lots.random() < chance:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    module, name, most, chance = PHASES[sys.argv[1]]
    phase = Phase(module, name)
    threading.Thread(target=watch, args=(phase, most, chance, int(sys.argv[2]), sys.argv[3]), daemon=True).start()
    from fedrsclip_jax import cli

    sys.exit(cli.main(sys.argv[4:]))
