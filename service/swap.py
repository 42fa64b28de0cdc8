"""Change what a running service serves: load, swap or unload a checkpoint; what goes wrong leaves everything as it was.

A swap makes another catalog beside the one that serves, runs every purifier of the new checkpoint once, and only then puts
the new catalog in the old one's place, in one assignment. Requests that were accepted before hold what they were accepted for,
so the old network drains by itself and is freed with the last of them.
"""

import asyncio
import logging
from pathlib import Path

from models.catalog import Catalog, Loaded, UnknownName
from models.checkpoint import CARD, WEIGHTS, AddOn, Checkpoint, CheckpointError, open_checkpoint
from service import errors
from service.engine import Engine
from service.logs import pairs

log = logging.getLogger(__name__)


class Swaps:
    """Changes of an engine's catalog, one at a time. Made and used in the engine's event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._one_at_a_time = asyncio.Lock()

    def loaded(self) -> list[Loaded]:
        """What is served.

        Raises:
            errors.NotReady
        """
        return self._engine.catalog.checkpoints()

    async def load(self, name: str, sha256: str) -> tuple[Loaded, Loaded | None]:
        """Serve the checkpoint in folder `name`; also what it replaces: that of the same model and name.

        Raises:
            errors.UnknownCheckpoint, errors.CheckpointRefused, errors.Conflict, errors.Unavailable: nothing has changed.
        """
        async with self._one_at_a_time:
            before = self._engine.catalog
            checkpoint = await self._engine.in_thread(lambda: self._read(name, sha256))
            card = checkpoint.card
            try:
                after = before.with_checkpoint(checkpoint)
            except CheckpointError as error:
                raise errors.CheckpointRefused(str(error)) from error
            self._check_default(after)
            new, old = after.find(card.model, card.name), before.find(card.model, card.name)
            assert new is not None
            await self._warm(after, new)
            self._engine.adopt(after)
            _note("loaded", new, replaced=old and old.checkpoint.card.weights_sha256)
            return new, old

    async def unload(self, model: str, name: str, sha256: str | None = None) -> Loaded:
        """Serve it no longer. sha256: only if these are its weights.

        Raises:
            errors.UnknownCheckpoint, errors.Conflict: nothing has changed.
        """
        async with self._one_at_a_time:
            catalog = self._engine.catalog
            found = catalog.find(model, name)
            if found is None:
                known = ["/".join(each.key) for each in self.loaded()]
                raise errors.UnknownCheckpoint("no such model and name are loaded; there are", known)
            if sha256 is not None:
                _check_sum(f"{model}/{name}", found.checkpoint, sha256)
            after = catalog.without(model, name)
            self._check_default(after)
            self._engine.adopt(after)
            _note("unloaded", found)
            return found

    def _read(self, name: str, sha256: str) -> Checkpoint | AddOn:
        folder = folder_below(self._engine.settings.admin_root, name)
        try:
            checkpoint = open_checkpoint(folder)
        except CheckpointError as error:
            raise errors.CheckpointRefused(str(error)) from error
        _check_sum(f"folder {name!r}", checkpoint, sha256)
        if not checkpoint.card.purifiers:
            raise errors.CheckpointRefused(f"{folder / CARD}: it offers no purifier, so no request could ask for it")
        return checkpoint

    def _check_default(self, after: Catalog) -> None:
        model = self._engine.settings.default_model
        purifier = self._engine.default_purifier(model)
        try:
            after.resolve(model, purifier)
        except UnknownName as error:
            raise errors.DefaultNeeded(
                f"requests that name nothing mean {model}/{purifier}, which would not be "
                f"served any more ({error}); load another checkpoint that offers it first"
            ) from error

    async def _warm(self, catalog: Catalog, new: Loaded) -> None:
        """Every purifier once, on the worker that will run it, while requests still go to what serves now."""
        offers = [offer for offer in catalog.offers() if new in offer.parts]
        if not offers:
            raise errors.CheckpointRefused(
                "this add-on protects a classifier that is not loaded, or not with the weights that it was trained beside"
            )
        for offer in offers:
            try:
                with self._engine.problems():
                    answer = await self._engine.warm(offer)
            except errors.Internal as error:  # no trouble of the device's, so it is the checkpoint's
                cause = error.__cause__
                log.warning("refused: %s/%s/%s", offer.model, offer.classifier, offer.purifier, exc_info=cause)
                raise errors.CheckpointRefused(
                    f"purifier {offer.purifier!r} failed on the warm-up image: {type(cause).__name__}: {cause}"
                ) from error
            if len(answer.probabilities) != len(offer.card.labels):
                raise errors.CheckpointRefused(
                    f"the network tells {len(answer.probabilities)} classes apart, the card names {len(offer.card.labels)}"
                )


def folder_below(root: Path | None, name: str) -> Path:
    """The folder of a plain name directly below `root`. Links may lead anywhere in `root`, but not out of it.

    Raises:
        errors.CheckpointRefused: there is no root, or a link leads out of it.
        errors.UnknownCheckpoint: no such folder.
    """
    if root is None:
        raise errors.CheckpointRefused("nothing may be loaded here; set UNPERTURB_ADMIN_ROOT and start again")
    known = sorted(each.name for each in root.iterdir() if (each / CARD).is_file())
    if name not in known:  # a name out of the listing is no path, whatever came
        raise errors.UnknownCheckpoint("no such folder; with a card there are", known)
    for path in (root / name, root / name / CARD, root / name / WEIGHTS):
        if not path.resolve().is_relative_to(root.resolve()):
            raise errors.CheckpointRefused(f"{path} is a link that leads out of {root}; copy the files there instead")
    return root / name


def _check_sum(what: str, checkpoint: Checkpoint | AddOn, named: str) -> None:
    found = checkpoint.card.weights_sha256
    if found != named:
        raise errors.WrongChecksum(what, found, named)


def _note(what: str, loaded: Loaded, **facts: object) -> None:
    card = loaded.checkpoint.card
    names = {"model": card.model, "name": card.name, "weights_sha256": card.weights_sha256}
    log.info("checkpoint %s %s", what, pairs(**names, folder=loaded.checkpoint.folder.name, **facts))
