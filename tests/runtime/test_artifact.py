import errno
import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tlc.runtime.artifact import (
    replacing_dir,
    require_free_space,
    sha256_file,
    sha256_json,
    write_bytes,
    write_text,
)
from tlc.runtime.errors import TlcError


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _half_fill(folder: Path) -> None:
    (folder / "half").mkdir()
    (folder / "half").mkdir()


def test_the_hash_of_a_file_larger_than_a_chunk_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_the_hash_of_json_ignores_key_order_and_nothing_else() -> None:
    assert sha256_json({"a": 1, "b": [1.5, "é"]}) == sha256_json({"b": (1.5, "é"), "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
    assert sha256_json([1, 2]) != sha256_json([2, 1])
    assert sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_the_hash_of_json_refuses_nan_and_objects() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        sha256_json({"a": float("nan")})
    with pytest.raises(TypeError):
        sha256_json({"a": Path("x")})


def test_writing_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"old")
    write_text(tmp_path / "f", "né\n")
    assert (tmp_path / "f").read_bytes() == b"n\xc3\xa9\n"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_written_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "f", b"x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_very_long_file_name_can_be_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("n" * 255), b"x")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"


def test_a_full_disk_names_the_file_the_bytes_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", _full_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12))
    with pytest.raises(TlcError) as caught:
        write_bytes(tmp_path / "f", b"x" * 1234)
    assert caught.value.message == f"no space left while writing {tmp_path / 'f'}: 1,234 bytes to write, 12 bytes free"
    assert "Free space on that disk" in caught.value.hint
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match=r"cannot write .*gone/f: No such file or directory"):
        write_bytes(tmp_path / "gone" / "f", b"x")


def test_an_interrupt_while_writing_leaves_the_old_content_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "stale").touch()
    with replacing_dir(tmp_path / "d") as new:
        (new / "fresh").touch()
        assert (tmp_path / "d" / "stale").exists()
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["fresh"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_folder_that_was_not_there_appears(tmp_path: Path) -> None:
    with replacing_dir(tmp_path / "d") as new:
        (new / "f").touch()
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d" / "f").exists()


def test_an_error_inside_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kept").touch()
    with pytest.raises(FileExistsError), replacing_dir(tmp_path / "d") as new:
        _half_fill(new)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["kept"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_inside_is_explained_and_other_os_errors_keep_their_type(tmp_path: Path) -> None:
    full = pytest.raises(TlcError, match=r"no space left while writing .*/d: [\d,]+ bytes free")
    with full, replacing_dir(tmp_path / "d"):
        _full_disk()
    with pytest.raises(FileNotFoundError), replacing_dir(tmp_path / "d") as new:
        (new / "missing").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kept").touch()
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if (self / "fresh").exists():
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(TlcError, match=r"cannot write .*/d: Permission denied"), replacing_dir(tmp_path / "d") as new:
        (new / "fresh").touch()
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["kept"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    with pytest.raises(TlcError, match=r"is a file where a folder is to be written"), replacing_dir(tmp_path / "d"):
        pass
    assert (tmp_path / "d").read_text() == "mine"


def test_too_little_space_names_needed_and_free_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 if path == tmp_path else 0))
    require_free_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(TlcError) as caught:
        require_free_space(tmp_path / "not" / "yet", 1001)
    assert caught.value.message == (
        f"not enough disk space for {tmp_path}/not/yet: 1,001 bytes needed, 1,000 bytes free"
    )
    assert "another one" in caught.value.hint
