"""Errors that the command line turns into one line: bad input (exit code 2), and a result that fails its check (1)."""

import errno

# What a file system answers that is full, or that may not be written.
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class InputError(ValueError):
    """Bad input: a configuration, a path or a file that cannot be used.

    The message is one line that names the value, what was allowed and the remedy.
    """


class CheckError(Exception):
    """A result that does not stand up to its check; the message says where, in one line."""
