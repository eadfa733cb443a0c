"""Errors that the command line turns into one line: bad input (exit code 2), and a result that fails its check (1)."""

import errno
import shlex
from pathlib import Path

# What a file system answers that is full, or that may not be written.
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class InputError(ValueError):
    """Bad input: a configuration, a path or a file that cannot be used.

    The message is one line that names the value, what was allowed and the remedy.
    """


class CheckError(Exception):
    """A result that does not stand up to its check; the message says where, in one line."""


def install(extra: str) -> str:
    """The command that installs what an extra of setup.cfg needs; the package is on no index."""
    clone = Path(__file__).parent.parent
    place = clone if (clone / "setup.cfg").is_file() else "CLONE_OF_FEDRSCLIP_JAX"
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
