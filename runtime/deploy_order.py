"""What to deploy, and how: the same for every device, or one for each."""

from dataclasses import dataclass
from pathlib import Path

from tlc.runtime.device_data import Data


@dataclass(frozen=True, slots=True)
class Order:
    """What to deploy, and how."""

    bundle: Path
    out: Path
    """Folder that gets one of each device's results."""
    runner: Path | None = None
    """tlc-run; None: one that was built in this clone."""
    library: Path | None = None
    """libonnxruntime to send; None: the device's own, else this machine's."""
    data: Data | None = None
    """Labelled data to send."""
    remote_data: str | None = None
    """Labelled data that lies on the device, absolute or from its home folder."""
    limit: int | None = None
    """Samples of the data at most."""
    threads: int | None = None
    """None: the target's."""
    duration_s: float = 3.0
    """Of the timed runs."""
    remote_dir: str = "~/.cache/tlc"
    lock_clocks: bool = False
    rebuild: bool = False
    """Whether to build an engine that is there already anew."""
    clean: bool = False
    """Whether to remove everything of tlc from the device at the end."""
    timeout_s: float = 3600
    """Longest wait for one step."""
