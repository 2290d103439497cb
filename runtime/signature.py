"""Signatures of OpenSSH, made and checked by ssh-keygen: https://man.openbsd.org/ssh-keygen#Y_sign."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tlc.runtime.errors import TlcError

NAMESPACE = "tlc-bundle"
"""A signature counts for this purpose alone: one made for a mail or a commit is none of a bundle."""
_TIMEOUT_S = 120  # the program may ask for a passphrase
_GOOD = re.compile(r'Good "[^"]*" signature(?: for (?P<identity>\S+))? with (?P<key>\S+ key \S+)')


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed."""

    key: str
    """Kind and fingerprint: `ED25519 key SHA256:...`."""
    identity: str | None
    """Name that the file of allowed signers gives to the key; None where it was not asked."""


def sign(content: bytes, key: Path) -> bytes:
    """Return the armoured signature of `content` by the private key in the file `key`.

    Keys of kind ed25519 and RSA give the same signature every time. Raises TlcError without ssh-keygen, and for a file
    that is no private key.
    """
    if not key.is_file():
        raise TlcError(f"no key at {key}", hint="Check the path, or make one: ssh-keygen -t ed25519 -f KEY")
    done = _run(["-Y", "sign", "-q", "-n", NAMESPACE, "-f", str(key)], content)
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise TlcError(
            f"ssh-keygen did not sign with {key}: {_last_line(done)}",
            hint="Give the private key, whose file only you may read: chmod 600 KEY.",
        )
    return done.stdout


def verify(content: bytes, signature: bytes, signers: Path | None = None, identity: str | None = None) -> Signer:
    """Return who signed `content`.

    `signers` is a file of lines `NAME namespaces="tlc-bundle" ssh-ed25519 AAAA...`, as ssh-keygen's ALLOWED SIGNERS
    says; without it only the key is known, and nobody vouches for it. With `identity`, it has to be that name.

    Raises TlcError for a signature that is not of this content, and for a signer who is not allowed.
    """
    with tempfile.TemporaryDirectory(prefix="tlc-signature-") as folder:
        file = Path(folder, "signature")
        file.write_bytes(signature)
        own = ["-s", str(file)]
        checked = _run(["-Y", "check-novalidate", "-n", NAMESPACE, *own], content)
        found = _GOOD.search(_text(checked))
        if checked.returncode != 0 or found is None:
            raise TlcError(
                f"the signature is not one of this manifest: {_last_line(checked)}",
                hint="The bundle was altered after it was signed: get it again from its origin.",
            )
        if signers is None:
            return Signer(found["key"], None)
        if not signers.is_file():
            raise TlcError(f"no file of allowed signers at {signers}", hint="Check the path.")
        name = identity or _principal(signers, own, found["key"])
        done = _run(["-Y", "verify", "-n", NAMESPACE, "-f", str(signers), "-I", name, *own], content)
        if done.returncode != 0:
            raise TlcError(
                f"it is signed with {found['key']}, which {signers} does not allow for {name}",
                hint="Do not use it, or add the key to the file if you trust it.",
            )
    return Signer(found["key"], name)


def _principal(signers: Path, own: list[str], key: str) -> str:
    done = _run(["-Y", "find-principals", "-f", str(signers), *own], b"")
    names = _text(done).split()
    if done.returncode != 0 or not names:
        raise TlcError(
            f"it is signed with {key}, which {signers} does not list",
            hint="Do not use it, or add the key to the file if you trust it.",
        )
    return names[0].split(",")[0]


def _run(arguments: list[str], content: bytes) -> "subprocess.CompletedProcess[bytes]":
    program = shutil.which("ssh-keygen")
    if program is None:
        raise TlcError("signatures need ssh-keygen, which is not here", hint="Install OpenSSH's client, 8.1 or later.")
    try:
        return subprocess.run(  # noqa: S603 - a program of the system, and no shell
            [program, *arguments], input=content, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TlcError(
            f"ssh-keygen did not answer within {_TIMEOUT_S} s", hint="Load the key into ssh-agent, or take another one."
        ) from error


def _text(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stdout.decode(errors="replace")


def _last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = (done.stderr + done.stdout).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"
