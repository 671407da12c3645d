"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave us: one line that names the cause and the cure.

    The command line prints the message without a traceback; a notebook sees an ordinary ``ValueError``.
    """
