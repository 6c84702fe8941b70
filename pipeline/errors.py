"""The one exception that means "your input", as against a fault of the program."""


class InputError(ValueError):
    """Bad configuration, file or argument. Commands print it as one line and end with exit code 2."""
