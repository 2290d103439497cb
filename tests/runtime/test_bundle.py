"""Reading bundles: what is altered is found, and what is unpacked is what was packed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import members_of, rewritten, with_hash, write_bundle

from tlc.runtime.bundle import TARGET_FILE, Bundle, is_bundle, read_manifest, unpacked
from tlc.runtime.bundle_manifest import MANIFEST
from tlc.runtime.errors import TlcError
from tlc.runtime.session import OrtSession
from tlc.runtime.target import load_target


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("made") / "bars.tlc", licence="mit")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(made, tmp_path / "bars.tlc"))


def refusal(path: Path) -> str:
    with pytest.raises(TlcError) as caught, Bundle(path) as bundle:
        bundle.verify()
    assert caught.value.hint
    return caught.value.message.removeprefix(f"{path}: ")


def test_the_manifest_says_what_the_model_is_and_lists_every_member(bundle: Path) -> None:
    with Bundle(bundle) as opened:
        manifest = opened.manifest
        assert opened.verify() == len(members_of(bundle)) - 1
        assert opened.signature is None
        image, inputs, outputs = (getattr(manifest.golden.samples[0], key) for key in ("image", "inputs", "outputs"))
        assert opened.read(image).startswith(b"\x89PNG")
        assert opened.array(inputs[0]).shape == (1, 1, 8, 8)
        assert opened.array(outputs[0]).dtype == np.float32

    assert (manifest.name, manifest.precision, manifest.licence) == ("bars", "fp32", "MIT")
    assert manifest.target == load_target("cpu-x86")
    assert [(tensor.name, tensor.shape) for tensor in manifest.inputs] == [("input", [-1, 1, 8, 8])]
    assert manifest.classes == ["flat", "upright"]
    assert manifest.fed is not None
    assert manifest.fed["kind"] == "image"
    assert is_bundle(bundle)
    assert not is_bundle(bundle.with_suffix(".onnx"))


def test_the_manifest_comes_first_and_what_is_none_is_left_out_of_limits(bundle: Path) -> None:
    members = members_of(bundle)
    value = json.loads(members[MANIFEST])

    assert list(members) == [MANIFEST, *sorted(members.keys() - {MANIFEST})]
    assert value["limits"] == {}
    assert value["lineage"] == {}
    assert value["reference"] is None
    assert members[MANIFEST] == read_manifest(bundle).json_bytes()


def test_every_member_that_is_altered_is_named(made: Path, tmp_path: Path) -> None:
    for name, content in members_of(made).items():
        if name == MANIFEST:
            continue
        path = Path(shutil.copyfile(made, tmp_path / "bars.tlc"))
        rewritten(path, {name: bytes([content[0] ^ 1]) + content[1:]})

        assert refusal(path).startswith(f"{name} has SHA-256 ")


def test_a_member_of_another_size_one_too_many_and_one_too_few_are_named(bundle: Path) -> None:
    assert refusal(rewritten(bundle, {"card.md": b"x"})).startswith("card.md has 1 bytes, the manifest says ")
    assert refusal(rewritten(bundle, {"card.md": None})) == "the manifest lists card.md, which is not there"
    assert refusal(rewritten(bundle, {"x": b"x", "card.md": b"x"})) == "x is not in the manifest's list"


def _without_model(value: Any) -> None:
    value["model"] = "other.onnx"


def _with_bad_name(value: Any) -> None:
    with_hash(value, "../evil", b"x")


def _of_version_2(value: Any) -> None:
    value["version"] = 2


def _of_another_format(value: Any) -> None:
    value["format"] = "zip"


def _with_unknown_key(value: Any) -> None:
    value["run"] = "rm"


def _without_golden(value: Any) -> None:
    value["golden"]["samples"] = []


def _fed_by_sound(value: Any) -> None:
    value["fed"] = {"kind": "sound"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_model, "the manifest refers to other.onnx, which it does not list"),
        (_with_bad_name, "'../evil' is no name of a member"),
        (_of_version_2, "is a bundle of version 2; this tlc reads version 1"),
        (_of_another_format, "is no bundle: its manifest says so nowhere"),
        (_with_unknown_key, "manifest.json: run: Extra inputs are not permitted"),
        (_without_golden, "manifest.json: golden.samples: List should have at least 1 item"),
        (_fed_by_sound, "kind is 'sound', not 'image' or 'text'"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(change: Callable[[Any], None], said: str, bundle: Path) -> None:
    assert said in refusal(rewritten(bundle, {}, manifest=change))


def test_a_zip_without_a_manifest_and_one_with_a_broken_one_are_refused(bundle: Path) -> None:
    assert "manifest.json is not JSON" in refusal(rewritten(bundle, {MANIFEST: b"{"}))
    assert "is no bundle: its manifest" in refusal(rewritten(bundle, {MANIFEST: b"[]"}))


def test_a_manifest_of_17_mb_is_refused_before_it_is_read(bundle: Path) -> None:
    assert "manifest.json has 17,000,000 bytes, above 16,777,216" in refusal(
        rewritten(bundle, {MANIFEST: b" " * 17_000_000})
    )


def test_an_array_that_is_none_is_refused(bundle: Path) -> None:
    name = "golden/0/input-0.npy"
    rewritten(bundle, {name: b"no array"}, manifest=lambda value: with_hash(value, name, b"no array"))

    with pytest.raises(TlcError, match=r"golden/0/input-0.npy is no .npy"), Bundle(bundle) as opened:
        opened.array(name)


def test_what_is_unpacked_runs_and_has_the_target_beside_it(bundle: Path, tmp_path: Path) -> None:
    file = unpacked(bundle, env={"XDG_CACHE_HOME": str(tmp_path / "cache")})

    assert file.name == "bars.onnx"
    assert file.read_bytes() == members_of(bundle)["model.onnx"]
    assert load_target(str(file.with_name(TARGET_FILE))) == load_target("cpu-x86")
    with OrtSession(file) as session:
        assert session.inputs[0].name == "input"


def test_it_is_unpacked_once_and_again_where_the_copy_was_changed(bundle: Path, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = unpacked(bundle, env=env)
    written = first.stat().st_mtime_ns
    assert unpacked(bundle, env=env).stat().st_mtime_ns == written

    content = first.read_bytes()
    first.write_bytes(b"changed")
    assert unpacked(bundle, env=env).read_bytes() == content


def test_a_reference_that_is_not_there_is_said(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="holds no reference"):
        unpacked(bundle, member="reference", env={"XDG_CACHE_HOME": str(tmp_path)})


def test_a_cache_that_cannot_be_made_is_said(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TlcError, match=r"cannot make .*bundles to unpack bundles to: Not a directory") as caught:
        unpacked(bundle, env={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert caught.value.hint == "Set XDG_CACHE_HOME to a folder that you can write."
