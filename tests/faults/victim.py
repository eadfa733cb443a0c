"""The command line in a process that kills itself, without a word to anybody, while it is at something.

    python -m tests.faults.victim PHASE SEED ARGUMENTS OF fedrsclip...

A thread looks every millisecond at what the others are doing. Each time it finds them in PHASE it draws a lot, and the
process is gone by SIGKILL when the lot falls.
"""

import os
import random
import signal
import sys
import threading
import time

# Functions on the stack of some thread, by phase, and the chance of death at each look.
PHASES = {
    "encoding": (("features.py", "_compute"), 0.01),
    "round": (("engine.py", "advance"), 0.01),
    "evaluation": (("evaluate.py", "score_federation"), 0.02),
    "save": (("checkpoint.py", "save"), 0.2),
    "save in the background": (("async_checkpointer.py", "_background_wait_for_commit_futures"), 0.1),
}


def watch(phase: str, seed: int) -> None:
    (file, function), chance = PHASES[phase]
    lots = random.Random(seed)
    while True:
        time.sleep(0.001)
        for frame in sys._current_frames().values():
            while frame is not None:
                code = frame.f_code
                if code.co_name == function and code.co_filename.endswith(file) and lots.random() < chance:
                    os.kill(os.getpid(), signal.SIGKILL)
                frame = frame.f_back


if __name__ == "__main__":
    threading.Thread(target=watch, args=(sys.argv[1], int(sys.argv[2])), daemon=True).start()
    from fedrsclip_jax import cli

    sys.exit(cli.main(sys.argv[3:]))
