"""What a network is fed: recorded, given by options, or known of the architecture's family. Nothing is guessed."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from tlc.calibration.preprocess import Preprocess
from tlc.compress.arch import Architecture
from tlc.runtime.errors import TlcError, UsageError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_PIL_NAMES: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class PreprocessOptions(BaseModel):
    """What to do to an image, where neither the file nor the architecture says, or to say it otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input: tuple[int, int, int] | None = None
    """(C, H, W) of the model's input."""
    resize: Literal["none"] | int | tuple[int, int] | None = None
    """Short side, (H, W), or "none": images are taken as they are."""
    mean: tuple[float, ...] | None = None
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...] | None = None
    """Per channel, of values in [0, 1]."""
    interpolation: Interpolation | None = None
    """Filter of the resize."""
    channels: Literal["rgb", "bgr", "gray"] | None = None
    """Order that the network expects."""


def parse_input(text: str) -> tuple[int, int, int]:
    """Return (C, H, W) of "3x224x224"; UsageError otherwise."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text} is not CxHxW", hint="Write for example --input 3x224x224.")
    channels, height, width = map(int, parts)
    return channels, height, width


def without_normalisation(options: PreprocessOptions) -> PreprocessOptions:
    """Return options for what depends on shapes alone: a mean of 0 and std of 1 where --input was given and no mean."""
    if options.input is None or options.mean is not None:
        return options
    count = options.input[0]
    return options.model_copy(update={"mean": (0.0,) * count, "std": (1.0,) * count})


def resolve_preprocess(
    recorded: Preprocess | None,
    arch_default: Preprocess | None,
    options: PreprocessOptions,
    observed_size: tuple[int, int] | None = None,
) -> Preprocess:
    """Return options over what was recorded over the family's own.

    `observed_size` (H, W) is that of the data where all images agree; it counts where nothing else says.
    Raises TlcError naming the option that is missing.
    """
    known = recorded or arch_default
    channels = options.channels or _channels(options, known)
    count = 1 if channels == "gray" else 3
    if options.input is not None and options.input[0] != count:
        hint = f"Use --input {count}x{options.input[1]}x{options.input[2]}, or other --channels."
        raise UsageError(f"--input has {options.input[0]} channels, {channels} images have {count}", hint=hint)
    size = options.input[1:] if options.input else known.size if known else observed_size
    if size is None:
        hint = "Pass --input CxHxW, for example --input 3x224x224."
        raise TlcError("the size of the model's input is not known: neither weights nor data tell", hint=hint)
    mean, std = options.mean or (known.mean if known else None), options.std or (known.std if known else None)
    if mean is None or std is None:
        hint = "Pass the values it was trained with, for example --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."
        raise TlcError("the mean and std that the model's images were normalised with are not known", hint=hint)
    if len(mean) != count or len(std) != count:
        hint = f"Pass {count} values to --mean and --std."
        raise UsageError(f"{channels} images need {count} means and stds, got {len(mean)} and {len(std)}", hint=hint)
    return Preprocess(
        size=size,
        resize=_resize(options, known, size),
        interpolation=options.interpolation or (known.interpolation if known else "bilinear"),
        mean=mean,
        std=std,
        channels=channels,
    )


def _channels(options: PreprocessOptions, known: Preprocess | None) -> Literal["rgb", "bgr", "gray"]:
    if known is not None:
        return known.channels
    return "gray" if options.input is not None and options.input[0] == 1 else "rgb"


def _resize(
    options: PreprocessOptions, known: Preprocess | None, size: tuple[int, int]
) -> int | tuple[int, int] | None:
    if options.resize is not None:
        return None if options.resize == "none" else options.resize
    if known is None or known.resize is None:
        return None if known is None or size == known.size else size
    if size == known.size:
        return known.resize
    if isinstance(known.resize, tuple):
        return size
    # Another input size: the crop keeps its share of the image.
    return round(known.resize * min(size) / min(known.size))


def default_preprocess(arch: Architecture) -> Preprocess | None:
    """Return what the family's own pretrained weights are fed with, nothing downloaded; None for a FILE.py or a pickle.

    torchvision: `transforms()` of IMAGENET1K_V1, the recipe that most fine-tuning starts from.
    """
    if arch.kind == "torchvision":
        return _torchvision_preprocess(arch)
    if arch.kind == "timm":
        return _timm_preprocess(arch)
    if arch.kind == "hf":
        return _hf_preprocess(arch.config)
    return None


def _torchvision_preprocess(arch: Architecture) -> Preprocess | None:
    import torchvision

    weights = list(torchvision.models.get_model_weights(arch.name))
    if not weights:
        return None
    known = next((entry for entry in weights if entry.name == "IMAGENET1K_V1"), weights[0]).transforms()
    size, resize = known.crop_size[0], known.resize_size[0]
    wanted = arch.options.get("image_size", size)
    if isinstance(wanted, int) and wanted != size:
        size, resize = wanted, round(resize * wanted / size)
    return Preprocess(
        size=(size, size),
        resize=resize,
        interpolation=known.interpolation.value,
        mean=tuple(known.mean),
        std=tuple(known.std),
    )


def _timm_preprocess(arch: Architecture) -> Preprocess | None:
    import timm

    known = timm.get_pretrained_cfg(arch.name)
    if known is None:
        return None
    options: dict[str, Any] = dict(arch.options)
    wanted = options.get("img_size", known.input_size[1:])
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    channels = options.get("in_chans", known.input_size[0])
    scaled = int(height / known.crop_pct), int(width / known.crop_pct)
    exact = known.crop_mode == "squash" or height != width
    return Preprocess(
        size=(height, width),
        resize=scaled if exact else scaled[0],
        interpolation="bicubic"
        if known.interpolation not in ("nearest", "bilinear", "lanczos")
        else known.interpolation,
        mean=tuple(known.mean)[:channels],
        std=tuple(known.std)[:channels],
        channels="gray" if channels == 1 else "rgb",
    )


def _hf_preprocess(recorded: dict[str, JsonValue]) -> Preprocess | None:
    """Read preprocessor_config.json: size, crop_size, crop_pct (ConvNeXt), resample, image_mean, image_std."""
    known: Any = recorded.get("preprocessor")
    config: Any = recorded.get("config")
    if not known or not config:
        return None
    size = _hf_size(known.get("size", config.get("image_size", 224)))
    resize: int | tuple[int, int] | None = size if known.get("do_resize", True) else None
    crop = size if isinstance(size, tuple) else (size, size)
    if known.get("crop_pct") and isinstance(size, int):
        resize = int(size / known["crop_pct"]) if size < 384 else (size, size)
    elif known.get("do_center_crop"):
        cut = _hf_size(known.get("crop_size", size))
        crop = cut if isinstance(cut, tuple) else (cut, cut)
    normalised = known.get("do_normalize", True)
    count = int(config.get("num_channels", 3))
    return Preprocess(
        size=crop,
        resize=resize,
        interpolation=_PIL_NAMES.get(known.get("resample", 2), "bilinear"),
        mean=tuple(known.get("image_mean", (0.5,) * count)) if normalised else (0.0,) * count,
        std=tuple(known.get("image_std", (0.5,) * count)) if normalised else (1.0,) * count,
        channels="gray" if count == 1 else "rgb",
    )


def _hf_size(value: Any) -> int | tuple[int, int]:
    if isinstance(value, dict):
        return int(value["shortest_edge"]) if "shortest_edge" in value else (int(value["height"]), int(value["width"]))
    return int(value) if isinstance(value, int | float) else (int(value[0]), int(value[1]))
