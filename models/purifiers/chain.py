"""Several purifiers in a row over one classifier: each gets what the one before it left."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.purifiers.base import OptionError, Options, Purified, Purifier, PurifierInfo, Wanted


class Chain:
    """Purifiers, first to last; the last one classifies.

    purifiers: they, for attacks that look into the chain.

    The objective is the first purifier's that has one, as it saw the image; `epsilon` is the sum of the budgets chosen,
    which bounds the whole change where every purifier has a budget.
    """

    KIND = "chain"

    def __init__(self, purifiers: Sequence[Purifier]) -> None:
        self.purifiers = tuple(purifiers)
        infos = [purifier.info for purifier in purifiers]
        budgets = [info.eps_pfy for info in infos if info.eps_pfy is not None]
        objectives = [info.objective for info in infos if info.objective]
        self._info = PurifierInfo(
            kind=self.KIND,
            paper="; ".join(dict.fromkeys(info.paper for info in infos)),
            summary="; then ".join(info.summary for info in infos),
            eps_pfy=sum(budgets) if len(budgets) == len(infos) else None,
            forward_passes=sum(info.forward_passes for info in infos),
            backward_passes=sum(info.backward_passes for info in infos),
            objective=objectives[0] if objectives else None,
            options=tuple(self._takers()),
            random=any(info.random for info in infos),
        )

    @property
    def info(self) -> PurifierInfo:
        return self._info

    def _takers(self) -> dict[str, int]:
        """The options that exactly one of the purifiers takes (for others it would be unclear what is meant), and which."""
        found: dict[str, list[int]] = {}
        for i, purifier in enumerate(self.purifiers):
            for option in purifier.info.options:
                found.setdefault(option, []).append(i)
        return {option: takers[0] for option, takers in found.items() if len(takers) == 1}

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """See `Purifier`."""
        steps: list[Purified] = []
        for purifier, own in zip(self.purifiers, self.seeds_of_steps(seeds), strict=True):
            steps.append(purifier.purify(steps[-1].image if steps else x, own, wanted))
        told = next((step for step in steps if step.objective_before is not None), steps[-1])
        return replace(
            steps[-1],
            epsilon=torch.stack([step.epsilon for step in steps]).sum(0),
            objective_before=told.objective_before,
            objective_after=told.objective_after,
            forward_passes=torch.stack([step.forward_passes for step in steps]).sum(0),
            backward_passes=torch.stack([step.backward_passes for step in steps]).sum(0),
            steps=tuple(steps),
        )

    def seeds_of_steps(self, seeds: Sequence[int] | None) -> list[list[int] | None]:
        """What each purifier gets for its seeds: a step's draws must not be those of the step before it."""
        if seeds is None:
            return [None] * len(self.purifiers)
        steps = range(len(self.purifiers))
        return [[(seed + i * 0x9E3779B97F4A7C15) % 2**63 for seed in seeds] for i in steps]

    def with_options(self, options: Options) -> "Chain":
        """See `Purifier`; an option goes to the one purifier that takes it."""
        takers, given = self._takers(), options.given()
        if foreign := [option for option in given if option not in takers]:
            raise OptionError(f"not exactly one purifier of this chain takes {', '.join(foreign)}")
        purifiers = list(self.purifiers)
        for option in given:
            i = takers[option]
            purifiers[i] = purifiers[i].with_options(Options(**{option: getattr(options, option)}))
        return Chain(purifiers)

    def logits(self, x: Tensor) -> Tensor:
        """See `Purifier`."""
        return self.purifiers[-1].logits(x)
