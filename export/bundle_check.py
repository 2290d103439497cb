"""Whether a bundle is what was packed, and whether this machine computes what it promises."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from tlc.calibration.metrics import sqnr_db
from tlc.calibration.preprocess import Preprocess
from tlc.runtime.bundle import Bundle, unpacked
from tlc.runtime.bundle_manifest import GoldenSample
from tlc.runtime.capability import missing
from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession, Session
from tlc.runtime.sessions import open_session
from tlc.runtime.signature import Signer, verify

_INPUT_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What was found of a bundle that passed."""

    members: int
    """Members whose SHA-256 is the manifest's."""
    signer: Signer | None
    """None where it is not signed."""
    runtime: str
    """What the golden samples ran in: the target's runtime, or ONNX Runtime on the CPU where that is not here."""
    stands_in: str
    """Why it was not the target's runtime; empty where it was."""
    snr_db: dict[str, float]
    """Lowest signal-to-noise ratio over the samples, by output; infinite for equal outputs."""
    pictures: int
    """Golden pictures whose preprocessing gives the golden input."""


def check_bundle(path: Path, *, signers: Path | None = None, identity: str | None = None) -> BundleCheck:
    """Return what was found of the bundle at `path`.

    Raises TlcError for the first thing wrong: the file, a hash, the signature (missing, where `signers` is given), a
    model that does not load, a picture or golden output that comes out otherwise.
    """
    with Bundle(path) as bundle:
        members = bundle.verify()
        signer = _signer(bundle, signers, identity)
        pictures = sum(_check_picture(bundle, sample) for sample in bundle.manifest.golden.samples)
        why = _why_not_here(bundle)
        file = unpacked(path)
        target = bundle.manifest.target
        with OrtSession(file) if why else open_session(file, target, threads=target.threads) as session:
            _check_boundary(bundle, session)
            found = [_snr_db(bundle, session, sample) for sample in bundle.manifest.golden.samples]
            lowest = {name: min(sample[name] for sample in found) for name in found[0]}
            runtime = session.runtime
        _require_near(bundle, runtime, lowest)
    return BundleCheck(members, signer, runtime, why, lowest, pictures)


def _signer(bundle: Bundle, signers: Path | None, identity: str | None) -> Signer | None:
    signature = bundle.signature
    if signature is not None:
        try:
            return verify(bundle.manifest_bytes, signature, signers, identity)
        except TlcError as error:
            raise TlcError(f"{bundle.path}: {error.message}", hint=error.hint) from error
    if signers is not None:
        raise TlcError(
            f"{bundle.path} is not signed, and --signers asks for a signature",
            hint="Have it packed with --sign KEY, or leave --signers out if you trust where it is from.",
        )
    return None


def _why_not_here(bundle: Bundle) -> str:
    """Return why the target's runtime cannot run the ONNX file here; empty where it can."""
    target = bundle.manifest.target
    if target.runtime == "tensorrt":
        return f"{target.name} runs engines, which are built on the device"
    return missing(target) or ""


def _check_picture(bundle: Bundle, sample: GoldenSample) -> bool:
    """Tell whether the sample has a picture; TlcError where that does not become the golden input."""
    fed = bundle.manifest.fed
    if sample.image is None or fed is None or fed["kind"] != "image":
        return False
    try:
        preprocess = Preprocess.model_validate({key: value for key, value in fed.items() if key != "kind"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TlcError(f"{bundle.path}: fed: {where}: {first['msg']}", hint="Pack it again.") from error
    with Image.open(io.BytesIO(bundle.read(sample.image))) as picture:
        found = preprocess(picture)
    wanted = bundle.array(sample.inputs[0])
    if wanted.shape[1:] != found.shape[1:]:
        raise TlcError(
            f"{bundle.path}: {sample.image} becomes {list(found.shape)}, and its golden input is {list(wanted.shape)}",
            hint="Pack it again.",
        )
    error_abs = float(np.abs(wanted.astype(np.float64) - found).max())
    tolerance = _INPUT_TOLERANCE if wanted.dtype != np.float16 else 2e-3 * max(1.0, float(np.abs(found).max()))
    if not error_abs <= tolerance:
        raise TlcError(
            f"{bundle.path}: {sample.image} becomes an input that is {error_abs:.3g} from the golden one; the limit is "
            f"{tolerance:g}",
            hint="Pillow here resizes otherwise than where the bundle was packed: install the same release.",
        )
    return True


def _check_boundary(bundle: Bundle, session: Session) -> None:
    """Raise TlcError where the model's inputs or outputs are not those that the manifest names."""
    for kind, specs, records in (
        ("inputs", session.inputs, bundle.manifest.inputs),
        ("outputs", session.outputs, bundle.manifest.outputs),
    ):
        here, told = [spec.name for spec in specs], [record.name for record in records]
        if here != told:
            raise TlcError(
                f"{bundle.path}: the model's {kind} are {', '.join(here)}, the manifest says {', '.join(told)}",
                hint="Pack it again.",
            )


def _snr_db(bundle: Bundle, session: Session, sample: GoldenSample) -> dict[str, float]:
    arrays = [bundle.array(member) for member in sample.inputs]
    if len(arrays) != len(session.inputs) or len(sample.outputs) != len(session.outputs):
        raise TlcError(f"{bundle.path}: a golden sample has not the model's inputs and outputs", hint="Pack it again.")
    answers = session.run({spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)})
    found = {}
    for spec, member in zip(session.outputs, sample.outputs, strict=True):
        golden, answer = bundle.array(member), answers[spec.name]
        if golden.shape != answer.shape:
            raise TlcError(
                f"{bundle.path}: output {spec.name} is {list(answer.shape)}, the golden one {list(golden.shape)}",
                hint="Pack it again.",
            )
        found[spec.name] = _snr(golden, answer)
    return found


def _snr(golden: NDArray[Any], answer: NDArray[Any]) -> float:
    """Return the signal-to-noise ratio in dB; minus infinity where the answer is not finite."""
    if answer.dtype.kind == "f" and not np.isfinite(answer).all():
        return float("-inf")
    return sqnr_db(golden, answer)


def _require_near(bundle: Bundle, runtime: str, lowest: dict[str, float]) -> None:
    limit = bundle.manifest.golden.min_snr_db
    name = min(lowest, key=lambda output: lowest[output])
    if lowest[name] < limit:
        raise TlcError(
            f"{bundle.path}: output {name} meets the golden one at {lowest[name]:.1f} dB in {runtime}; the limit is "
            f"{limit:g} dB",
            hint="Do not trust this runtime with this model: try another release of it, or pack for another target.",
        )
