"""Seeds that nobody can guess, for requests that bring none."""

import secrets


class Seeds:
    """Draws numbers in [0, limit) from the system's randomness, many at a time: each call there gives Python's lock away.

    limit: a power of two up to 2**64, so that no number is likelier than another.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._drawn: list[int] = []

    def draw(self) -> int:
        """The next one. Not for several threads at once."""
        if not self._drawn:
            self._drawn = memoryview(secrets.token_bytes(8 * 512)).cast("Q").tolist()
        return self._drawn.pop() % self._limit
