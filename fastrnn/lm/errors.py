"""The one exception of the trainer that is meant for the person who started it."""


class UserError(Exception):
    """A mistake in what was asked or given: its text is one line, shown without a traceback."""
