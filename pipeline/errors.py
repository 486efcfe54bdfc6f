"""The one exception a user is meant to see, and what it says of errors of other code."""

from temi.cache.schema import CacheError


class UserError(ValueError):
    """A mistake or a circumstance that the user can mend.

    The message is one sentence: what is wrong, where, and what to do. The command line prints it and
    exits with code 2.
    """


USER_ERRORS = (UserError, CacheError)


def in_a_line(told: object, most: int = 200) -> str:
    """What an error of other code says, on one line of at most so many characters."""
    return " ".join(str(told).split())[:most]


def kind_and_reason(error: BaseException) -> str:
    """The kind of an error and what it says, in a line, such as ``KeyError: 'sharpness'``."""
    text = in_a_line(error.msg if isinstance(error, SyntaxError) else error)
    return f"{type(error).__name__}{': ' if text else ''}{text}"
