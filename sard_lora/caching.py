"""Results that are kept as long as there is room for them."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

CACHE_BYTES = 2 << 30
"""Decoded images are kept up to this size in all."""


class Kept(Generic[Key, Result]):
    """A function of one argument whose results are kept up to `limit` bytes; what does not fit is made again each time.

    `size` tells how many bytes a result takes; `results` holds those that are kept.
    """

    def __init__(
        self, function: Callable[[Key], Result], size: Callable[[Result], int], limit: int = CACHE_BYTES
    ) -> None:
        self._function, self._size, self._room = function, size, limit
        self.results: dict[Key, Result] = {}

    def __call__(self, key: Key) -> Result:
        """The function's result for `key`."""
        if key in self.results:
            return self.results[key]
        result = self._function(key)
        size = self._size(result)
        if size <= self._room:
            self.results[key] = result
            self._room -= size
        return result
