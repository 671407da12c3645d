"""The one exception that the user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the cause and the cure.

    The command line prints the message without a traceback. In a notebook it is an ordinary `ValueError`.
    """
