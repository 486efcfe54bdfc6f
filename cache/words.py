"""Numbers and lists in messages, as a person says them."""

from collections.abc import Sequence

NAMED = 5  # of a list; more are counted


def counted(number: int, noun: str, nouns: str = "") -> str:
    """``1 image``, ``1,797 images``; `nouns` is the plural of what takes more than an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def first_of(texts: Sequence[str], between: str = ", ") -> str:
    """The first NAMED of `texts`, and how many more there are."""
    rest = len(texts) - NAMED
    return between.join(texts[:NAMED]) + (f", and {rest:,} more" if rest > 0 else "")
