from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import write_tiny

from tiny import seeded_net
from tlc.compress.checkpoint import save_model
from tlc.compress.inputs import PreprocessOptions
from tlc.compress.load import load_model
from tlc.compress.text_model import load_text_model, save_text_model
from tlc.compress.torch_session import TorchSession
from tlc.runtime.errors import TlcError, UsageError

TINY = f"{Path(__file__).parent.parent / 'support' / 'tiny.py'}:tiny_net"
GRAY = PreprocessOptions(input=(1, 8, 8))
FED = PreprocessOptions(input=(1, 8, 8), mean=(0.5,), std=(0.25,))
BROKEN = """
import torch

class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

class Raises(Broken):
    def forward(self, x):
        raise ValueError(f"nothing to say about {len(x)}\\nsecond line")

class Tells(Broken):
    def forward(self, x):
        return {"logits": x}

class Wants(Broken):
    def forward(self, x):
        return torch.empty(2**50)
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(seeded_net().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def noise(batch: int = 3) -> dict[str, Any]:
    return {"input": np.random.default_rng(0).standard_normal((batch, 1, 8, 8)).astype(np.float32)}


def tokens(*names: str, batch: int = 2, length: int = 7) -> dict[str, Any]:
    return {name: np.ones((batch, length), np.int64) for name in names}


def test_weights_and_a_checkpoint_give_the_logits_of_the_network_without_mean_and_std(
    weights: Path, tmp_path: Path
) -> None:
    save_model(load_model(weights, arch=TINY, preprocess=FED), tmp_path / "saved")
    with torch.inference_mode():
        wanted = seeded_net()(torch.from_numpy(noise()["input"])).numpy()
    for path in (weights, tmp_path / "saved"):
        with TorchSession(path, arch=TINY, preprocess=GRAY) as session:
            assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [("input", ("N", 1, 8, 8), "float32")]
            assert session.runtime == f"torch {torch.__version__}"
            answer = session.run(noise())
            assert list(answer) == [session.outputs[0].name] == ["logits"]
            assert np.array_equal(answer["logits"], wanted)


def test_an_exported_program_runs_in_torch(weights: Path, tmp_path: Path) -> None:
    torch.export.save(torch.export.export(seeded_net(), (torch.zeros(1, 1, 8, 8),)), tmp_path / "model.pt2")
    answers: list[Any] = []
    for path in (weights, tmp_path / "model.pt2"):
        with TorchSession(path, arch=TINY, preprocess=GRAY) as session:
            answers.append(session.run(noise(1))["logits"])
    assert np.array_equal(answers[0], answers[1])


def test_the_network_is_not_run_before_it_is_asked_to(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    torch.save({"scale": torch.ones(1)}, tmp_path / "model.pt")
    arch = f"{tmp_path / 'broken.py'}:Raises"
    session = TorchSession(tmp_path / "model.pt", arch=arch, preprocess=GRAY)
    with pytest.raises(
        TlcError, match=r"model\.pt failed on input \[3, 1, 8, 8\]: nothing to say about 3\n"
    ) as failure:
        session.run(noise())
    assert failure.value.hint == "Try a batch of 1 and the sizes that it was trained on."


def test_what_is_no_tensor_and_what_does_not_fit_in_memory_are_said(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    torch.save({"scale": torch.ones(1)}, tmp_path / "model.pt")
    arch = f"{tmp_path / 'broken.py'}:"
    with pytest.raises(TlcError, match="it returns a dict, not logits"):
        TorchSession(tmp_path / "model.pt", arch=arch + "Tells", preprocess=GRAY).run(noise())
    with pytest.raises(MemoryError, match="allocate"):
        TorchSession(tmp_path / "model.pt", arch=arch + "Wants", preprocess=GRAY).run(noise())


def test_feeds_of_another_name_or_shape_and_a_closed_session_are_refused(weights: Path) -> None:
    session = TorchSession(weights, arch=TINY, preprocess=GRAY)
    with pytest.raises(TlcError, match=r"takes input float32 \[N, 1, 8, 8\], got x"):
        session.run({"x": noise()["input"]})
    with pytest.raises(TlcError, match=r"got float32 \[3, 1, 4, 8\]"):
        session.run({"input": noise()["input"][:, :, ::2].copy()})
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(noise())


def test_threads_are_those_of_the_process_and_at_least_one(weights: Path) -> None:
    before = torch.get_num_threads()
    try:
        TorchSession(weights, arch=TINY, preprocess=GRAY, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        TorchSession(weights, arch=TINY, preprocess=GRAY, threads=0)


def test_weights_alone_and_a_text_model_s_folder_without_one_say_what_to_pass(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="holds weights only"):
        TorchSession(weights)
    with pytest.raises(TlcError, match="the size of the model's input is not known"):
        TorchSession(weights, arch=TINY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TlcError, match="a folder without a model in it"):
        TorchSession(tmp_path / "empty")


def test_texts_give_the_logits_of_the_network_from_a_folder_and_a_checkpoint_without_a_tokenizer(
    tmp_path: Path,
) -> None:
    folder = write_tiny(tmp_path / "model")
    model = load_text_model(folder)
    save_text_model(model, tmp_path / "saved")
    (folder / "tokenizer.json").unlink()
    feeds = tokens("input_ids", "attention_mask")
    with torch.inference_mode():
        wanted = model.module(*map(torch.from_numpy, feeds.values())).numpy()
    for path in (folder, tmp_path / "saved"):
        with TorchSession(path) as session:
            assert [(s.name, s.shape, s.dtype) for s in session.inputs] == [(n, ("N", "T"), "int64") for n in feeds]
            assert np.array_equal(session.run(feeds)["logits"], wanted)


def test_texts_in_pairs_take_token_types(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model")
    save_text_model(load_text_model(folder), tmp_path / "saved")
    feeds = tokens("input_ids", "attention_mask", "token_type_ids")
    answers: list[Any] = []
    for path in (folder, tmp_path / "saved"):
        with TorchSession(path, pairs=True) as session:
            answers.append(session.run(feeds)["logits"])
    assert np.array_equal(answers[0], answers[1])


def test_a_text_that_is_too_long_says_how_many_tokens_are_possible(tmp_path: Path) -> None:
    session = TorchSession(write_tiny(tmp_path / "model"))
    with pytest.raises(TlcError, match=r"failed on input_ids \[2, 65\], attention_mask \[2, 65\]") as failure:
        session.run(tokens("input_ids", "attention_mask", length=65))
    assert failure.value.hint.endswith("Its position embeddings reach 64 tokens.")
