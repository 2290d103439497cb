"""One go at a device over one connection, from asking what it is to measuring; what is done already takes no time."""

import getpass
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tlc.runtime import device_data, device_fit
from tlc.runtime.artifact import sha256_json, write_bytes, write_text
from tlc.runtime.bench_report import BenchReport
from tlc.runtime.bundle_manifest import Manifest
from tlc.runtime.deploy_order import Order
from tlc.runtime.deploy_report import StepName, StepReport
from tlc.runtime.device_facts import DeviceFacts, facts
from tlc.runtime.device_job import Cancelled, Job, script
from tlc.runtime.device_lock import DeviceLock, lock_clocks, restore_settings
from tlc.runtime.device_place import Place, base_folder, place_of, remove_files, remove_folder
from tlc.runtime.device_step import OutOfMemoryError, Watch, forget, last_words, run_step
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import OnBytes, Remote
from tlc.runtime.telemetry import Range, Samples, Telemetry

_SAY_EVERY_S = 5.0
_LEAST_WORKSPACE_BYTES = 16 << 20


@dataclass(slots=True)
class Found:
    """What is known so far, over all connections of one deployment."""

    run: str
    """Tells this run of the command from all others."""
    bundle_sha256: str
    folder: Path
    """Of the results, here."""
    facts: DeviceFacts | None = None
    """As the device was found at first."""
    runner_sha256: str | None = None
    steps: dict[str, StepReport] = field(default_factory=dict)
    bench: BenchReport | None = None
    samples: Samples = field(default_factory=Samples)
    telemetry: dict[str, Range] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    """Whether every step is done and only tidying is left."""
    advanced: bool = False
    """Whether anything was achieved since this was last set to False."""


