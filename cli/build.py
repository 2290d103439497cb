"""`tlc build`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tlc.runtime.plan import EngineRecord, ProfileShapes

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)


def _shapes(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, list[int]]:
    """NAME:1x3x224x224, several times."""
    found: dict[str, list[int]] = {}
    for value in values:
        name, _, dims = value.rpartition(":")
        sizes = dims.split("x")
        if not name or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise click.BadParameter(f"{value!r} is not like images:1x3x224x224", param=param)
        found[name] = [int(size) for size in sizes]
    return found


def shape_option(kind: str, what: str) -> Callable[[F], F]:
    """Return the option --KIND-shape, of which each value is a shape of one input."""
    return click.option(
        f"--{kind}-shape", f"{kind}_shapes", multiple=True, callback=_shapes, metavar="NAME:AxBxC", help=what
    )


@click.command("build", short_help="Build a TensorRT engine on the device.")
@click.argument("model", type=_PATH)
@click.option("--target", required=True, help="Device: a name of `tlc targets`, or FILE.toml.")
@click.option("-o", "--output", type=_PATH, required=True, help="Engine to write; its sidecar is OUTPUT.json.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8", "best"]),
    default="auto",
    show_default=True,
    help="What layers may compute in; best is fp16 and int8; auto builds each, keeps the fastest.",
)
@click.option("--also", type=_PATH, multiple=True, help="Another ONNX file of the same network, to choose among.")
@click.option("--data", type=_PATH, help="Images to check accuracy on; the ONNX file must be one that tlc wrote.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 100), default=1.0, show_default=True, help="Loss of top-1, points."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Size of an open first dimension.")
@shape_option("min", "Smallest shape of an input with open dimensions.")
@shape_option("opt", "Shape to tune for.")
@shape_option("max", "Largest shape.")
@click.option(
    "--workspace", type=click.IntRange(1), metavar="MIB", help="Scratch memory.  [default: from what is free]"
)
@click.option("--level", type=click.IntRange(0, 5), help="How many kernels to try.  [default: TensorRT's, 3]")
@click.option("--timing-cache", metavar="FILE|off", help="Kept timings.  [default: under ~/.cache/tlc]")
@click.option("--version-compatible", is_flag=True, help="Let later TensorRT releases load it (8.6 and later).")
@click.option("--hardware-compatible", is_flag=True, help="Let other GPUs from SM 8.0 on load it; slower.")
@click.option("--strip", is_flag=True, help="Leave the weights out (10.0 and later).")
@click.option("--refit", is_flag=True, help="Let weights be replaced later.")
@click.option("--into", type=_PATH, metavar="PLAN", help="Put MODEL's weights into this plan instead of building.")
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="Build for this DLA core.")
@click.option("--no-gpu-fallback", is_flag=True, help="Fail where the DLA cannot run a layer.")
@click.option("--trtexec", type=_PATH, help="Build with this program instead of TensorRT's Python module.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=7200, show_default=True, help="Seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the sidecar.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def build_command(model: Path, target: str, output: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Build a TensorRT engine of the ONNX file MODEL, on the machine that will run it.

    \b
    Example: tlc build model.onnx --also int8.onnx --target jetson-orin -o model.plan
    """
    from tlc.export.engine import BuildOptions, build_engine, refit_engine
    from tlc.runtime.target import load_target

    mib = options["workspace"]
    cache = options["timing_cache"]
    build = BuildOptions(
        precision=options["precision"],
        batch=options["batch"],
        shapes=profiles_of(options["min_shapes"], options["opt_shapes"], options["max_shapes"]),
        workspace_bytes=None if mib is None else mib << 20,
        builder_level=options["level"],
        timing_cache="default" if cache is None else "off" if cache == "off" else Path(cache),
        version_compatible=options["version_compatible"],
        hardware_compatible=options["hardware_compatible"],
        strip=options["strip"],
        refit=options["refit"],
        dla_core=options["dla"],
        gpu_fallback=not options["no_gpu_fallback"],
        alternatives=options["also"],
        data=options["data"],
        max_drop_points=options["max_drop"],
        trtexec=options["trtexec"],
        timeout_s=options["timeout"],
    )
    tell = (lambda _: None) if quiet else (lambda line: click.echo(line, err=True))
    if options["into"] is None:
        record = build_engine(model, output, load_target(target), build, tell)
    else:
        record = refit_engine(model, options["into"], output, load_target(target), build, tell)
    click.echo(record.model_dump_json(indent=2) if as_json else "\n".join(_lines(output, record)))
    for warning in record.warnings if not as_json else ():
        click.echo(f"warning: {warning}", err=True)


def profiles_of(
    smallest: dict[str, list[int]], best: dict[str, list[int]], largest: dict[str, list[int]]
) -> "dict[str, ProfileShapes]":
    """Return the profile of each input; one shape alone is all three, two leave the best at the largest."""
    from tlc.runtime.plan import ProfileShapes

    names = dict.fromkeys([*smallest, *best, *largest])
    profiles = {}
    for name in names:
        high = largest.get(name) or best.get(name) or smallest[name]
        opt = best.get(name) or high
        profiles[name] = ProfileShapes(min=smallest.get(name) or opt, opt=opt, max=high)
    return profiles


def _lines(output: Path, record: "EngineRecord") -> list[str]:
    time = "not run" if record.gpu_ms is None else f"{record.gpu_ms:.3f} ms on the GPU"
    lines = [f"{output}: TensorRT {record.tensorrt}, SM {record.sm}, {record.onnx} in {record.precision}, {time}"]
    layers = record.layers
    if layers is not None:
        kinds = ", ".join(f"{count} {precision}" for precision, count in layers.layers_by_precision.items())
        lines.append(
            f"layers: {kinds}; {layers.weighted_int8} of {layers.weighted} convolutions and matrix products in int8; "
            f"{layers.reformats} copies between formats"
        )
    if record.dla_layer_ratio is not None:
        lines.append(f"dla: {100 * record.dla_layer_ratio:.0f} % of the layers, the rest on the GPU")
    for output_ in record.comparison:
        lines.append(
            f"{output_.name}: largest difference from ONNX Runtime {output_.max_abs:.2e}, cosine {output_.cosine:.6f}, "
            f"{output_.sqnr_db:.1f} dB, {output_.samples} samples"
        )
    if len(record.candidates) > 1:
        for row in record.candidates:
            time = "" if row.gpu_ms is None else f" {row.gpu_ms:.3f} ms,"
            top1 = "" if row.top1 is None else f" top-1 {100 * row.top1:.2f} %,"
            lines.append(f"{row.onnx} {row.precision}:{time}{top1} {row.verdict}")
    return lines
