"""`tlc pack` and `tlc verify`, and bundles where models are measured and scored."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from bar_nets import write_net
from bundles import rewritten, write_bundle, write_run
from click.testing import CliRunner, Result
from graphs import Net, two_convolutions
from keys import allow, make_key

import tiny
from tlc.cli.main import main
from tlc.runtime.bundle import read_manifest, unpacked
from tlc.runtime.plan import ProfileShapes


def tlc(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_run_is_packed_and_verified(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    path = tmp_path / "net.tlc"

    made = tlc("pack", tmp_path / "run", "-o", path, "--name", "bars", "--max-memory", "200MB", "--max-slowdown", "5%")
    checked = tlc("verify", path)

    assert made.exit_code == 0, made.output
    size, model = path.stat().st_size, (tmp_path / "run" / "model.onnx").stat().st_size
    assert made.stdout == (
        f"{path}: bars, fp32, for cpu-x86; {size:,} bytes, of which {model:,} are the model; 4 golden samples of "
        "noise\n"
    )
    assert read_manifest(path).limits.model_dump(exclude_none=True) == {
        "max_memory_bytes": 200_000_000,
        "max_slowdown_ratio": 0.05,
    }
    assert checked.exit_code == 0, checked.output
    assert checked.stdout.splitlines()[:2] == [
        f"{path}: 15 members, each with the SHA-256 of the manifest",
        "signature: none",
    ]


def test_json_of_both(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    made = tlc("pack", tmp_path / "run", "-o", tmp_path / "net.tlc", "--json")
    found = json.loads(tlc("verify", tmp_path / "net.tlc", "--json").stdout)

    assert json.loads(made.stdout)["format"] == "tlc-bundle"
    assert (found["members"], found["pictures"], found["signature"], found["stands_in"]) == (15, 4, None, "")
    assert set(found["snr_db"]) == {"logits"}


def test_limits_of_a_file_and_options_on_top(tmp_path: Path) -> None:
    (tmp_path / "tlc.toml").write_text('[gate]\np50_under = "8ms"\nmax_size = "5MB"\nmax_drop = 1\nthreads = 2\n')
    model = write_net(tmp_path / "net.onnx")
    common = ("pack", model, "-o", tmp_path / "net.tlc", "--target", "cpu-x86", "--limits", tmp_path / "tlc.toml")

    assert tlc(*common, "--p50-under", "9ms").exit_code == 0
    assert read_manifest(tmp_path / "net.tlc").limits.model_dump(exclude_none=True) == {
        "p50_ms": 9.0,
        "max_size_bytes": 5_000_000,
        "max_drop_points": 1.0,
    }
    (tmp_path / "tlc.toml").write_text("")
    result = tlc(*common)
    assert (result.exit_code, "has no table [gate]" in result.stderr) == (2, True)


def test_an_onnx_file_is_packed_with_what_the_options_say_of_it(tmp_path: Path) -> None:
    onnx.save(two_convolutions(), tmp_path / "net.onnx")
    net = Net(("N", 3, 8, 8))
    onnx.save(net.model(net.op("ReduceMean", "x", axes=[2, 3], keepdims=0)), tmp_path / "mean.onnx")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    preprocess = ("--input", "3x8x8", "--mean", "0,0,0", "--std", "1,1,1", "--resize", "8")
    shapes = ("--max-shape", "x:4x3x8x8", "--min-shape", "x:1x3x8x8", "--workspace", "256")

    result = tlc(
        *("pack", tmp_path / "mean.onnx", "-o", tmp_path / "mean.tlc", "--target", "jetson-orin"),
        *(*preprocess, *shapes, "--labels", tmp_path / "labels.txt", "--golden", "2"),
    )

    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "mean.tlc")
    assert manifest.classes == ["red", "green", "blue"]
    assert manifest.fed is not None
    assert (manifest.fed["size"], manifest.fed["resize"]) == ([8, 8], 8)
    assert manifest.build.profile["x"] == ProfileShapes(min=[1, 3, 8, 8], opt=[4, 3, 8, 8], max=[4, 3, 8, 8])
    assert manifest.build.workspace_bytes == 256 << 20
    assert len(manifest.golden.samples) == 2
    assert "runs engines, which are built on the device" in tlc("verify", tmp_path / "mean.tlc").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--mean", "0.5"), "--mean: for ONNX files; "),
        (("net.onnx",), "an ONNX file does not say which device it is for"),
        (("none.onnx", "--target", "cpu-x86"), "no model file at "),
        (("net.txt",), "is neither a folder nor an .onnx file"),
        (("net.onnx", "--target", "cpu-x86", "--labels", "none.txt"), "cannot read --labels none.txt"),
        (("net.onnx", "--target", "cpu-x86", "--licence", "mine"), "--licence 'mine' is no SPDX expression"),
        (("net.onnx", "--target", "cpu-x86", "--sign", "none"), "no key at none"),
        (("empty",), "empty is not the folder of a finished run"),
    ],
)
def test_what_cannot_be_packed_is_said_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"))
    write_net(Path("net.onnx"))
    Path("empty").mkdir()

    result = tlc("pack", *arguments, "-o", "net.tlc")

    assert result.exit_code in (1, 2)
    assert said in result.stderr
    assert "hint: " in result.stderr
    assert not Path("net.tlc").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not here: install OpenSSH")
def test_a_signed_bundle_tells_who_signed_it(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    signers = allow(tmp_path / "signers", "maker@example.org", key)
    model = write_net(tmp_path / "net.onnx")
    path = tmp_path / "net.tlc"
    assert tlc("pack", model, "-o", path, "--target", "cpu-x86", "--sign", key).exit_code == 0

    alone, named = tlc("verify", path), tlc("verify", path, "--signers", signers)
    wrong = tlc("verify", path, "--signers", signers, "--identity", "someone")

    assert "signature: good, with ED25519 key SHA256:" in alone.stdout
    assert "without --signers nobody vouches for that key" in alone.stdout
    assert "signature: good, of maker@example.org, with ED25519 key SHA256:" in named.stdout
    assert (wrong.exit_code, "does not allow for someone" in wrong.stderr) == (1, True)

    altered = tlc("verify", rewritten(path, {}, manifest=lambda value: {**value, "licence": "MIT"}))
    assert (altered.exit_code, "the signature is not one of this manifest" in altered.stderr) == (1, True)
    unsigned = tlc("verify", rewritten(path, {"manifest.json.sig": None}), "--signers", signers)
    assert (unsigned.exit_code, "is not signed, and --signers asks for a signature" in unsigned.stderr) == (1, True)


def test_an_identity_without_signers_is_a_usage_error(tmp_path: Path) -> None:
    result = tlc("verify", tmp_path / "net.tlc", "--identity", "maker")

    assert (result.exit_code, "--identity needs --signers" in result.stderr) == (2, True)


def test_an_altered_bundle_fails_with_status_1(tmp_path: Path) -> None:
    path = rewritten(write_bundle(tmp_path / "net.tlc"), {"card.md": b"x"})

    result = tlc("verify", path)

    assert (result.exit_code, f"error: {path}: card.md has 1 bytes" in result.stderr) == (1, True)


def test_a_bundle_is_measured_in_its_own_target(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(_board(threads=2))
    bundle = write_bundle(tmp_path / "net.tlc", target=str(tmp_path / "board.toml"))

    result = tlc("bench", bundle, tmp_path / "net.onnx", "--rounds", "4", "--json", "--no-history", "--quiet")

    assert result.exit_code == 0, result.output
    models = json.loads(result.stdout)["models"]
    assert [model["name"] for model in models] == [str(bundle), str(tmp_path / "net.onnx")]
    assert [model["setting"]["threads"] for model in models] == [2, 2]


def test_bundles_of_different_targets_are_measured_in_a_named_one_only(tmp_path: Path) -> None:
    a, b = write_bundle(tmp_path / "a.tlc"), write_bundle(tmp_path / "b.tlc", target="cpu-arm")

    result = tlc("bench", a, b, "--rounds", "4", "--no-history", "--quiet")

    assert result.exit_code == 2
    assert f"{a} is for cpu-x86, and {b} for cpu-arm" in result.stderr


def test_a_bundle_is_scored_and_compared_as_its_model(tmp_path: Path) -> None:
    data = tiny.write_bars(tmp_path / "bars.npz")
    bundle, other = write_bundle(tmp_path / "net.tlc"), write_net(tmp_path / "other.onnx", bias=9.0)

    scored = tlc("eval", bundle, other, "--data", data, "--json")
    compared = tlc(
        *("compare", bundle, other, "--data", data, "--rounds", "2", "--launches", "1"),
        *("--json", "--no-history", "--quiet"),
    )

    assert scored.exit_code == 0, scored.output
    rows = json.loads(scored.stdout)
    assert [row["path"] for row in rows] == [str(bundle), str(other)]
    assert rows[0]["accuracy"]["top1"] > rows[1]["accuracy"]["top1"]
    assert compared.exit_code == 0, compared.output
    report = json.loads(compared.stdout)
    assert (report["a"], report["size_bytes_a"]) == (str(bundle), (tmp_path / "net.onnx").stat().st_size)


def test_a_gate_holds_a_bundle_to_its_own_limits_where_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text('[gate]\nmax_size = "100B"\n')
    model = write_net(tmp_path / "net.onnx")
    packed = tlc("pack", model, "-o", tmp_path / "net.tlc", "--target", "cpu-x86", "--limits", tmp_path / "limits.toml")
    assert packed.exit_code == 0, packed.output
    common = ("gate", tmp_path / "net.tlc", "--rounds", "10", "--launches", "1", "--json", "--no-history", "--quiet")

    own, given = tlc(*common), tlc(*common, "--max-size", "1MB")

    size = unpacked(tmp_path / "net.tlc").stat().st_size
    assert own.exit_code == 3, own.output
    checks = {check["name"]: check for check in json.loads(own.stdout)["checks"]}
    assert (checks["max-size"]["value"], checks["max-size"]["limit"]) == (size, 100)
    assert given.exit_code == 0, given.output


def _board(threads: int) -> str:
    from tlc.runtime.target import load_target, written_target

    target = load_target("cpu-x86").model_copy(update={"name": "board", "threads": threads})
    return written_target(target)
