"""What to measure, and when to give it up, from the options of `tlc bench` and `tlc gate`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tlc.cli.options import model_from
from tlc.runtime.errors import TlcError, UsageError

if TYPE_CHECKING:
    from tlc.runtime.process import Case, Limits

F = TypeVar("F", bound=Callable[..., Any])


def case_of(name: str, path: Path, options: Mapping[str, Any], *, threads: int | None = None, **setting: Any) -> "Case":
    """Return how a model is measured: ONNX, of bundles too, and engines in the target's runtime, all else in PyTorch.

    `options` are those of the command, `--inputs` and those of a model among them; `setting` is as `Case` takes it.
    """
    from tlc.runtime.bundle import is_bundle, read_manifest, unpacked
    from tlc.runtime.process import Case
    from tlc.runtime.sessions import ENGINES
    from tlc.runtime.target import load_target

    if not path.exists():
        raise TlcError(f"no model at {path}", hint="Check the path.")
    # On a device the bundle's engine lies beside it, where `tlc deploy` built it.
    engine = is_bundle(path) and options.get("device") and read_manifest(path).target.runtime == "tensorrt"
    if is_bundle(path) and not engine:
        path = unpacked(path)
    target = None if options["target"] is None else load_target(options["target"])
    setting["threads"] = threads or (1 if target is None else target.threads)
    setting["feeds"] = options["inputs"]
    if engine or path.suffix.lower() in (".onnx", *ENGINES):
        return Case(name, path, target, **setting)
    from tlc.compress.torch_worker import torch_case

    return torch_case(name, model_from(options, path), **setting)


def with_target_of(models: Sequence[Path | None], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options; where they name no target, with that of the bundles among `models`, for all of these.

    Raises UsageError for bundles of different targets.
    """
    from tlc.runtime.bundle import TARGET_FILE, is_bundle, read_manifest, unpacked

    bundles = [path for path in models if path is not None and is_bundle(path)]
    if options["target"] is not None or not bundles:
        return dict(options)
    first = read_manifest(bundles[0]).target
    for path in bundles[1:]:
        other = read_manifest(path).target
        if other != first:
            raise UsageError(
                f"{bundles[0]} is for {first.name}, and {path} for {other.name}",
                hint="Say where to run both: --target NAME.",
            )
    return {**options, "target": str(unpacked(bundles[0]).with_name(TARGET_FILE))}


def limit_options(function: F) -> F:
    """Add the options that say when a model is given up."""
    function = click.option("--memory-limit", metavar="SIZE", help="Most memory of a model, such as 2GB.")(function)
    return click.option("--timeout", default="300s", show_default=True, help="Longest wait for a block of runs.")(
        function
    )


def limits_from(options: Mapping[str, Any]) -> "Limits":
    """Return what `limit_options` say."""
    from tlc.runtime.limits import parse_bytes, parse_ms
    from tlc.runtime.process import Limits

    memory = options["memory_limit"]
    return Limits(parse_ms(options["timeout"]) / 1000, None if memory is None else parse_bytes(memory))
