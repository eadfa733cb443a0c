"""The command line: one verb, and its exit code. Nothing here imports JAX until a verb runs.

Exit codes: 0 all is well; 1 a result that fails its check, a run that diverged, or a fault of ours; 2 bad input (one
line says what and how to mend it); 130 and 143 stopped by Ctrl-C and SIGTERM (a run is saved first, and a line says how
to go on).
"""

import errno
import os
import shlex
import site
import sys
from collections.abc import Sequence
from pathlib import Path

from fedrsclip_jax import arguments, distributed
from fedrsclip_jax.errors import DISK_REFUSALS, CheckError, InputError
from fedrsclip_jax.interrupt import Stopped
from fedrsclip_jax.provenance import of_command
from fedrsclip_jax.verbs import say

# Where Python and its packages lie.
_INSTALLED = tuple({Path(__file__).resolve().parent, *map(Path, site.getsitepackages())})
_LAUNCHER = "FEDRSCLIP_LAUNCHER"  # what was typed before the words, as the scripts in launch/ say it
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
        overrides = arguments.overrides(rest, known.parser)
        if known.verb in _BY_MANY:
            distributed.start()
        else:
            distributed.refuse(known.verb)
        with of_command(words):
            known.run(known, overrides)
        distributed.exchange("done")  # who leaves early is taken for dead
        sys.stdout.flush()
    except Stopped as stopped:
        distributed.exchange("done")
        if not any(word.startswith("--workdir") for word in words):
            words.append(f"--workdir={known.workdir}")
        say(f"{stopped}; to go on: {os.environ.get(_LAUNCHER) or 'fedrsclip'} {shlex.join(words)}")
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
        message, code = said_of_file(error, words)
        say(message)
        return code
    except RuntimeError:
        distributed.mourn()  # a collective fails where a process has died, which is then what there is to say
        raise
    except KeyboardInterrupt as interrupt:
        say("interrupted")
        return interrupt.args[0] if interrupt.args else 130
    return 0


def said_of_file(error: OSError, words: Sequence[str]) -> tuple[str, int]:
    """What to say of a file that the system refuses, and the exit code.

    It is bad input where the words of the command name the file, or a folder above it to read from, and where a disk is
    full or may not be written. Any other file is ours, made or shipped by this package, and so is the fault.
    """
    files = [Path(os.fsdecode(file)).absolute() for file in (error.filename, error.filename2) if file]
    what = f"{error.filename or 'a file'} cannot be used ({error.strerror})"
    again = "run the same command again (what was saved is kept)"
    if any(file.is_relative_to(place) for file in files for place in _INSTALLED):
        return f"{what}; it belongs to the installation of fedrsclip_jax: install it again", 1
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what}; make room, and {again}", 2
    if error.errno in DISK_REFUSALS or any(_is_named(file, words) for file in files):
        return f"{what}; give one that can be read and written, and {again}", 2
    ours = "it is a file of fedrsclip's own, so that this is no fault of yours unless it was moved or changed"
    return f"{what}; {ours}: {again}, and if that does not help, report what it says with --debug", 1


def _is_named(file: Path, words: Sequence[str]) -> bool:
    """Whether the words of a command name a file, or a folder above it that is not for results."""
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        value = value if equals and flag.startswith("-") else word
        results = (flag if equals else before) in ("--workdir", "--output")
        for part in value.split(","):
            path = Path(part.rpartition(":")[2]).expanduser().absolute()
            if part and (path == file or (path in file.parents and not results)):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
