"""Unpickling that runs nothing of the file: classes are replaced by inert records before torch reads it.

`torch.load(weights_only=True)` refuses every name outside its own list. A module that was saved whole names its
classes; each is checked here and handed to torch as a record that only keeps the state it is given. What the classes
themselves do starts later, in `tlc.compress.skeleton`, from plain values.
"""

import importlib
import io
import pickletools
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tlc.runtime.errors import TlcError

# Where the layers of the four libraries live. A name must also *be* an nn.Module class: the place alone admits nothing.
_LAYERS = re.compile(
    r"torch\.nn\.(modules\.\w+|parallel\.data_parallel)|torchvision\.(models|ops)(\.\w+)*|timm\.(models|layers)(\.\w+)*"
    r"|transformers\.(models\.\w+\.modeling_\w+|activations|pytorch_utils|modeling_layers)"
)
_CONFIG = re.compile(r"transformers\.models\.\w+\.configuration_\w+")

FUNCTIONS: frozenset[str] = frozenset(
    {
        "torch._C._nn.gelu",
        "torch.nn.functional.gelu",
        "torch.nn.functional.relu",
        "torch.nn.functional.silu",
        "torch.nn.functional.softmax",
        "torch.nn.functional.tanh",
        "torch.relu",
        "torch.tanh",
    }
)
"""Functions that layers keep as attributes (nn.TransformerEncoderLayer, transformers' activations): pure arithmetic."""

_DATA = frozenset({"functools.partial", "builtins.slice", "builtins.frozenset", "torch.serialization._get_layout"})
"""Values that modules keep: recorded with their arguments, called never."""


@dataclass
class Record:
    """What a pickle said about one object: the name of its class, the arguments and the state."""

    global_name: ClassVar[str] = ""
    arguments: tuple[object, ...] = ()
    state: Any = field(default=None)

    def __setstate__(self, state: Any) -> None:
        """Keep the state as it is; `state` is made of plain values, tensors and records."""
        self.state = state


def record_class(name: str) -> type[Record]:
    """Return the class that stands for `name` while unpickling: it keeps arguments and state and does nothing else."""

    def new(cls: type[Record], *arguments: object) -> Record:
        record = object.__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def init(self: Record, *arguments: object) -> None:
        """Arguments were kept by __new__."""

    body = {"global_name": name, "__new__": new, "__init__": init, "__hash__": object.__hash__}
    return type("Record", (Record,), body)


def module_class(name: str) -> type[nn.Module] | None:
    """Return the layer class of torch, torchvision, timm or transformers with this full name, or None.

    Imports only from these four; compiled, scripted and traced modules do not count, as they carry code.
    """
    value = _resolve(name, _LAYERS)
    if not isinstance(value, type) or not issubclass(value, nn.Module) or not _LAYERS.fullmatch(value.__module__):
        return None
    return None if issubclass(value, torch.fx.GraphModule | torch.jit.ScriptModule) else value


def is_config_class(name: str) -> bool:
    """Whether this is the full name of a transformers configuration: plain values, read as such."""
    value = _resolve(name, _CONFIG)
    if value is None:
        return False
    from transformers import PretrainedConfig

    return isinstance(value, type) and issubclass(value, PretrainedConfig)


def _resolve(name: str, places: re.Pattern[str]) -> object | None:
    place, _, attribute = name.rpartition(".")
    if not places.fullmatch(place):
        return None
    try:
        return getattr(importlib.import_module(place), attribute, None)
    except ImportError:
        return None


def _is_allowed(name: str) -> bool:
    return name in FUNCTIONS or name in _DATA or module_class(name) is not None or is_config_class(name)


def read_pickle(path: Path) -> object:
    """Return what `torch.save` wrote: plain values, tensors on the CPU, and a Record for each object.

    Raises TlcError naming the first global that is not allowed; nothing of the file is run.
    """
    names = _foreign_globals(path)
    refused = sorted(name for name in names if not _is_allowed(name))
    if refused:
        raise foreign(path, refused)
    allowed = [(record_class(name), name) for name in sorted(names)]
    try:
        with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader of a hostile file may fail in any way
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "persistent_load" in str(error) and not zipfile.is_zipfile(path):
            raise TlcError(
                f"{path} is a whole module in the format of torch before 1.6, which carries source code",
                hint="Where it was made, run torch.save(model.state_dict(), FILE), and pass --arch here.",
            ) from error
        raise broken(path, message) from error


def broken(path: Path, reason: str) -> TlcError:
    """Return the error for a file that starts like a checkpoint and cannot be read to its end."""
    cause = re.sub(r"\s*(WeightsUnpickler error|PytorchStreamReader failed)[: ]*", " ", reason).strip()[:200]
    return TlcError(
        f"{path} cannot be read ({path.stat().st_size:,} bytes): {cause}",
        hint="Copy or download it again; compare its size or sha256 with the original.",
    )


def foreign(path: Path, names: list[str]) -> TlcError:
    """Return the error for a pickle that names what is not on the list."""
    shown = ", ".join(f"`{name}`" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return TlcError(
        f"{path}: its pickle names {shown}, which tlc does not load; nothing of it was run",
        hint="Where it was made, run torch.save(model.state_dict(), FILE), and pass --arch FILE.py:FUNCTION here.",
    )


def _foreign_globals(path: Path) -> set[str]:
    """Return the globals that torch would not load by itself, by reading the opcodes only."""
    if zipfile.is_zipfile(path):
        try:
            return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception as error:
            if names := named_globals(_zip_pickle(path)):
                raise foreign(path, sorted(names)) from error
            raise broken(path, str(error)) from error
    known = set(torch._weights_only_unpickler._get_allowed_globals())  # no public list for the legacy format
    return named_globals(path.read_bytes()) - known


def _zip_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(names[0]) if names else b""


def pickled_globals(path: Path) -> set[str]:
    """Return every global that the pickle in a file of `torch.save` names, without running it; empty for others."""
    if zipfile.is_zipfile(path):
        return named_globals(_zip_pickle(path))
    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            return set()
    return named_globals(path.read_bytes())


def named_globals(data: bytes) -> set[str]:
    """Return every global that the pickles at the start of `data` name, in any protocol, without running them."""
    names: set[str] = set()
    stream = io.BytesIO(data)
    while True:
        strings: list[str] = []
        try:
            for opcode, argument, _position in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
        except Exception:  # the raw tensors that follow the pickles are no opcodes
            return names
