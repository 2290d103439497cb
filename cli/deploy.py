"""`tlc deploy`."""

import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.runtime.errors import TlcError, UsageError

if TYPE_CHECKING:
    from tlc.runtime.deploy_report import DeployReport, DeviceReport
    from tlc.runtime.fleet import FleetDevice, Member

_PATH = click.Path(path_type=Path)
_SUFFIX = ".tlc"


@click.command("deploy", short_help="Put a bundle on devices over SSH, prove it there and measure it.")
@click.argument("words", nargs=-1, metavar="[HOST...] [BUNDLE]")
@click.option("--fleet", type=_PATH, help="TOML file of devices, see the documentation.")
@click.option("--runner", type=_PATH, help="tlc-run for the device.  [default: one built in this clone that fits]")
@click.option("--ort-lib", type=_PATH, help="libonnxruntime to send.  [default: the device's own, else this machine's]")
@click.option("--data", type=_PATH, help="Evaluate there: folder with a folder of pictures per class, or .npz.")
@click.option("--remote-data", metavar="PATH", help="The same, where the device has it already.")
@click.option("--limit", type=click.IntRange(1), help="Most samples to evaluate.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores for one inference.  [default: the target's]")
@click.option("--duration", default="3s", show_default=True, help="Timed runs.")
@click.option("--lock-clocks", is_flag=True, help="Fix the clocks at their highest meanwhile; needs root there.")
@click.option("--rebuild", is_flag=True, help="Build the engine anew, though there is one.")
@click.option("--clean", is_flag=True, help="Leave nothing on the device.")
@click.option("--remote-dir", default="~/.cache/tlc", show_default=True, help="Folder on the device.")
@click.option("--timeout", default="3600s", show_default=True, help="Longest wait for one step.")
@click.option("-o", "--out", type=_PATH, default=Path("tlc-deploy"), show_default=True, help="Folder of the results.")
@click.option("--label", default="", help="Of the runs in the history, such as a commit.")
@click.option("--no-history", is_flag=True, help="Leave the runs out of the history.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def deploy_command(words: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Send BUNDLE to each HOST, build its engine there, compare its outputs, measure it, and bring the numbers home.

    A HOST is whatever `ssh` takes; your own configuration and keys are used, and nothing is asked. Only what the device
    lacks is sent. A run that was broken off goes on where it was. Several hosts are served at once; one that fails
    stops no other, and makes the exit status 1.

    \b
    Examples:
      tlc deploy jetson model.tlc
      tlc deploy orin-1 orin-2 model.tlc --data photos/val --lock-clocks
      tlc deploy --fleet fleet.toml model.tlc
    """
    from tlc.cli.history import keep
    from tlc.runtime.deploy_report import DeployReport
    from tlc.runtime.fleet import deploy_all

    with ExitStack() as stack:
        members = _members(words, options, stack)
        try:
            reports = deploy_all(members, say=_say(members, quiet=quiet))
        except KeyboardInterrupt:
            raise TlcError(
                "Interrupted; what ran on the devices was ended, and their settings put back.",
                hint="Run the same command again: it goes on where it was.",
            ) from None
    report = DeployReport(tlc_version=version("tlc"), command=shlex.join(["tlc", *sys.argv[1:]]), devices=reports)
    click.echo(report.model_dump_json() if as_json else "\n".join(report_lines(report)))
    for device in reports:
        if device.bench is not None:
            keep(device.bench, label=options["label"], off=options["no_history"])
    if any(device.status != "ok" for device in reports):
        sys.exit(1)


def report_lines(report: "DeployReport") -> list[str]:
    """Return the report as lines of text: a table, then problems, notes and warnings by device."""
    from tlc.cli.table import columns

    header = ["", "", "runs in", "golden dB", "top-1", "p50 ms", "p99 ms", "memory", "power", "hottest"]
    lines = columns(header, [_row(device) for device in report.devices])
    for device in report.devices:
        found = [] if device.bench is None else device.bench.warnings
        said = [
            *([device.problem] if device.problem else []),
            *(f"note: {note}" for note in device.notes),
            *(f"warning ({warning.code}): {warning.message}" for warning in found),
            f"results: {device.folder}",
        ]
        lines += ["", *(f"{device.host}: {line}" for line in said)]
    return lines


def _row(device: "DeviceReport") -> list[str]:
    check, evaluation = (_result(device, name) for name in ("check", "eval"))
    model = None if device.bench is None else device.bench.models[0]
    latency = None if model is None else model.latency
    launch = model.launches[-1] if model is not None and model.launches else None
    power = device.telemetry.get("watts")
    heat = [kept.high for name, kept in device.telemetry.items() if name.startswith("temperature_c ")]
    return [
        device.host,
        device.status,
        "" if model is None else model.runtime,
        _golden(check),
        f"{100 * evaluation['top1']:.2f} %" if "top1" in evaluation else "",
        "" if latency is None else f"{latency.quantile(50).ms:.4g}",
        "" if latency is None else f"{latency.quantile(99).ms:.4g}",
        "" if launch is None else f"{launch.memory.peak_bytes / 1e6:.0f} MB",
        "" if power is None else f"{power.mean:.1f} W",
        f"{max(heat):.0f} °C" if heat else "",
    ]


def _result(device: "DeviceReport", name: str) -> Mapping[str, Any]:
    step = device.step(name)
    return {} if step is None else step.result


def _golden(check: Mapping[str, Any]) -> str:
    """Return the lowest signal-to-noise ratio of all golden outputs; "same" where every value is."""
    outputs = [output for sample in check.get("golden", ()) for output in sample["outputs"]]
    if not outputs:
        return ""
    known = [output["snr_db"] for output in outputs if output["snr_db"] is not None]
    return f"{min(known):.1f}" if known else "same"


def _members(words: Sequence[str], options: Mapping[str, Any], stack: ExitStack) -> "list[Member]":
    """Return every device with what is deployed to it; everything is checked that can be from here."""
    from tlc.runtime.fleet import FleetDevice, Member, read_fleet

    hosts, bundle = list(words), None
    if hosts and (hosts[-1].endswith(_SUFFIX) or Path(hosts[-1]).is_file()):
        bundle = Path(hosts.pop())
    if twice := sorted({host for host in hosts if hosts.count(host) > 1}):
        raise UsageError(f"{twice[0]} is named twice", hint="Name each host once.")
    devices = [FleetDevice(host=host) for host in hosts]
    if options["fleet"] is not None:
        devices += read_fleet(options["fleet"])
    if not devices:
        raise UsageError("There is no host to deploy to", hint="Name one, such as: tlc deploy jetson model.tlc")
    order_of = _ordering(options, stack)
    return [Member(device.host, order_of(device, device.bundle or bundle)) for device in devices]


def _ordering(options: Mapping[str, Any], stack: ExitStack) -> "Callable[[FleetDevice, Path | None], Any]":
    """Return a function from a device and its bundle to what is deployed; data is packed once for all devices."""
    from tlc.runtime.bundle import read_manifest
    from tlc.runtime.deploy_order import Order
    from tlc.runtime.device_data import Data, packed
    from tlc.runtime.limits import parse_ms

    if options["data"] is not None and options["remote_data"] is not None:
        raise UsageError("--data and --remote-data are two places for the same data", hint="Give one of them.")
    sent: dict[Path | None, Data | None] = {}

    def order_of(device: "FleetDevice", bundle: Path | None) -> Order:
        if bundle is None:
            raise UsageError(
                f"There is no bundle for {device.host}", hint="Make one with `tlc pack`, and name it last."
            )
        read_manifest(bundle)
        data = device.data or (None if device.remote_data else options["data"])
        if data not in sent:
            sent[data] = stack.enter_context(packed(data))
        return Order(
            bundle=bundle,
            out=options["out"],
            runner=device.runner or options["runner"],
            library=device.ort_lib or options["ort_lib"],
            data=sent[data],
            remote_data=device.remote_data or (None if device.data else options["remote_data"]),
            limit=options["limit"],
            threads=device.threads or options["threads"],
            duration_s=parse_ms(options["duration"]) / 1000,
            remote_dir=device.remote_dir or options["remote_dir"],
            lock_clocks=options["lock_clocks"],
            rebuild=options["rebuild"],
            clean=options["clean"],
            timeout_s=parse_ms(options["timeout"]) / 1000,
        )

    return order_of


def _say(members: "Sequence[Member]", *, quiet: bool) -> Callable[[str, str], None]:
    """Return what prints a line on stderr, with the host before it where there are several; for any thread."""
    lock = threading.Lock()
    width = max(len(member.host) for member in members) if len(members) > 1 else 0

    def say(host: str, line: str) -> None:
        if not quiet:
            with lock:
                click.echo(f"{host:<{width}}  {line}" if width else line, err=True)

    return say
