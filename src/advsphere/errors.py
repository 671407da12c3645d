"""The exception for mistakes that the user can correct."""


class UserError(ValueError):
    """A mistake in the user's input. Its message is one line that names the cause and the cure.

    The command line prints the message without a traceback. In a notebook it is an ordinary `ValueError`.
    """
