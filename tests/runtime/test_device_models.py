"""What is sent for a model, and where it comes to lie."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import write_bundle
from graphs import two_convolutions

from tlc.runtime.device_models import place_model
from tlc.runtime.errors import TlcError
from tlc.runtime.remote import OnBytes, Remote

BASE = "/home/nv/.cache/tlc"


class Keeping(Remote):
    """Keeps what is pushed instead of sending it."""

    def __init__(self) -> None:
        super().__init__("board")
        self.sent: dict[str, Path] = {}

    def push(self, local: Path, remote: str, *, on_bytes: OnBytes | None = None) -> bool:
        self.sent[remote] = local
        return True


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_lies_under_the_hash_of_its_content(tmp_path: Path) -> None:
    path, remote = tmp_path / "my model.npz", Keeping()
    np.savez(path, x=np.zeros(3))
    there = place_model(remote, BASE, path)
    assert there == f"{BASE}/models/{_sha256(path)[:16]}/my model.npz"
    assert remote.sent == {there: path}


def test_data_files_go_along_and_none_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path, remote = folder / "big.onnx", Keeping()
    onnx.save(two_convolutions(), str(path), save_as_external_data=True, location="w.data", size_threshold=0)
    there = place_model(remote, BASE, path)
    assert {place.rpartition("/")[2] for place in remote.sent} == {"big.onnx", "w.data"}
    assert {place.rpartition("/")[0] for place in remote.sent} == {there.rpartition("/")[0]}
    (tmp_path / "w.data").write_bytes((folder / "w.data").read_bytes())
    path.write_bytes(path.read_bytes().replace(b"\x08location\x12\x06w.data", b"\x08location\x12\x09../w.data"))
    with pytest.raises(TlcError, match=r"big\.onnx keeps data outside of its folder: \.\./w\.data"):
        place_model(Keeping(), BASE, path)


def test_an_engine_takes_its_record_along(tmp_path: Path) -> None:
    plan, remote = tmp_path / "net.plan", Keeping()
    plan.write_bytes(b"plan")
    record = tmp_path / "net.plan.json"
    record.write_text("{}")
    there = place_model(remote, BASE, plan)
    assert remote.sent == {there: plan, f"{there}.json": record}
    record.unlink()
    assert place_model(Keeping(), BASE, plan).startswith(f"{BASE}/models/{_sha256(plan)[:16]}/")


def test_a_bundle_lies_where_its_engine_was_built(tmp_path: Path) -> None:
    path, remote = write_bundle(tmp_path / "net.tlc"), Keeping()
    renamed = path.rename(tmp_path / "other name.tlc")
    there = place_model(remote, BASE, renamed)
    assert there == f"{BASE}/bundles/{_sha256(renamed)[:16]}/net.tlc"
    assert remote.sent == {there: renamed}
