"""Signatures by ssh-keygen: whose they are, and that nothing else passes for one."""

import shutil
import subprocess
from pathlib import Path

import pytest
from keys import allow, make_key

from tlc.runtime.errors import TlcError
from tlc.runtime.signature import sign, verify

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not here: install OpenSSH")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "key")


def test_a_signature_tells_its_key_and_with_signers_its_name(key: Path, tmp_path: Path) -> None:
    signature = sign(b"content", key)

    alone = verify(b"content", signature)
    named = verify(b"content", signature, allow(tmp_path / "signers", "maker@example.org", key))

    assert alone.identity is None
    assert alone.key.startswith("ED25519 key SHA256:")
    assert (named.key, named.identity) == (alone.key, "maker@example.org")
    assert sign(b"content", key) == signature


def test_other_content_is_refused_with_and_without_signers(key: Path, tmp_path: Path) -> None:
    signature = sign(b"content", key)

    for signers in (None, allow(tmp_path / "signers", "maker", key)):
        with pytest.raises(TlcError, match="not one of this manifest"):
            verify(b"other", signature, signers)


def test_a_signer_who_is_not_listed_and_one_of_another_name_are_refused(key: Path, tmp_path: Path) -> None:
    signature = sign(b"content", key)
    stranger = allow(tmp_path / "strangers", "stranger", make_key(tmp_path / "other"))
    known = allow(tmp_path / "signers", "maker", key)

    with pytest.raises(TlcError, match="strangers does not list"):
        verify(b"content", signature, stranger)
    with pytest.raises(TlcError, match="signers does not allow for someone"):
        verify(b"content", signature, known, "someone")


def test_a_key_that_is_listed_for_another_purpose_is_refused(key: Path, tmp_path: Path) -> None:
    signers = allow(tmp_path / "signers", "maker", key, namespaces="git")

    with pytest.raises(TlcError, match="does not allow for maker"):
        verify(b"content", sign(b"content", key), signers, "maker")


def test_a_signature_made_for_another_purpose_is_refused(key: Path) -> None:
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", "git", "-f", str(key)]
    other = subprocess.run(command, input=b"content", capture_output=True, check=True).stdout

    with pytest.raises(TlcError, match="not one of this manifest"):
        verify(b"content", other)


def test_what_is_no_signature_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="not one of this manifest"):
        verify(b"content", b"-----BEGIN SSH SIGNATURE-----\nxxxx\n-----END SSH SIGNATURE-----\n")


def test_what_is_no_key_is_refused(key: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)

    with pytest.raises(TlcError, match="no key at"):
        sign(b"content", tmp_path / "none")
    with pytest.raises(TlcError, match=r"ssh-keygen did not sign with .*text"):
        sign(b"content", tmp_path / "text")
    with pytest.raises(TlcError, match="no file of allowed signers at"):
        verify(b"content", sign(b"content", key), tmp_path / "none")


def test_without_ssh_keygen_it_says_so(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(TlcError, match="signatures need ssh-keygen, which is not here"):
        sign(b"content", key)
