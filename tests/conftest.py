"""Options and fixtures of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_commands.py")  # the longest file first: it ends with the others
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: takes more than about twenty seconds; run pytest with --slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _own_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the tests measure out of the user's history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLC_HISTORY", str(tmp_path_factory.mktemp("history") / "history.sqlite"))
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real models and data: TLC_ASSETS, by default ../shared/assets beside the repository."""
    folder = Path(os.environ.get("TLC_ASSETS") or REPOSITORY.parent / "shared" / "assets")
    if not folder.is_dir():
        pytest.skip(f"no real models and data at {folder}: set TLC_ASSETS to the folder that holds them")
    return folder
