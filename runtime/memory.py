"""Resident memory of this process."""

import re
import sys
from pathlib import Path

from tlc.runtime.errors import TlcError

_STATUS = Path("/proc/self/status")


def own_peak_bytes() -> int:
    """Return the largest resident size that this process has had.

    On Linux that is VmHWM, true to some 100 kB, since the kernel counts pages per core in batches. getrusage's
    ru_maxrss would be wrong there: it survives exec, so the child of a process that once held 600 MB begins at 600 MB.
    """
    if _STATUS.exists():
        return _from_status("VmHWM")
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    raise TlcError(f"peak memory cannot be read on {sys.platform}", hint="Measure memory on Linux or macOS.")


def resident_bytes() -> int:
    """Return the resident size of this process now; on macOS, which does not tell, its peak."""
    return _from_status("VmRSS") if _STATUS.exists() else own_peak_bytes()


def _from_status(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise TlcError(f"{_STATUS} has no {field}", hint="Measure memory on a kernel that reports it.")
    return int(found[1]) * 1024
