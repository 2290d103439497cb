"""`tlc doctor`."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tlc.runtime.capability import Machine
    from tlc.runtime.probes import Package
    from tlc.runtime.target import Target

_LOW_DISK_BYTES = 5 * 2**30
_LOW_MEMORY_BYTES = 2 * 2**30


@click.command("doctor", short_help="Show what this machine can do, and what to do about the rest.")
@click.option("--target", metavar="TARGET", help="Only this one: exit with 1 when it cannot be run here.")
@click.option("--full", is_flag=True, help="Import PyTorch and NNCF too, which takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor_command(ctx: click.Context, target: str | None, full: bool, as_json: bool) -> None:
    """Show what this machine has, which targets it can build and run, and the next step for each thing missing.

    Each question is put to a process of its own, so a broken package is a finding and not a crash.

    \b
    Example: tlc doctor
    """
    import json

    from tlc.runtime.capability import missing, missing_to_build, missing_to_compress, probe
    from tlc.runtime.target import load_target, target_names

    targets = [load_target(name) for name in ([target] if target else target_names())]
    machine = probe(full=full)
    cannot_run = {device.name: missing(device, machine) for device in targets}
    steps = next_steps(machine, targets)
    if as_json:
        answer = {
            "machine": machine.model_dump(mode="json"),
            "cannot_compress": missing_to_compress(machine),
            "targets": {
                device.name: {
                    "cannot_run": cannot_run[device.name],
                    "cannot_build": missing_to_build(device, machine),
                }
                for device in targets
            },
            "next_steps": steps,
        }
        click.echo(json.dumps(answer, indent=2))
    else:
        _print_rows("This machine", _machine_rows(machine))
        _print_rows("Python packages", [(p.name, _package(p)) for p in machine.packages.values()])
        _print_rows("NVIDIA", _nvidia_rows(machine))
        rows = [("compress", missing_to_compress(machine) or "yes")]
        _print_rows("Targets", rows + [(device.name, _target(device, machine)) for device in targets])
        _print_rows("Next steps", [("-", step) for step in steps] or [("-", "Nothing is missing.")])
    if target and cannot_run[targets[0].name] is not None:
        ctx.exit(1)


def next_steps(machine: "Machine", targets: "list[Target]") -> list[str]:
    """Return one imperative sentence for each thing that is missing or broken and that `targets` need."""
    from tlc.runtime.capability import missing, missing_to_compress

    packages = machine.packages
    runtimes = {target.runtime for target in targets}
    steps = [
        f"Reinstall {package.name}: pip install --force-reinstall {package.name}"
        for package in packages.values()
        if package.error is not None and package.name != "tensorrt"
    ]
    if missing_to_compress(machine) is not None and all(package.error is None for package in packages.values()):
        steps.append("To compress here, install tlc with its extra, from a clone: pip install '.[compress]'")
    if "openvino" in runtimes and packages["openvino"].version is None:
        steps.append("For target openvino: pip install openvino")
    steps += [
        f"For target {target.name}: pip uninstall onnxruntime, then pip install onnxruntime-"
        f"{'openvino' if target.provider == 'openvino' else 'gpu'}"
        for target in targets
        if target.runtime == "onnxruntime" and "has no" in (missing(target, machine) or "")
    ]
    if "tensorrt" in runtimes:
        steps += _tensorrt_steps(machine, targets)
    if machine.jetson is not None and machine.jetson.clocks_locked is False:
        steps.append("Before measuring, lock the clocks: sudo jetson_clocks")
    if machine.disk_free_bytes < _LOW_DISK_BYTES:
        steps.append(f"Free some disk: {_gib(machine.disk_free_bytes)} are left in this folder's file system")
    if (machine.memory_available_bytes or _LOW_MEMORY_BYTES) < _LOW_MEMORY_BYTES:
        steps.append(f"Close other programs: {_gib(machine.memory_available_bytes)} of memory are available")
    return steps


def _tensorrt_steps(machine: "Machine", targets: "list[Target]") -> list[str]:
    from tlc.runtime.capability import missing
    from tlc.runtime.target import load_target, target_names

    package, system = machine.packages["tensorrt"], machine.system_tensorrt
    if not machine.gpus:
        return ["For TensorRT targets, compress here, copy the ONNX files to the device, and run tlc build there"]
    if machine.driver.error is not None:
        return ["Make the GPU usable: install NVIDIA's driver; in a container, start it with the NVIDIA runtime"]
    if package.error is not None:
        return [f"Repair TensorRT, which {package.error}: its version must match CUDA's and the driver's"]
    if package.version is not None:
        known = [*targets, *map(load_target, target_names())]
        known = [target for target in known if target.tensorrt is not None]
        if any(missing(target, machine) is None for target in known):
            return []
        return [
            f"TensorRT {package.version} on SM {machine.gpus[0].sm} is no target yet: describe it in a file, "
            f"starting from tlc targets {known[-1].name} --toml"
        ]
    if system.path is not None:
        return [
            f"TensorRT {system.version or ''} is in the system's Python: make the environment with "
            "/usr/bin/python3 -m venv --system-site-packages"
        ]
    if machine.jetson is not None:
        return ["Install TensorRT of this JetPack: sudo apt install nvidia-jetpack"]
    release = next(target.tensorrt.version for target in targets if target.tensorrt is not None)
    return [f"Install TensorRT's Python package for the target, such as: pip install 'tensorrt=={release}.*'"]


def _machine_rows(machine: "Machine") -> list[tuple[str, str]]:
    rows = [
        ("python", f"{machine.python} ({machine.executable})"),
        ("CPU", machine.cpu or "not known"),
        ("memory", f"{_gib(machine.memory_available_bytes)} available of {_gib(machine.memory_total_bytes)}"),
        ("disk", f"{_gib(machine.disk_free_bytes)} free here"),
    ]
    jetson = machine.jetson
    if jetson is None:
        return rows
    locked = {True: "locked", False: "not locked", None: "not known"}[jetson.clocks_locked]
    return [
        *rows,
        ("Jetson", f"{jetson.model} ({jetson.soc or 'SoC not known'})"),
        ("JetPack", f"{jetson.jetpack or 'not known'} (Jetson Linux {jetson.l4t or 'not known'})"),
        ("DLA cores", "not known" if jetson.dla_cores is None else str(jetson.dla_cores)),
        ("power mode", jetson.power_mode or "not known"),
        ("clocks", locked),
    ]


def _nvidia_rows(machine: "Machine") -> list[tuple[str, str]]:
    rows = [
        (f"GPU {index}", f"{gpu.name}, SM {gpu.sm or 'not known'}, {_gib(gpu.memory_bytes)}")
        for index, gpu in enumerate(machine.gpus)
    ] or [("GPU", "none")]
    for tool in (machine.driver, machine.cuda, machine.trtexec, machine.system_tensorrt):
        found = " ".join(part for part in (tool.version, tool.path and f"({tool.path})") if part)
        rows.append((tool.name, "; ".join(part for part in (found, tool.error) if part) or "not found"))
    return rows


def _package(package: "Package") -> str:
    if package.version is None:
        return "not installed"
    if package.error is not None:
        return f"{package.version} is broken: {package.error}"
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in package.providers)
    return f"{package.version}{f' with {providers}' if providers else ''}"


def _target(target: "Target", machine: "Machine") -> str:
    from tlc.runtime.capability import missing, missing_to_build

    reason = missing(target, machine)
    if reason is None:
        return "runs here"
    builds = target.runtime == "tensorrt" and missing_to_build(target, machine) is None
    return f"{'is built here, not run' if builds else 'not here'}: {reason}"


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    click.secho(title, bold=True)
    for name, value in rows:
        click.echo(f"  {name:<{width}}  {value}")


def _gib(size_bytes: int | None) -> str:
    return "not known" if size_bytes is None else f"{size_bytes / 2**30:.1f} GiB"
