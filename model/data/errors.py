"""The one exception that stands for a user's mistake."""


class InputError(ValueError):
    """Bad input from the user: one line naming the file, row or field. Shown without a traceback."""
