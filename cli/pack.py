"""`tlc pack` and `tlc verify`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlc.cli.build import profiles_of, shape_option
from tlc.cli.options import data_options, model_from, preprocess_options, quantity
from tlc.runtime.errors import TlcError, UsageError

if TYPE_CHECKING:
    from tlc.export.bundle_check import BundleCheck
    from tlc.export.bundle_source import Source
    from tlc.runtime.bundle_manifest import BundleLimits, Manifest

_PATH = click.Path(path_type=Path)
_LIMITS = {
    "p50_under": ("p50_ms", "parse_ms"),
    "p90_under": ("p90_ms", "parse_ms"),
    "p99_under": ("p99_ms", "parse_ms"),
    "max_memory": ("max_memory_bytes", "parse_bytes"),
    "max_size": ("max_size_bytes", "parse_bytes"),
    "max_slowdown": ("max_slowdown_ratio", "parse_ratio"),
    "max_drop": ("max_drop_points", None),
}
"""Option, or key of [gate]: the bundle's name of it, and what reads its text."""


@click.command("pack", short_help="Put a model and all that a device needs into one file.")
@click.argument("source", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="File to write: NAME.tlc.")
@click.option("--name", help="Of the model on the device.  [default: that of the file]")
@click.option("--target", help="Device: a name of `tlc targets`, or FILE.toml.  [default: the run's]")
@click.option("--with-reference", is_flag=True, help="Put the float original in, for a device to measure both.")
@data_options(required=False)
@click.option("--golden", type=click.IntRange(1, 64), default=4, show_default=True, help="Samples to prove it with.")
@click.option("--licence", metavar="SPDX", help="Licence of the model, such as Apache-2.0 or LicenseRef-ours.")
@click.option("--limits", "limits_file", type=_PATH, help="TOML file whose table [gate] holds the limits.")
@quantity("--p50-under", "parse_ms", "TIME", "Limit of the median latency on the device: 8ms.")
@quantity("--p90-under", "parse_ms", "TIME", "Limit of the 90th percentile.")
@quantity("--p99-under", "parse_ms", "TIME", "Limit of the 99th percentile.")
@quantity("--max-memory", "parse_bytes", "SIZE", "Limit of the peak memory: 200MB.")
@quantity("--max-size", "parse_bytes", "SIZE", "Limit of the size of the model's files: 5MB.")
@quantity("--max-slowdown", "parse_ratio", "PERCENT", "Limit of the median latency, against a baseline: 5%.")
@click.option("--max-drop", type=click.FloatRange(0, 100, min_open=True), help="Limit of the loss of top-1, in points.")
@shape_option("min", "Smallest shape of an input with open dimensions.")
@shape_option("opt", "Shape to tune an engine for.")
@shape_option("max", "Largest shape.")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Scratch memory of the engine's builder.")
@click.option("--level", type=click.IntRange(0, 5), help="How many kernels the engine's builder tries.")
@click.option("--tokenizer", type=_PATH, help="tokenizer.json or its folder, where it is not beside the file.")
@click.option("--labels", type=_PATH, help="Text file with one class name a line, where the file names none.")
@preprocess_options
@click.option("--sign", "key", type=_PATH, metavar="KEY", help="Sign with this private key of OpenSSH.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def pack_command(source: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Pack SOURCE, the folder of a finished `tlc compress` or an ONNX file, into one file for a device.

    In it: the model, how images or texts become its input, class names, tokenizer, golden inputs and outputs, limits,
    build settings, a model card, a list of components, and the SHA-256 of each. The same inputs give the same bytes.

    \b
    Examples:
      tlc pack run -o ants.tlc --licence Apache-2.0 --data photos/
      tlc pack model.onnx -o net.tlc --target jetson-orin --input 3x224x224 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5
    """
    from tlc.calibration.text_rows import Columns
    from tlc.export.bundle import PackOptions, pack

    columns = {key: options[f"{key}_column"] for key in ("text", "pair", "label")}
    mib = options["workspace"]
    pack_options = PackOptions(
        name=options["name"],
        with_reference=options["with_reference"],
        golden=options["golden"],
        data=options["data"],
        columns=Columns(**columns),
        skip_bad=bool(options["skip_bad"]),
        licence=options["licence"],
        limits=_limits(options),
        shapes=profiles_of(options["min_shapes"], options["opt_shapes"], options["max_shapes"]),
        workspace_bytes=None if mib is None else mib << 20,
        builder_level=options["level"],
        key=options["key"],
    )
    manifest, warnings = pack(_source(source, options), output, pack_options)
    click.echo(manifest.json_bytes().decode() if as_json else _packed_line(output, manifest))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


@click.command("verify", short_help="Check a bundle: hashes, signature, golden outputs.")
@click.argument("bundle", type=_PATH)
@click.option("--signers", type=_PATH, help="OpenSSH's file of allowed signers: the bundle has to be signed by one.")
@click.option("--identity", metavar="NAME", help="The signer has to be this name in --signers.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def verify_command(bundle: Path, signers: Path | None, identity: str | None, as_json: bool) -> None:
    """Check that BUNDLE is what was packed, and that this machine computes its golden outputs. Exit status 1 if not.

    \b
    Example: tlc verify ants.tlc --signers allowed_signers
    """
    if identity is not None and signers is None:
        raise UsageError("--identity needs --signers, the file that gives keys their names", hint="Add --signers FILE.")
    from tlc.export.bundle_check import check_bundle

    found = check_bundle(bundle, signers=signers, identity=identity)
    click.echo(json.dumps(_as_json(bundle, found)) if as_json else "\n".join(_found_lines(bundle, found)))


def _source(path: Path, options: Mapping[str, Any]) -> "Source":
    """Return what is packed. Raises UsageError for options that belong to the other kind of source."""
    from tlc.export.bundle_source import source_of_file, source_of_run
    from tlc.runtime.target import load_target

    own = [f"--{name.replace('_', '-')}" for name in _OF_A_FILE if options[name] is not None]
    if path.is_dir():
        if own:
            raise UsageError(
                f"{', '.join(own)}: for ONNX files; {path} is a folder, whose run recorded that",
                hint="Leave it out, or give the ONNX file.",
            )
        return source_of_run(path, options["target"])
    if path.suffix.lower() != ".onnx":
        raise UsageError(
            f"{path} is neither a folder nor an .onnx file", hint="Give what tlc compress or export wrote."
        )
    if options["target"] is None:
        raise UsageError(
            "an ONNX file does not say which device it is for", hint="Add --target: tlc targets lists them."
        )
    target = load_target(options["target"])
    fed, classes = _fed(path, options)
    return source_of_file(path, target, fed=fed, classes=classes, tokenizer=options["tokenizer"])


_OF_A_FILE = ("tokenizer", "labels", "input_shape", "resize", "mean", "std", "interpolation", "channels")


def _fed(path: Path, options: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Return what feeds an ONNX file, as it records it or as the options say, and its class names."""
    from tlc.calibration.token_set import TextInput
    from tlc.export.metadata import read_metadata

    if not path.is_file():
        raise TlcError(f"no model file at {path}", hint="Check the path.")
    fed, classes = read_metadata(path)
    given = [name for name in _OF_A_FILE[2:] if options[name] is not None]
    if given:
        if isinstance(fed, TextInput):
            raise UsageError(f"--{given[0].partition('_')[0]}: {path} takes texts", hint="Leave it out.")
        from tlc.compress.inputs import resolve_preprocess

        own = {name: options[name] for name in _OF_A_FILE[2:]}
        fed = resolve_preprocess(fed, None, model_from(own, path).preprocess)
    labels = options["labels"]
    return fed, classes if labels is None else _labels(labels)


def _labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read --labels {path}: {error}", hint="Give a text file of one name a line."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UsageError(f"--labels {path} names no class", hint="Write one name a line, in the order of the outputs.")
    return names


def _limits(options: Mapping[str, Any]) -> "BundleLimits":
    """Return the limits of --limits, with those of the options on top."""
    from tlc.cli.gate_config import gate_table
    from tlc.runtime import limits
    from tlc.runtime.bundle_manifest import BundleLimits

    found: dict[str, Any] = {}
    file = options["limits_file"]
    if file is not None:
        table = gate_table(file)
        if table is None:
            raise UsageError(f"{file} has no table [gate]", hint='Add it: [gate] and p50_under = "8ms".')
        for key in _LIMITS.keys() & table.keys():
            name, parser = _LIMITS[key]
            found[name] = float(table[key]) if parser is None else getattr(limits, parser)(str(table[key]))
    for key, (name, _parser) in _LIMITS.items():
        if options[key] is not None:
            found[name] = options[key]
    return BundleLimits(**found)


def _packed_line(path: Path, manifest: "Manifest") -> str:
    golden = manifest.golden
    return (
        f"{path}: {manifest.name}, {manifest.precision}, for {manifest.target.name}; {path.stat().st_size:,} bytes, of "
        f"which {manifest.files[manifest.model].size_bytes:,} are the model; {len(golden.samples)} golden samples of "
        f"{golden.source}"
    )


def _found_lines(path: Path, found: "BundleCheck") -> list[str]:
    worst = min(found.snr_db.values())
    near = "every output is equal" if worst == float("inf") else f"outputs at {worst:.1f} dB or better"
    pictures = f", {found.pictures} pictures become their inputs" if found.pictures else ""
    lines = [
        f"{path}: {found.members} members, each with the SHA-256 of the manifest",
        f"signature: {_signature_text(found)}",
        f"golden samples in {found.runtime}: {near}{pictures}",
    ]
    return [*lines, f"not in the target's own runtime: {found.stands_in}"] if found.stands_in else lines


def _signature_text(found: "BundleCheck") -> str:
    if found.signer is None:
        return "none"
    if found.signer.identity is None:
        return f"good, with {found.signer.key}; without --signers nobody vouches for that key"
    return f"good, of {found.signer.identity}, with {found.signer.key}"


def _as_json(path: Path, found: "BundleCheck") -> dict[str, Any]:
    signer = found.signer
    return {
        "bundle": str(path),
        "members": found.members,
        "signature": None if signer is None else {"key": signer.key, "identity": signer.identity},
        "runtime": found.runtime,
        "stands_in": found.stands_in,
        # JSON has no infinity: null stands for equal outputs.
        "snr_db": {name: value if value < float("inf") else None for name, value in found.snr_db.items()},
        "pictures": found.pictures,
    }
