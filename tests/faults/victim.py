"""The command line in a process that kills itself, without a word to anybody, while it is at something.

    python -m tests.faults.victim PHASE SEED FOLDER ARGUMENTS OF fedrsclip...

A thread looks every millisecond, or as often as it gets its turn, at what the others are doing. It lets them enter
PHASE some times, a number drawn by lot, and then draws a lot at each look, until one falls and the process is gone by
SIGKILL; the tenth look is fatal, and any look from the third further entry on. With a run's FOLDER (- for none) it
begins to look when that holds a checkpoint.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

# By phase: a function on the stack of some thread, the last entry into it that may be drawn, and the chance of death at
# each look from the drawn entry on.
PHASES = {
    "encoding": (("features.py", "_compute"), 1, 0.1),
    "round": (("engine.py", "advance"), 5, 0.1),
    "evaluation": (("evaluate.py", "score_federation"), 3, 0.1),
    "save": (("checkpoint.py", "save"), 4, 0.5),
    "save in the background": (("async_checkpointer.py", "_background_wait_for_commit_futures"), 3, 0.2),
}


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is one under its final name."""
    return any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def watch(phase: str, seed: int, folder: str) -> None:
    (file, function), most, chance = PHASES[phase]
    lots = random.Random(seed)
    fatal, entries, looks, inside = lots.randint(1, most), 0, 0, None
    while folder != "-" and not has_checkpoint(Path(folder)):
        time.sleep(0.001)
    while True:
        time.sleep(0.001)
        before, inside = inside, None
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
                    inside = frame
                frame = frame.f_back
        entries += inside is not None and inside is not before
        if inside is not None and entries >= fatal:
            looks += 1
            if looks >= 10 or entries >= fatal + 3 or lots.random() < chance:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(sys.argv[1], int(sys.argv[2]), sys.argv[3]), daemon=True).start()
    from fedrsclip_jax import cli

    sys.exit(cli.main(sys.argv[4:]))
