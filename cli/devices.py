"""Where to measure, from the options of `tlc bench` and `tlc gate`: this machine, or a device over SSH."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tlc.runtime.errors import UsageError

if TYPE_CHECKING:
    from tlc.runtime.host import Host
    from tlc.runtime.process import Case

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


def device_options(*, several: bool) -> Callable[[F], F]:
    """Return the options that say where to measure: `--device` once, or `several` times, and what is sent there."""
    what = "Measure on HOST, over SSH; may be repeated." if several else "Measure on HOST, over SSH."
    options = (
        click.option("--device", metavar="HOST", multiple=several, help=what),
        click.option("--runner", type=_PATH, help="tlc-run for the device.  [default: one built here that fits]"),
        click.option("--ort-lib", type=_PATH, help="libonnxruntime to send to it.  [default: its own]"),
        click.option("--remote-dir", default="~/.cache/tlc", show_default=True, help="Folder on the device."),
    )

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@contextmanager
def host_of(device: str | None, cases: Sequence["Case"], options: Mapping[str, Any]) -> Iterator["Host"]:
    """Yield where `cases` are measured: the device of that name, made ready for their runtime, or this machine."""
    from tlc.runtime.host import LOCAL, require_onnx_or_engine

    if device is None:
        for name in ("runner", "ort_lib"):
            if options[name] is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for a device", hint="Name it with --device HOST.")
        yield LOCAL
        return
    from tlc.runtime.bundle import is_bundle
    from tlc.runtime.device_open import open_device
    from tlc.runtime.sessions import ENGINES

    for case in cases:
        require_onnx_or_engine(case, device)
    engines = all(case.path.suffix in ENGINES or is_bundle(case.path) for case in cases)
    target = next((case.target for case in cases if case.path.suffix not in ENGINES), None)
    with open_device(
        device,
        target,
        engines=engines,
        runner=options["runner"],
        library=options["ort_lib"],
        remote_dir=options["remote_dir"],
    ) as host:
        yield host
