"""What a Linux program or library asks of the machine that runs it, read from its file.

elf(5); the names of machines are those of uname(2).
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from tlc.runtime.errors import TlcError

_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_HEADER_BYTES = 20
_MAGIC = b"\x7fELF"
_GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")


@dataclass(frozen=True, slots=True)
class Program:
    """An ELF file."""

    path: Path
    machine: str
    """Such as "aarch64"."""
    glibc: tuple[int, int] | None
    """The least version of the C library that it needs; None for one that is linked statically."""


def read_program(path: Path) -> Program:
    """Return what the program or library at `path` needs. Raises TlcError where it is missing or no ELF file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TlcError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from error
    if len(data) < _HEADER_BYTES or data[:4] != _MAGIC:
        raise TlcError(
            f"{path} is not a Linux program or library: it begins with {data[:4]!r}, not {_MAGIC!r}",
            hint="Give the one that was built for the device: docs/cross.md.",
        )
    (number,) = struct.unpack("<H" if data[5] == 1 else ">H", data[18:20])
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(data)]
    return Program(path, _MACHINES.get(number, f"ELF machine {number}"), max(versions, default=None))


def require_fitting(program: Program, *, host: str, machine: str, glibc: str | None, hint: str) -> None:
    """Raise TlcError, naming `host`, unless a device of that machine and glibc version (such as "2.31") can load it.

    A `glibc` of None is not held against anything: the device does not tell. `hint` says where a fitting one is from.
    """
    if program.machine != machine:
        raise TlcError(f"{program.path} is for {program.machine}, {host} is {machine}.", hint=hint)
    if glibc is None or program.glibc is None:
        return
    major, minor = (int(part) for part in glibc.split(".")[:2])
    if program.glibc > (major, minor):
        needed = ".".join(map(str, program.glibc))
        raise TlcError(f"{program.path} needs glibc {needed} or later, {host} has {glibc}.", hint=hint)