class Visit:
    """A bundle at a device, for as long as the connection holds."""

    def __init__(self, remote: Remote, order: Order, manifest: Manifest, found: Found, watch: Watch) -> None:
        self._remote, self._order, self._manifest, self._found, self._watch = remote, order, manifest, found, watch

    def execute(self) -> None:
        """Go the whole way. Raises TlcError for what a user can fix, and Dropped when the connection goes away."""
        remote, order, found = self._remote, self._order, self._found
        base = base_folder(remote, order.remote_dir)
        device = facts(remote, base)
        if found.facts is None:
            found.facts = device
            self._watch.say(_described(device))
        device_fit.require_tensorrt(self._manifest, device)
        runner = device_fit.find_runner(order.runner, device).path
        library = device_fit.find_library(self._manifest, device, order.library)
        place = place_of(remote, base, order, self._manifest, found.bundle_sha256, runner, library)
        found.runner_sha256 = place.runner_sha256
        found.folder.mkdir(parents=True, exist_ok=True)
        write_text(found.folder / "device.json", device.model_dump_json(indent=1) + "\n")
        what = f"{self._manifest.name} {found.bundle_sha256[:16]}"
        with DeviceLock(remote, base, run=found.run, what=what, who=_who()) as lock:
            device_fit.require_space(device, place.missing_bytes(remote, runner), base)
            if order.lock_clocks:
                lock_clocks(remote, base)
            else:
                restore_settings(remote, base)
            self._send_program(place, runner)
            self._send(order.bundle, place.bundle)
            if order.data is not None:
                device_data.send(remote, order.data, base, on_bytes=self._on_bytes("data"))
                found.advanced = True
            self._steps(place)
            found.complete = True
            # Measured is measured anew by the next run; the engine stays.
            forget(remote, *(place.step(name) for name in ("check", "eval", "bench")))
            if order.clean:
                remove_files(remote, base)
            if problem := lock.release():
                self._watch.note(f"settings were not put back: {problem}")
        self._compare_settings(base)
        if order.clean:
            remove_folder(remote, base)

    def _send_program(self, place: Place, runner: Path) -> None:
        """Send tlc-run and the library, and see that both start there, before anything large is sent."""
        self._send(runner, place.runner)
        if place.library is not None and place.library.local is not None:
            self._send(place.library.local, place.sent_library)
        done = self._remote.run(script('exec "$@"', place.runner, "info", "--json", *place.library_words))
        if done.code:
            said, hint = last_words(done.stderr, done.code)
            raise TlcError(
                f"tlc-run does not start on {self._remote.host}: {said}",
                hint=hint or "Build one that fits it (docs/cross.md) and name it with --runner.",
            )
        device_fit.require_backend(self._manifest, self._remote.host, done.stdout)
        write_bytes(self._found.folder / "info.json", done.stdout)

    def _send(self, local: Path, to: str) -> None:
        if self._remote.push(local, to, on_bytes=self._on_bytes(local.name)):
            self._watch.say(f"sent {local.name} ({local.stat().st_size / 1e6:.1f} MB)")
        self._found.advanced = True

    def _steps(self, place: Place) -> None:
        order, threads = self._order, []
        if order.threads is not None:
            threads = ["--threads", str(order.threads)]
        if self._manifest.target.runtime == "tensorrt":
            if order.rebuild and "build" not in self._found.steps:
                forget(self._remote, place.step("build"))
            self._build(place)
            record = f"{self._manifest.name}.plan.json"
            self._remote.pull(f"{place.folder}/{record}", self._found.folder / record)
        self._step(place, "check", threads)
        if place.data is not None:
            limit = [] if order.limit is None else ["--limit", str(order.limit)]
            self._step(place, "eval", ["--data", place.data, *limit, *threads])
        self._bench(place, ["--duration", f"{order.duration_s:g}s", *threads])

    def _build(self, place: Place) -> None:
        """Build the engine; where the system ends even tlc-run for its memory, with half the workspace, and again."""
        assert self._found.facts is not None
        most = device_fit.workspace_bytes(self._manifest, self._found.facts)
        while True:
            try:
                # What is free differs from run to run, and an engine that was built is as good as another.
                words = ["--workspace", f"{max(1, most >> 20)}M"]
                step = self._step(place, "build", ["--out", place.folder], unkeyed=words)
                for attempt in step.result.get("attempts", []):
                    self._watch.note(f"build, an earlier attempt: {attempt}")
                return
            except OutOfMemoryError as error:
                if most // 2 < _LEAST_WORKSPACE_BYTES:
                    raise
                self._watch.note(f"{error.message} The workspace was {most >> 20} MiB; building again with half of it.")
                most //= 2

    def _bench(self, place: Place, words: Sequence[str]) -> None:
        """Measure, and read the sensors meanwhile, also those of the part before a connection dropped."""
        found = self._found
        telemetry = Telemetry(self._remote)
        try:
            with telemetry:
                step = self._step(place, "bench", words)
        finally:
            if "bench" in self._watch.started:
                found.samples.rows += telemetry.samples.rows
        found.telemetry = found.samples.ranges()
        write_text(found.folder / "telemetry.csv", found.samples.as_csv())
        try:
            found.bench = _named(BenchReport.model_validate(step.result), self._manifest.name)
        except ValidationError as error:
            raise TlcError(
                f"what tlc-run on {self._remote.host} measured is no report of this tlc: {error.errors()[0]['msg']}",
                hint="Send a tlc-run of this tlc: --runner.",
            ) from error

    def _step(self, place: Place, name: StepName, words: Sequence[str], unkeyed: Sequence[str] = ()) -> StepReport:
        """Run one step to its end, or take its result where it has come to one; write its JSON and its log here.

        `words` and all else that decides the outcome are its key, `unkeyed` words are not.
        """
        found = self._found
        assert found.facts is not None
        argv = [place.runner, name, place.bundle, "--json", *place.library_words, *words]
        given = [place.runner_sha256, place.library_sha256, found.facts.tensorrt, found.facts.power_mode]
        key = sha256_json([place.bundle_sha256, argv, given, self._order.lock_clocks])
        step = run_step(
            self._remote,
            Job(place.step(name), key, [*argv, *unkeyed], place.folder),
            self._watch,
            keep=lambda suffix, content: write_bytes(found.folder / f"{name}.{suffix}", content),
        )
        found.advanced = True
        found.steps.setdefault(name, step)
        return step

    def _compare_settings(self, base: str) -> None:
        """See that the device is as it was found."""
        assert self._found.facts is not None
        before, after = self._found.facts, facts(self._remote, base)
        for name in ("power_mode", "clocks_locked"):
            was, now = getattr(before, name), getattr(after, name)
            if was != now:
                self._watch.note(f"{name.replace('_', ' ')} was {was} and is {now}")

    def _on_bytes(self, name: str) -> OnBytes:
        """Return what says now and then how far a file is that takes its time, and stops it once that is wanted."""
        said = time.monotonic()

        def on_bytes(done: int, total: int) -> None:
            nonlocal said
            if self._watch.cancelled.is_set():
                raise Cancelled
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                self._watch.say(f"sending {name}: {100 * done / total:.0f} % of {total / 1e6:.1f} MB")

        return on_bytes


def _named(report: BenchReport, name: str) -> BenchReport:
    """Return a report of one model under the bundle's name: its path on the device differs with every version."""
    models = [model.model_copy(update={"name": name}) for model in report.models]
    warnings = [
        warning if warning.model is None else warning.model_copy(update={"model": name}) for warning in report.warnings
    ]
    return report.model_copy(update={"models": models, "warnings": warnings})


def _who() -> str:
    """Return whom another user is told of: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry in the user database: a container
        user = "someone"
    return f"{user}@{socket.gethostname()}"


def _described(device: DeviceFacts) -> str:
    """Return what the device is, in a line."""
    memory = None if device.memory_total_bytes is None else f"{device.memory_total_bytes / 2**30:.1f} GiB"
    clocks = {True: "clocks locked", False: "clocks not locked", None: None}[device.clocks_locked]
    parts = [
        device.board or device.machine,
        device.jetpack and f"JetPack {device.jetpack}",
        device.l4t and f"L4T {device.l4t}",
        device.tensorrt and f"TensorRT {device.tensorrt}",
        memory,
        device.power_mode and f"power mode {device.power_mode}",
        clocks,
    ]
    return ", ".join(part for part in parts if part)
