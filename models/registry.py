"""Builders by name: classifiers, purifiers and their networks are made of what cards and recipes name."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

B = TypeVar("B", bound=Callable[..., object])
R = TypeVar("R")


class Registry(Generic[B]):
    """Functions by name. what: what they build, for messages, such as `architecture`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.builders: dict[str, B] = {}

    def register(self, name: str) -> Callable[[B], B]:
        """Make the function below available under `name`. A name can be taken once.

        Raises:
            ValueError: the name is taken.
        """

        def decorate(builder: B) -> B:
            if name in self.builders:
                raise ValueError(f"{self._what} {name!r} is already registered")
            self.builders[name] = builder
            return builder

        return decorate

    def names(self) -> list[str]:
        """Those that are taken."""
        return sorted(self.builders)

    def builder(self, name: str) -> B:
        """The function of that name.

        Raises:
            ValueError: there is none; the message says what there is.
        """
        if name not in self.builders:
            raise ValueError(f"unknown {self._what} {name!r}; known: {', '.join(self.names())}")
        return self.builders[name]


def called(what: str, builder: Callable[..., R], arguments: Mapping[str, object]) -> R:
    """What a builder makes of a card's arguments.

    Raises:
        ValueError: one of them does not fit it.
    """
    try:
        return builder(**arguments)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
