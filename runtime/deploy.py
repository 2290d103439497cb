"""A bundle on its way to a device: sent, built there, proved there, measured there, and its numbers brought home.

Whatever ends a run, the next one goes on from there, because every step lies on the device under a key of all that
decides its outcome. So a connection that drops is answered by going the whole way once more.
"""

import re
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Literal

from tlc.runtime.artifact import sha256_file, write_text
from tlc.runtime.bundle import Bundle
from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.deploy_visit import Found, Visit
from tlc.runtime.device_job import Cancelled
from tlc.runtime.device_step import Watch
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import Dropped, Remote

PAUSES_S = (1, 2, 4, 8, 15, 30, 30, 30, 30, 30, 30, 30)
"""Between attempts to come back to a device: four minutes in all, in which a Jetson reboots twice."""

Say = Callable[[str], None]
Connect = Callable[[str], Remote]


def deploy(
    host: str,
    order: Order,
    *,
    say: Say,
    cancelled: threading.Event,
    connect: Connect = Remote,
    pauses_s: Sequence[float] = PAUSES_S,
) -> DeviceReport:
    """Deploy to one device and return what was found; what a user can fix is in the report, not raised.

    `say` gets a line for everything that happens. A connection that drops is tried again after each of `pauses_s`, the
    first ones again whenever something was achieved. Raises Cancelled once `cancelled` is set, when the device has been
    left as it was found.
    """
    found = Found(uuid.uuid4().hex, "", order.out / re.sub(r"[^A-Za-z0-9._@-]", "_", host))
    name = order.bundle.stem
    problem = ""
    try:
        found.bundle_sha256, manifest = _read(order)
        name = manifest.name
        with connect(host) as remote:
            _until_done(remote, order, manifest, found, say, cancelled, pauses_s)
    except TlcError as error:
        problem = f"{error.message.rstrip('.')}. {error.hint}".strip()
        say(f"failed: {problem}")
    status: Literal["ok", "failed"] = "failed" if problem else "ok"
    report = DeviceReport(
        host=host,
        status=status,
        problem=problem,
        bundle=name,
        bundle_sha256=found.bundle_sha256,
        device=found.facts,
        runner_sha256=found.runner_sha256,
        steps=list(found.steps.values()),
        bench=found.bench,
        telemetry=found.telemetry,
        notes=found.notes,
        folder=str(found.folder),
    )
    found.folder.mkdir(parents=True, exist_ok=True)
    write_text(found.folder / "report.json", report.model_dump_json(indent=1) + "\n")
    return report


def _read(order: Order) -> tuple[str, Manifest]:
    """Return the bundle's SHA-256 and its manifest, having held every file in it against that."""
    with Bundle(order.bundle) as bundle:
        bundle.verify()
        return sha256_file(order.bundle), bundle.manifest


def _until_done(
    remote: Remote,
    order: Order,
    manifest: Manifest,
    found: Found,
    say: Say,
    cancelled: threading.Event,
    pauses_s: Sequence[float],
) -> None:
    """Visit the device, and again after every dropped connection until the pauses are used up."""

    def note(line: str) -> None:
        found.notes.append(line)
        say(line)

    watch = Watch(say, note, order.timeout_s, cancelled)
    left = list(pauses_s)
    while True:
        try:
            Visit(remote, order, manifest, found, watch).execute()
            return
        except Dropped as error:
            if found.complete:
                left_there = "; some of its files may be left there" if order.clean else ""
                note(f"{error.message}, when all was measured: the device puts its settings back itself{left_there}")
                return
            left = list(pauses_s) if found.advanced else left
            found.advanced = False
            if not left:
                raise
            pause_s = left.pop(0)
            note(f"{error.message}; trying again in {pause_s:g} s")
            if cancelled.wait(pause_s):
                raise Cancelled from None
