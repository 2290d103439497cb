"""The demo: a small network trained on scikit-learn's handwritten digits, then compressed by the main path.

The digits (Alpaydin, Kaynak 1998: 1,797 scanned images of 8x8) come with scikit-learn, so nothing is downloaded.
"""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tlc.calibration.augment import Augment
from tlc.calibration.cache import prepare
from tlc.calibration.data import read_data
from tlc.compress import demo_network
from tlc.compress.events import Emit, StageStarted
from tlc.compress.image_train import ImageSamples
from tlc.compress.inputs import PreprocessOptions, resolve_preprocess
from tlc.compress.objective import Supervised
from tlc.compress.recipe import DataSection, ModelSection, Recipe
from tlc.compress.train import TrainSettings, fit
from tlc.runtime.artifact import write_bytes

SEED = 0
_SIDE = 20
_TRAIN = TrainSettings(
    epochs=8,
    batch_size=64,
    learning_rate=0.05,
    augment=Augment(crop="pad", padding=2, flip=False),
)


def write_demo_inputs(folder: Path, emit: Emit) -> Recipe:
    """Write `digits.npz`, `demo_network.py` and the trained `model.pt` into `folder`; return the recipe for them.

    What is already there is kept, and a training that was killed goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = demo_recipe(folder)
    write_bytes(recipe.data.path, _digits_npz())
    shutil.copyfile(demo_network.__file__, folder / "demo_network.py")
    if not recipe.model.path.exists():
        _train(recipe, folder, emit)
    return recipe


def demo_recipe(folder: Path) -> Recipe:
    """Return the recipe of the demo: the defaults, with fewer passes over so few images."""
    return Recipe(
        seed=SEED,
        model=ModelSection(
            path=folder / "model.pt",
            arch=f"{folder / 'demo_network.py'}:digits_resnet",
            preprocess=PreprocessOptions(
                input=(1, _SIDE, _SIDE), resize=(_SIDE, _SIDE), mean=(0.3,), std=(0.35,), channels="gray"
            ),
        ),
        data=DataSection(path=folder / "digits.npz"),
        # 450 images cannot show that less is lost: an interval is a point wide to either side.
        train=_TRAIN,
    )


def _digits_npz() -> bytes:
    """Return the digits as .npz bytes, the same every time: 8x8 uint8, a quarter of each class to evaluate on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    split = train_test_split(pixels, digits.target, test_size=0.25, stratify=digits.target, random_state=SEED)
    arrays: dict[str, NDArray[np.generic]] = dict(zip(("x_train", "x_val", "y_train", "y_val"), split, strict=True))
    arrays["classes"] = np.array([str(name) for name in digits.target_names])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            # numpy.savez would stamp the time of day into the file.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def _train(recipe: Recipe, folder: Path, emit: Emit) -> None:
    emit(StageStarted("train the demo's original"))
    splits = read_data(recipe.data.path, seed=SEED)
    preprocess = resolve_preprocess(None, None, recipe.model.preprocess)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = demo_network.digits_resnet()
    fitted = fit(
        network,
        ImageSamples(prepare(splits.fit, preprocess), _TRAIN.augment),
        ImageSamples(prepare(splits.holdout, preprocess)),
        _TRAIN,
        Supervised(),
        seed=SEED,
        views=_TRAIN.resolved("images").epochs,
        folder=folder,
        emit=emit,
        what="train",
    )
    beside = folder / "model.pt.new"
    torch.save(fitted.network.state_dict(), beside)
    beside.replace(recipe.model.path)
