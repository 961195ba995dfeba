"""Opens what is kept of parts beside the outbox (genealogy, evidence, recorder), and goes on from the last run."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import __version__, ledger
from edge.annotate import annotate
from edge.chain import About
from edge.clock import Clock
from edge.config import Config, config_hash, effective
from edge.event import LedgerCounts
from edge.evidence import Evidence, Served
from edge.genealogy import Genealogy
from edge.outbox import Outbox
from edge.ports import Kept
from edge.recorder import Recorder
from edge.records import Inspection, Loss
from edge.serving import Product
from edge.tally import Tally

log = logging.getLogger(__name__)

WRITERS_STOP_S = 5.0


def restore(outbox: Outbox, tally: Tally, rows: Genealogy | None) -> tuple[LedgerCounts, int]:
    """The ledger and the count of parts as the last run left them.

    What it captured and never settled is lost by name, a row whose verdict it never told is void, and no number of a
    part comes twice, whatever was lost.

    Raises:
        OutboxError: the ledger cannot be read or stored.
        GenealogyError: rows cannot be read or stored.
    """
    counts, parts = outbox.ledger()
    if counts is None:  # a new outbox, also in place of a lost one: counting begins anew
        counts = ledger.empty()
        tally.set(0)
        outbox.save_ledger(counts, parts)
    elif rows is not None:
        rows.void_after(parts)
    if rows is not None:
        parts = max(parts, rows.highest_part())
    unsettled = tally.count - counts.triggers
    if unsettled > 0:
        log.warning("the last run ended with %d triggers unsettled: counted as lost (shutdown)", unsettled)
        counts = ledger.lost(counts, Loss.SHUTDOWN, unsettled)
        parts += unsettled  # the line may have been told so many numbers that are not on the disk
        outbox.save_ledger(counts, parts)
    tally.set(counts.triggers)
    return counts, parts


def open_kept(
    config: Config, product: Product, clock: Clock, boot: str, down: ExitStack
) -> tuple[Kept, Genealogy | None]:
    """Open and start what the config wants; what is started is pushed on `down`.

    Raises:
        GenealogyError: rows cannot be stored here.
    """
    state = Path(config.paths.state)
    rows = pictures = recorder = None
    if config.genealogy.use:
        rows = Genealogy(state / "genealogy.db", clock, boot, config.genealogy, _about(config, product))
        down.callback(rows.close)
    if config.evidence.use:
        pictures = _evidence(config, product, clock, down)
    if config.recorder.use:
        recorder = Recorder(
            state / "recorder", config.recorder, clock, _session(config, product, boot), classes=product.classes
        )
        recorder.start()
        down.callback(recorder.stop, WRITERS_STOP_S)
    return Kept(rows, pictures, recorder), rows


def serve(kept: Kept, config: Config, product: Product, boot: str) -> None:
    """Parts are judged by another product from here on: what is kept of them says so."""
    if kept.rows is not None:
        kept.rows.serve(_about(config, product))
    if kept.pictures is not None:
        kept.pictures.serve(pictured(config, product))
    if kept.recorder is not None:
        kept.recorder.serve(_session(config, product, boot), product.classes)


def _about(config: Config, product: Product) -> About:
    return About(product.digest, config_hash(config), product.classes)


def pictured(config: Config, product: Product) -> Served:
    """How pictures of this product's parts are drawn, and what is written beside them."""

    def draw(inspection: Inspection) -> NDArray[np.uint8]:
        return annotate(inspection, product.classes, product.shown_from, None, product.foreign_from)

    about = {"bundle_digest": product.digest, "config_hash": config_hash(config), "version": __version__}
    return Served(about, draw, product.classes)


def _evidence(config: Config, product: Product, clock: Clock, down: ExitStack) -> Evidence:
    folder = Path(config.paths.state) / "evidence"
    pictures = Evidence(folder, config.evidence, clock, pictured(config, product))
    pictures.start()
    down.callback(pictures.stop, WRITERS_STOP_S)
    return pictures


def _session(config: Config, product: Product, boot: str) -> dict[str, Any]:
    """What a replay needs to know once."""
    return {
        "boot": boot,
        "version": __version__,
        "config": effective(config),
        "recipes": {product.recipes.hashes[name]: text for name, text in product.recipes.texts.items()},
        "product": product.manifest.product,
        "product_version": product.manifest.version,
        "bundle_digest": product.digest,
        "artifact": product.artifact.file,
        "runtime": product.runtime,
    }
