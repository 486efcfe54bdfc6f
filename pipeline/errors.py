"""The one exception a user is meant to see."""

from temi.cache.schema import CacheError


class UserError(ValueError):
    """A mistake or a circumstance that the user can mend.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it and
    exits with code 2.
    """


USER_ERRORS = (UserError, CacheError)
