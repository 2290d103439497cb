"""OpenSSH keys to sign with."""

import subprocess
from pathlib import Path

from tlc.runtime.signature import NAMESPACE


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """Make a private key without a passphrase at `path`, and its public one beside it."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)], check=True)
    return path


def allow(path: Path, name: str, key: Path, namespaces: str = NAMESPACE) -> Path:
    """Write a file of allowed signers with one line: `name` signs with that key."""
    kind, public = key.with_suffix(".pub").read_text().split()[:2]
    path.write_text(f'{name} namespaces="{namespaces}" {kind} {public}\n')
    return path
