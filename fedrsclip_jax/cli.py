"""The command line: one verb, and its exit code. Nothing here imports JAX until a verb runs.

Exit codes: 0 all is well, 1 a result that fails its check or a run that diverged, 2 bad input (one line says what and
how to mend it), 130 and 143 stopped by Ctrl-C and SIGTERM (a run is saved first, and a line says how to go on).
"""

import errno
import os
import shlex
import sys
from collections.abc import Sequence

from fedrsclip_jax import arguments, distributed
from fedrsclip_jax.errors import DISK_REFUSALS, CheckError, InputError
from fedrsclip_jax.interrupt import Stopped
from fedrsclip_jax.verbs import say

_BY_MANY = ("train", "evaluate")  # verbs that several processes may run as one


def main(given: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    words = list(sys.argv[1:] if given is None else given)
    parser = arguments.parser()
    debug = "--debug" in words
    try:
        known, rest = parser.parse_known_args(words)
        if known.verb is None:
            parser.print_help()
            return 0
        overrides = arguments.overrides(rest)
        if known.verb in _BY_MANY:
            distributed.start()
        else:
            distributed.refuse(known.verb)
        known.run(known, overrides)
        distributed.exchange("done")  # who leaves early is taken for dead
        sys.stdout.flush()
    except Stopped as stopped:
        distributed.exchange("done")
        if not any(word.startswith("--workdir") for word in words):
            words.append(f"--workdir={known.workdir}")
        say(f"{stopped}; to go on: {shlex.join(['fedrsclip', *words])}")
        return stopped.exit_code
    except (InputError, CheckError) as error:
        if debug:
            raise
        say(str(error))
        return 2 if isinstance(error, InputError) else 1
    except BrokenPipeError:  # who reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if debug or not (error.filename or error.errno in DISK_REFUSALS):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room" if full else "give one that can be read and written"
        say(
            f"{error.filename or 'a file'} cannot be used ({error.strerror}); {remedy}, and run the same command again "
            "(what was saved is kept)"
        )
        return 2
    except KeyboardInterrupt as interrupt:
        say("interrupted")
        return interrupt.args[0] if interrupt.args else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
