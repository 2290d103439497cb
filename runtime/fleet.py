"""Several devices at once: each in a thread of its own, so that the slow ones and the broken ones hold up nobody."""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlc.runtime.deploy import Connect, deploy
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import DeviceReport
from tlc.runtime.errors import UsageError
from tlc.runtime.remote import Remote

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_AT_ONCE = 16


class FleetDevice(BaseModel):
    """One device of a fleet file; what it does not say is as on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1)
    """As for ssh."""
    bundle: Path | None = None
    runner: Path | None = None
    ort_lib: Path | None = None
    data: Path | None = None
    remote_data: str | None = None
    threads: int | None = Field(None, ge=1)
    remote_dir: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A device and what is deployed to it."""

    host: str
    order: Order


def read_fleet(path: Path) -> list[FleetDevice]:
    """Return the devices of a TOML file; relative paths in it count from its folder.

        bundle = "model.tlc"                 # of those that name none

        [[device]]
        host = "orin-1"

        [[device]]
        host = "pi@gateway"
        bundle = "model-arm.tlc"
        threads = 4

    Raises UsageError for a file that is missing or broken, names no device, or one twice.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read fleet file {path}: {error}", hint="Check the path.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"fleet file {path} is not TOML: {error}", hint="Correct that line.") from error
    if unknown := sorted(set(table) - {"bundle", "device"}):
        raise UsageError(f"fleet file {path}: unknown {unknown[0]}", hint="It has `bundle` and tables [[device]].")
    rows = table.get("device")
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"fleet file {path} names no device", hint='Write one: [[device]] and host = "orin-1".')
    devices = [_device(row, table.get("bundle"), path) for row in rows]
    hosts = [device.host for device in devices]
    if twice := sorted({host for host in hosts if hosts.count(host) > 1}):
        raise UsageError(f"fleet file {path} names {twice[0]} twice", hint="Leave one of them out.")
    return devices


def deploy_all(
    members: Sequence[Member], *, say: Callable[[str, str], None], connect: Connect = Remote
) -> list[DeviceReport]:
    """Deploy to all at once, 16 at most at a time, and return the reports in the order of `members`.

    `say(host, line)` is called from several threads. After Ctrl-C every device is left as it was found; then
    KeyboardInterrupt goes on.
    """
    cancelled = threading.Event()
    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(members))) as pool:
        under_way = [
            pool.submit(deploy, one.host, one.order, say=partial(say, one.host), cancelled=cancelled, connect=connect)
            for one in members
        ]
        try:
            wait(under_way)
        except KeyboardInterrupt:
            cancelled.set()
            for one in members:
                say(one.host, "ending what runs there, and putting its settings back")
            wait(under_way)
            raise
    return [each.result() for each in under_way]


def _device(row: Any, bundle: Any, path: Path) -> FleetDevice:
    try:
        device = FleetDevice.model_validate({"bundle": bundle, **row} if isinstance(row, dict) else row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"fleet file {path}: {where} = {first['input']!r}: {first['msg']}", hint="Correct the value."
        ) from error
    files = {name: getattr(device, name) for name in ("bundle", "runner", "ort_lib", "data")}
    return device.model_copy(update={name: path.parent / file for name, file in files.items() if file is not None})
