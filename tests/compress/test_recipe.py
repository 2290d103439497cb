"""Every wrong setting is named, with what is allowed."""

from pathlib import Path

import pytest

from tlc.compress.recipe import Recipe, parse_override, read_recipe, recipe_template
from tlc.runtime.errors import UsageError

GIVEN = {"model.path": "model.pt", "data.path": "photos"}


def test_options_win_over_the_file_and_paths_count_from_the_files_folder(tmp_path: Path) -> None:
    file = tmp_path / "tlc.toml"
    file.write_text('seed = 3\n[model]\npath = "m.pt"\n[data]\npath = "photos"\n[train]\nepochs = 7\n')

    recipe = read_recipe(file, {"train.epochs": 9})

    assert (recipe.seed, recipe.train.epochs) == (3, 9)
    assert recipe.model.path == tmp_path / "m.pt"


def test_the_gates_table_may_stand_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "tlc.toml"
    file.write_text('[model]\npath = "m.pt"\n[data]\npath = "photos"\n[gate]\nmax_slowdown = "5%"\n')

    assert read_recipe(file, {}).model.path == tmp_path / "m.pt"


def test_the_template_is_a_valid_recipe_of_defaults_that_names_every_setting(tmp_path: Path) -> None:
    file = tmp_path / "tlc.toml"
    file.write_text(recipe_template("model.pt", "photos"))

    recipe = read_recipe(file, {})

    assert recipe == read_recipe(None, {"model.path": tmp_path / "model.pt", "data.path": tmp_path / "photos"})
    for section in ("budget", "distill", "prune", "train", "quantize", "measure", "model", "data"):
        for key in type(getattr(recipe, section)).model_fields:
            assert f"{key} = " in file.read_text() or f"{section}.{key}]" in file.read_text(), (section, key)


def test_uncommenting_the_templates_defaults_changes_nothing(tmp_path: Path) -> None:
    lines = recipe_template("model.pt", "photos").replace("# [train.augment]", "[skip]").splitlines()
    skipped = lines.index("[skip]")
    lines = lines[:skipped] + lines[lines.index("[distill]") :]
    settings = [
        line[2:] if line.startswith("# ") and " = " in line and "absent" not in line else line for line in lines
    ]
    file = tmp_path / "tlc.toml"
    file.write_text("\n".join(line for line in settings if " = " in line or line.startswith("[")))

    recipe = read_recipe(file, {})

    assert recipe == read_recipe(None, {"model.path": tmp_path / "model.pt", "data.path": tmp_path / "photos"})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.epoch", 5, "unknown setting train.epoch (did you mean epochs?)"),
        ("trian.epochs", 5, "unknown setting trian (did you mean train?)"),
        ("max_drop_points", 5, "unknown setting max_drop_points (did you mean budget.max_drop_points?)"),
        ("train.epochs", -1, "train.epochs = -1: input should be greater than or equal to 0"),
        ("prune.ratio", 1.5, "prune.ratio = 1.5: input should be less than 1"),
        ("distill.loss", "kl", "distill.loss = 'kl': input should be 'logits' or 'decoupled'"),
        ("budget.max_drop_points", 101, "budget.max_drop_points = 101: input should be less than or equal to 100"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(key: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        read_recipe(None, {**GIVEN, key: value})

    assert sentence in error.value.message


def test_a_missing_model_says_so() -> None:
    with pytest.raises(UsageError, match=r"model is missing; data is missing"):
        read_recipe(None, {})


def test_a_file_that_is_not_toml_says_where(tmp_path: Path) -> None:
    file = tmp_path / "tlc.toml"
    file.write_text("seed = \n")

    with pytest.raises(UsageError, match=r"is not valid TOML: .*line 1"):
        read_recipe(file, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", ("seed", 3)),
        ("distill.student=depth:4,4,4", ("distill.student", "depth:4,4,4")),
        ("train.freeze=['stem.*']", ("train.freeze", ["stem.*"])),
        ("data.skip_bad=true", ("data.skip_bad", True)),
    ],
)
def test_overrides_are_toml_or_plain_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


def test_an_override_without_a_value_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--set 'epochs' is not KEY=VALUE"):
        parse_override("epochs")


def test_a_recipe_survives_json() -> None:
    recipe = read_recipe(None, GIVEN)

    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
