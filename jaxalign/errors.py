"""The one exception that means "the input is wrong, not the program"."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from the user: a file, row, field, flag or folder.

    The message is one line that names what is wrong and where. The command line prints it without a traceback and
    exits with status 2; in a notebook it is an ordinary ``ValueError``.
    """
