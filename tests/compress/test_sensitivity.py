"""One thing at a time: which rows there are, that nothing costs nothing, and what is shared and left out."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_text
import torch
from timm.models.vision_transformer import VisionTransformer

import tiny
from tlc.compress.int8_alone import int8_alone
from tlc.compress.layer_noise import QuantizedLayers
from tlc.compress.measure import Timing
from tlc.compress.model import Model
from tlc.compress.plan import Plan, make_plan
from tlc.compress.prune import reestimate_batchnorm
from tlc.compress.recipe import Recipe, read_recipe
from tlc.compress.runner import Runner
from tlc.compress.sensitivity import sensitivity, study_model
from tlc.compress.sensitivity_report import Effect, Sensitivity, Treatment
from tlc.compress.sensitivity_trials import surgery_for
from tlc.compress.text_model import TextModel
from tlc.compress.work import AnyWork
from tlc.runtime.errors import TlcError
from tlc.runtime.report import Agreement
from tlc.runtime.session import OrtSession

QUICK = {"measure.rounds": 10, "quantize.samples": 16}
IDLE, BUSY = "layer1.1", "layer1.2"


def network(folder: Path) -> tiny.TinyNet:
    """A network whose second block passes its input on as it is, with the statistics of its training images."""
    net = tiny.seeded_net()
    with torch.no_grad():
        net.layer1[1].conv.weight.zero_()  # type: ignore[union-attr, operator]
    fit, _holdout = tiny.bars(folder)
    reestimate_batchnorm(net, [torch.from_numpy(fit.batch(np.arange(0, len(fit), 2)))])
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worth")
    torch.save(network(folder).state_dict(), folder / "net.pt")
    tiny.write_bars(folder / "bars.npz", 200)
    tiny_text.write_tiny(folder / "model")
    tiny_text.write_reviews(folder / "reviews.csv", count=100)
    return folder


def image_recipe(folder: Path, **more: object) -> Recipe:
    given = {
        "model.path": folder / "net.pt",
        "model.arch": f"{tiny.__file__}:tiny_net",
        "data.path": folder / "bars.npz",
        "model.preprocess.input": (1, 8, 8),
        "model.preprocess.channels": "gray",
        "model.preprocess.mean": (0.5,),
        "model.preprocess.std": (0.25,),
    }
    return read_recipe(None, {**given, **QUICK, **more})


def text_recipe(folder: Path) -> Recipe:
    return read_recipe(None, {"model.path": folder / "model", "data.path": folder / "reviews.csv", **QUICK})


@pytest.fixture(scope="module")
def images(folder: Path) -> Sensitivity:
    return study_model(image_recipe(folder), samples=100, timed=False)


@pytest.fixture(scope="module")
def texts(folder: Path) -> Sensitivity:
    return study_model(text_recipe(folder), samples=50, timed=False)


def effects(found: Sensitivity, name: str) -> dict[Treatment, Effect]:
    return found.row(name).effects


def test_rows_are_in_the_order_of_the_network_and_a_block_stands_before_its_layers(images: Sensitivity) -> None:
    blocks = [name for n in range(3) for name in (f"layer1.{n}", f"layer1.{n}.conv")]

    assert [row.name for row in images.rows] == ["stem", *blocks, "head"]
    assert [row.kind for row in images.rows[:3]] == ["layer", "block", "layer"]
    assert images.row("layer1.0.conv").block == "layer1.0"
    assert images.row("stem").macs == 8 * 9 * 4 * 4
    assert images.row("layer1.0").macs == images.row("layer1.0.conv").macs == 8 * 8 * 9 * 4 * 4


def test_only_what_can_be_done_to_a_part_is_there(images: Sensitivity) -> None:
    assert set(effects(images, "layer1.0")) == {"int8", "removed"}
    assert set(effects(images, "layer1.0.conv")) == {"int8", "channels-25", "channels-50"}
    assert set(effects(images, "head")) == {"int8"}


def test_layers_of_one_group_of_channels_share_an_effect(images: Sensitivity) -> None:
    stem = effects(images, "stem")["channels-25"]

    assert stem.share_ratio == 0.25
    assert stem.changed == ("stem", "layer1.0.conv", "layer1.1.conv", "layer1.2.conv")
    assert effects(images, "layer1.2.conv")["channels-25"] == stem
    assert effects(images, "stem")["channels-50"].share_ratio == 0.5


def test_what_does_nothing_costs_nothing(images: Sensitivity) -> None:
    idle, busy = (effects(images, name)["removed"] for name in (IDLE, BUSY))

    assert idle.divergence < 1e-6 < busy.divergence
    assert (idle.lost, idle.won) == (0, 0)
    assert next(images.cheapest("removed")).name == IDLE


def test_points_are_those_of_the_network_without_the_block(folder: Path, images: Sensitivity, tmp_path: Path) -> None:
    plan = make_plan(image_recipe(folder))
    surgery = surgery_for(plan.start(tmp_path), plan.model)
    part = next(part for part in surgery.parts if part.name == BUSY)
    judged = surgery.judged(100)

    nets = (plan.model, surgery.untreated(), surgery.without(part))
    plain, before, after = (surgery.answers(net, judged).argmax(1) for net in nets)
    right = [(answers == judged.labels).mean() for answers in (before, after)]

    change = effects(images, BUSY)["removed"].change_points
    assert images.top1_ratio == (plain == judged.labels).mean()
    assert images.cuts_top1_ratio == right[0]
    assert change.estimate == pytest.approx(100 * (right[1] - right[0]))
    assert change.low < change.estimate < change.high
    assert images.samples == len(judged) == 100
    assert list(surgery.without(part).module.layer1._modules) == ["0", "1"]


def test_int8_of_the_layers_of_a_block_is_int8_of_the_block(images: Sensitivity) -> None:
    block, layer = effects(images, "layer1.0")["int8"], effects(images, "layer1.0.conv")["int8"]

    assert block == layer
    assert 0 < block.divergence < effects(images, BUSY)["removed"].divergence
    assert effects(images, f"{IDLE}.conv")["int8"].divergence < 1e-6  # zeros are INT8 already


def test_heads_of_a_vision_transformer_go_with_their_layer(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(image_recipe(folder))
    net = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=2, embed_dim=16, depth=2, num_heads=4)
    surgery = surgery_for(plan.start(tmp_path), replace(plan.model, module=net.eval()))
    parts = {part.name: part for part in surgery.parts}

    narrow, share = surgery.narrowed(surgery.coupled(parts["blocks.0.attn.qkv"]), 0.5)

    assert surgery.coupled(parts["blocks.0"]) == ("blocks.0.mlp.fc1", "blocks.0.attn")
    assert share == 0.5
    assert narrow.module.blocks[0].attn.qkv.out_features == 3 * 8
    assert narrow.module.blocks[1].attn.qkv.out_features == 3 * 16
    assert surgery.answers(narrow, surgery.judged(20)).shape == (20, 2)
    assert surgery.removable(parts["blocks.1"])


def test_whole_heads_go_with_query_key_and_value(texts: Sensitivity) -> None:
    layer = next(row.name for row in texts.rows if row.kind == "block")
    own = [row for row in texts.rows if row.block == layer]
    heads = [row for row in own if row.name.endswith(("query", "key", "value"))]

    assert len(own) == 6
    assert len({row.effects["channels-50"].divergence for row in heads}) == 1
    assert heads[0].effects["channels-50"].changed == tuple(row.name for row in heads)
    assert heads[0].effects["channels-25"].share_ratio == 0.25
    assert set(effects(texts, layer)) == {"int8", "channels-25", "channels-50", "removed"}
    assert effects(texts, layer)["channels-50"].divergence > 0
    assert texts.cuts_top1_ratio == texts.top1_ratio


def test_int8_of_texts_is_dynamic_as_it_ships_and_queries_go_with_keys_and_values(texts: Sensitivity) -> None:
    layer = next(row for row in texts.rows if row.kind == "block")
    query = next(row for row in texts.rows if row.name.endswith("query"))

    assert [name.rpartition(".")[2] for name in query.effects["int8"].changed] == ["query", "key", "value"]
    assert len(layer.effects["int8"].changed) == 6
    assert layer.effects["int8"].divergence > 0


def test_the_last_layer_of_texts_is_timed_by_itself(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(text_recipe(folder))
    surgery = surgery_for(plan.start(tmp_path), plan.model)
    first, last = (part for part in surgery.parts if part.kind == "block")

    def cost(network: TextModel) -> Counter[tuple[object, ...]]:
        return Counter(cost for _name, cost in surgery.costs(network))

    halves = [surgery.narrowed(surgery.coupled(part), 0.5)[0] for part in (first, last)]
    assert cost(halves[0]) != cost(halves[1])
    assert cost(surgery.without(first)) == cost(surgery.without(last))


def test_files_of_the_same_shapes_are_timed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Path] = []
    plan: Plan = make_plan(image_recipe(folder))
    work = plan.start(tmp_path)
    export = type(work).export

    def counted(self: AnyWork, model: Model, path: Path) -> Agreement:
        exported.append(path)
        return export(self, model, path)

    monkeypatch.setattr(type(work), "export", counted)

    found = sensitivity(
        work,
        plan.model,
        Runner.here(plan.target, tmp_path),
        tmp_path,
        samples=20,
        treatments=["removed"],
        timing=Timing(rounds=10, launches=1, seed=0),
    )

    assert len(exported) == 2
    assert found.p50_ms is not None
    timed = [effects(found, f"layer1.{n}")["removed"] for n in range(3)]
    assert {effect.timed_as for effect in timed} == {"layer1.0"}
    assert all(effect.latency_ratio == timed[0].latency_ratio is not None for effect in timed)


def test_where_runtime_and_int8_are_missing_there_are_answers_and_the_reasons(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlc.compress.runner.missing", lambda _target: "it is elsewhere")

    found = study_model(image_recipe(folder, target="jetson-nano"), samples=20, treatments=("int8", "removed"))

    assert found.notes == ("INT8 was left out: jetson-nano has no INT8 arithmetic.",)
    assert set(effects(found, BUSY)) == {"removed"}
    assert found.not_measured.startswith("It is elsewhere")
    assert found.p50_ms is None
    assert effects(found, BUSY)["removed"].latency_ratio is None


def test_a_finished_file_is_refused() -> None:
    recipe = read_recipe(None, {"model.path": Path("net.onnx"), "data.path": Path("bars.npz")})

    with pytest.raises(TlcError, match=r"net\.onnx is a finished file; blocks and channels are those of a PyTorch"):
        study_model(recipe)


def test_two_layers_in_int8_are_both_rounded(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(image_recipe(folder))
    work = plan.start(tmp_path)
    surgery = surgery_for(work, plan.model)
    work.export(plan.model, tmp_path / "float.onnx")
    alone = int8_alone(surgery, tmp_path / "float.onnx", tmp_path / "float.onnx", plan.target, tmp_path)
    names = {"none": (), "first": ("stem",), "second": ("head",), "both": ("stem", "head")}
    answers = {}
    for name, layers in names.items():
        alone.write(layers, tmp_path / f"{name}.onnx")
        with OrtSession(tmp_path / f"{name}.onnx") as session:
            answers[name] = work.answers(session, surgery.judged(50))

    float_model = onnx.load(tmp_path / "float.onnx")
    assert onnx.load(tmp_path / "none.onnx").graph == float_model.graph
    assert alone.together(["stem", "head"]) == ("stem", "head")
    assert all(np.abs(answers[name] - answers["none"]).max() > 0 for name in ("first", "second", "both"))
    assert np.abs(answers["both"] - answers["first"]).max() > 0
    count = sum(node.op_type == "DequantizeLinear" for node in onnx.load(tmp_path / "both.onnx").graph.node)
    assert count == 2
    assert not QuantizedLayers(float_model).holds(float_model.graph.node[0].name)
