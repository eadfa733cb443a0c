"""The one error that a person's input can cause; the command line turns it into one line and exit code 2."""


class InputError(ValueError):
    """Bad input: a configuration, a path or a file that cannot be used.

    The message is one line that names the value, what was allowed and the remedy.
    """
