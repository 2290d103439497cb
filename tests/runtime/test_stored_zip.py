"""Zips in one layout: the same bytes every time, and nothing else is read."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from bundles import directory_place, patched, write_raw_zip

from tlc.runtime import stored_zip
from tlc.runtime.errors import TlcError
from tlc.runtime.stored_zip import StoredZip, write_stored_zip

MEMBERS = [("manifest.json", b"{}"), ("golden/0/input-0.npy", b"abc" * 400), ("model.onnx", b"")]


def read_all(path: Path) -> None:
    with StoredZip(path) as archive:
        for name in archive.names:
            archive.read(name)


def refusal(path: Path) -> str:
    with pytest.raises(TlcError) as caught:
        read_all(path)
    assert caught.value.hint
    return caught.value.message


def test_what_is_written_is_read_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(MEMBERS[1][1])
    write_stored_zip(tmp_path / "a.zip", {**dict(MEMBERS), "golden/0/input-0.npy": tmp_path / "source"})

    with StoredZip(tmp_path / "a.zip") as archive:
        assert [(name, archive.read(name)) for name in archive.names] == MEMBERS
        assert archive.size_bytes("golden/0/input-0.npy") == 1200


def test_other_programs_read_it_and_it_has_nothing_of_this_machine(tmp_path: Path) -> None:
    write_stored_zip(tmp_path / "a.zip", dict(MEMBERS))

    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert archive.comment == b""
        for info in archive.infolist():
            assert (info.date_time, info.create_system, info.extra, info.comment) == (
                (1980, 1, 1, 0, 0, 0),
                3,
                b"",
                b"",
            )
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.external_attr >> 16 & 0o777 == 0o644


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/./b", "a\\b", "C:x", "a b", "", "ü", "a/", "x\n"])
def test_a_name_that_could_leave_a_folder_is_neither_written_nor_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name of a member"):
        write_stored_zip(tmp_path / "a.zip", {name: b"x"})

    assert list(tmp_path.iterdir()) == []
    assert "could lead out of a folder" in refusal(write_raw_zip(tmp_path / "b.zip", [(name, b"x")]))


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = write_raw_zip(tmp_path / "a.zip", MEMBERS, compress_type=zipfile.ZIP_DEFLATED)

    assert refusal(path) == f"{path}: manifest.json is compressed"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_raw_zip(tmp_path / "a.zip", [*MEMBERS, ("model.onnx", b"other")])

    assert refusal(path) == f"{path}: model.onnx is there twice"


@pytest.mark.parametrize("changes", [{"comment": b"hello"}, {"extra": b"\x99\x99\x00\x00"}])
def test_comments_and_extra_fields_are_refused(changes: dict[str, bytes], tmp_path: Path) -> None:
    assert "has a comment or extra field" in refusal(write_raw_zip(tmp_path / "a.zip", MEMBERS, **changes))


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    write_stored_zip(tmp_path / "a.zip", dict(MEMBERS))
    patched(tmp_path / "a.zip", directory_place(tmp_path / "a.zip") + 8, b"\x01")

    assert "manifest.json is encrypted" in refusal(tmp_path / "a.zip")


def test_a_comment_of_the_file_is_refused(tmp_path: Path) -> None:
    write_stored_zip(tmp_path / "a.zip", dict(MEMBERS))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.comment = b"hidden"

    assert "bytes before, between or after" in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("where", ["before", "between", "before the directory", "after"])
def test_bytes_that_belong_to_no_member_are_refused(where: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, dict(MEMBERS))
    content = path.read_bytes()
    if where == "between":
        # An archive of the first and last member, and one more between that no entry names.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.filelist.pop(1)
            archive.NameToInfo.pop(MEMBERS[1][0])
            file = io.BytesIO(content)
            file.seek(archive.start_dir)
            archive.fp = file
            archive.mode = "a"
            archive._didModify = True  # type: ignore[attr-defined]
            archive.close()
            file.truncate()
        path.write_bytes(file.getvalue())
    elif where == "before the directory":
        place = directory_place(path)
        path.write_bytes(content[:place] + b"hidden" + content[place:])
        patched(path, len(content) + 6 - 6, (place + 6).to_bytes(4, "little"))
    else:
        path.write_bytes(b"hidden" + content if where == "before" else content + b"hidden")

    assert re.search("does not begin where|bytes before, between or after|not a whole zip file", refusal(path))


def test_two_members_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, {"a": b"x" * 100, "b": b"x" * 100})
    second = directory_place(path) + 46 + 1
    patched(path, second + 42, (0).to_bytes(4, "little"))

    assert "b does not begin where the member before it ends" in refusal(path)


def test_a_local_header_that_says_otherwise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, dict(MEMBERS))
    patched(path, 30, b"MANIFEST.json")  # the name in the local header of the first member

    assert "is not what its entry says" in refusal(path)


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, dict(MEMBERS))
    patched(path, path.read_bytes().index(b"abcabc"), b"X")

    assert "golden/0/input-0.npy is damaged: Bad CRC-32" in refusal(path)


def test_a_file_that_was_cut_short_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, {"manifest.json": b"{}", "b": b"12"})
    content = path.read_bytes()

    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert refusal(path)


def test_a_file_with_any_byte_altered_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_stored_zip(path, {"manifest.json": b"{}", "b": b"12"})
    content = path.read_bytes()

    for place in range(len(content)):
        for altered in {content[place] ^ 1, content[place] ^ 128, 0, 255} - {content[place]}:
            path.write_bytes(content[:place] + bytes([altered]) + content[place + 1 :])
            assert refusal(path), (place, altered)


def test_a_missing_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("no zip")

    assert refusal(tmp_path / "none.zip") == f"cannot read {tmp_path / 'none.zip'}: No such file or directory"
    assert refusal(tmp_path / "a.zip") == f"{tmp_path / 'a.zip'} is not a whole zip file: File is not a zip file"


def test_more_than_the_limit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_zip, "MAX_BYTES", 1000)

    with pytest.raises(TlcError) as caught:
        write_stored_zip(tmp_path / "a.zip", {"small": b"x", "large": b"x" * 900})

    assert caught.value.message == f"{tmp_path / 'a.zip'} would have 1,095 bytes, large alone 900; the limit is 1,000"
    assert list(tmp_path.iterdir()) == []
