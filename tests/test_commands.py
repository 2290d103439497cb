"""Every command and Python block of the documents runs as written, in a folder with small models and data."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from native_build import built, ort_library
from PIL import Image
from sshd import running
from tiny_text import write_reviews, write_tiny
from tlc_process import run_tlc

from tlc.cli.main import main

REPOSITORY = Path(__file__).resolve().parent.parent
COMPRESS = REPOSITORY / "docs" / "compress.md"
PAGES = [page for page in sorted((REPOSITORY / "docs").glob("*.md")) if page != COMPRESS]
PAGES.append(REPOSITORY / "README.md")
SLOW = ("bench", "budget", "bundle", "compare", "data", "gate", "rank", "sensitivity", "steps", "texts")
"""Pages whose commands take more than twenty seconds together."""
NO_DEVICE = re.compile(r"^error: (no working TensorRT|TensorRT .* is here but no NVIDIA GPU|TensorRT is not )")
ON_DEVICE = re.compile(r"^tlc (deploy|.* --device) ")
SHELL = re.compile(r"[|&;<>$*?`]")
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield ("console", command) and ("python", code) in the order of the page."""
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            yield kind, text
            continue
        for line in text.splitlines():
            if line.startswith("$ "):
                yield kind, line[2:]


def run(kind: str, text: str, folder: Path, **environment: str) -> None:
    tools = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **environment}
    if text.startswith("tlc ") and not SHELL.search(text):
        done = run_tlc(shlex.split(text)[1:], folder, env)
    else:
        command: list[str] | str = [sys.executable, "-c", text] if kind == "python" else text
        if text.startswith("build/native/"):
            command = text.replace("build/native", str(built().parent), 1)
            env["TLC_ORT_LIB"] = str(ort_library())
        done = subprocess.run(
            command, shell=kind == "console", cwd=folder, env=env, capture_output=True, text=True, check=False
        )
    if text.startswith("tlc build ") and done.returncode == 1 and NO_DEVICE.search(done.stderr):
        return  # options, files and target were accepted: the engine itself is the device's to build
    if text.startswith("tlc gate ") and done.returncode == 4 and "INCONCLUSIVE" in done.stdout:
        return  # what it has to say beside other work, as there is on a shared machine
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _write_photos(folder: Path) -> None:
    """Ants are reddish, bees are bluish; 60x70 noise otherwise."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 12)):
        for position, name in enumerate(("ants", "bees")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (60, 70, 3), np.uint8)
                pixels[:, :, 0 if position == 0 else 2] += 90
                Image.fromarray(pixels).save(folder / split / name / f"{number:03d}.jpg")


def _trained() -> dict[str, torch.Tensor]:
    """Weights that tell red from blue."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(12):
        labels = torch.arange(16) % 2
        images = torch.randn(16, 3, 64, 64) * 0.5
        images[labels == 0, 0] += 1.5
        images[labels == 1, 2] += 1.5
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages assume: models, photos/, photos.zip, photo.jpg, pictures.npz, reviews.csv, compress.md's run."""
    folder = tmp_path_factory.mktemp("docs")
    _write_photos(folder / "photos")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for file in sorted((folder / "photos").rglob("*.jpg")):
            archive.write(file, file.relative_to(folder / "photos"))
    shutil.copyfile(folder / "photos" / "val" / "ants" / "000.jpg", folder / "photo.jpg")
    torch.save(_trained(), folder / "model.pt")
    write_tiny(folder / "my-bert-classifier")
    write_reviews(folder / "reviews.csv", count=120)
    rng = np.random.default_rng(0)
    np.savez(folder / "pictures.npz", x=rng.integers(0, 256, (1800, 32, 32, 3), np.uint8), y=np.arange(1800) % 2)
    for kind, text in blocks(COMPRESS):
        run(kind, text, folder)
    return folder


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Configuration for ssh in which every host is OpenSSH's server on the loopback interface."""
    built()  # what is sent to the device
    with running(tmp_path_factory.mktemp("board") / "sshd") as server:
        yield server.config


def test_the_page_on_compressing_ends_with_what_it_lists(folder: Path) -> None:
    listed = {"model.onnx", "original.onnx", "int8.onnx", "fp16.onnx", "report.html", "report.md", "report.json"}

    assert listed <= {file.name for file in (folder / "run").iterdir()}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(REPOSITORY)), marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
    ],
)
def test_every_command_of_the_page_runs(page: Path, folder: Path, request: pytest.FixtureRequest) -> None:
    commands = [(kind, text) for kind, text in blocks(page) if not text.startswith("make ")]

    for kind, text in commands:
        config = {"TLC_SSH_CONFIG": str(request.getfixturevalue("board"))} if ON_DEVICE.match(text) else {}
        run(kind, text, folder, **config)


def _leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield from _leaves(command) if isinstance(command, click.Group) else [command]


def test_tlc_takes_every_command_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for leaf in _leaves(main):
        monkeypatch.setattr(leaf, "callback", lambda **_options: None)
    commands = [text for page in [*PAGES, COMPRESS] for _kind, text in blocks(page) if text.startswith("tlc ")]
    assert len(commands) > 100

    for command in commands:
        lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [number for number, word in enumerate(words) if set(word) <= set("|&;<>")]
        taken = CliRunner().invoke(main, words[1 : ends[0] if ends else None])
        assert taken.exit_code == 0, f"{command}\n{taken.output}"


def test_every_command_of_tlc_is_on_a_page_and_ends_its_help_with_an_example() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, COMPRESS])
    for name, command in main.commands.items():
        assert f"tlc {name}" in pages, name
        assert re.search(r"Examples?:", command.help or ""), name


def test_the_example_of_a_recipe_runs(folder: Path) -> None:
    shutil.copyfile(REPOSITORY / "examples" / "tlc.toml", folder / "example.toml")

    run("console", "tlc compress --recipe example.toml --out from-example --dry-run", folder)


@pytest.mark.slow
def test_the_example_in_python_runs(tmp_path: Path) -> None:
    run("console", f"{sys.executable} {REPOSITORY / 'examples/compress_digits.py'} {tmp_path / 'digits'}", tmp_path)

    assert (tmp_path / "digits" / "run" / "model.onnx").exists()
