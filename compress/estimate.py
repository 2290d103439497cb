"""What a run would do and about how long it would take, without doing it."""

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from tlc.calibration.texts import TextSet
from tlc.calibration.tokens import token_lengths
from tlc.compress.model import Model
from tlc.compress.plan import Plan
from tlc.compress.student import is_built_from_teacher, parse_student, student_from_teacher
from tlc.compress.text_model import TextModel
from tlc.compress.train import bf16_is_fast
from tlc.runtime.capability import missing

_TIMED_STEPS = 3


def plan_lines(plan: Plan) -> list[str]:
    """Return the plan as lines of text; times come from a few timed training steps of the original on noise."""
    step_s, forward_s = seconds_per_sample(plan, plan.model.module)
    wider = _wider_student(plan)
    # Any other student made of the original costs at most what the original does.
    student_s = step_s if wider is None else seconds_per_sample(plan, wider)[0]
    recipe, splits, count, kind = plan.recipe, plan.splits, len(plan.splits.fit), plan.kind
    shape = "x".join(map(str, plan.model.input_shape))
    lines = [
        f"model      {recipe.model.path} ({plan.model.arch.text}, {plan.model.num_classes} classes, "
        f"{'input ' + shape if kind == 'images' else 'at most ' + shape + ' tokens'})",
        f"data       {splits.path}: {count} to train on, {len(splits.holdout)} held out, "
        f"{len(splits.evaluation)} to evaluate on",
        f"target     {plan.target.name}, budget {recipe.budget.words}",
    ]
    passes = recipe.train.resolved(kind).epochs
    teacher_s = (min(recipe.distill.views, max(1, passes)) if keeps_answers(plan) else passes) * count * forward_s
    if plan.student.value is None:
        lines.append(f"distill    no: {plan.student.reason}")
    else:
        seconds = passes * count * student_s + teacher_s
        lines.append(f"distill    student {plan.student.value}, {passes} epochs, at most {_duration(seconds)}")
    if plan.prune.value is None:
        lines.append(f"prune      no: {plan.prune.reason}")
    else:
        epochs = recipe.prune.steps * recipe.prune.recovery_epochs
        what = "channels" if kind == "images" else "heads and inner channels"
        lines.append(
            f"prune      {100 * float(plan.prune.value):.0f} % of the {what} in {recipe.prune.steps} steps, "
            f"{epochs} epochs of recovery, at most {_duration(epochs * count * student_s)}"
        )
    if "int8" in plan.target.precisions:
        lines.append(f"quantize   INT8, calibrated on {min(recipe.quantize.samples, count)} training {kind}")
    else:
        lines.append(f"quantize   no: {plan.target.name} has no INT8 arithmetic.")
    lines.append(f"measure    accuracy on {len(splits.evaluation)} {kind}")
    if reason := missing(plan.target):
        lines[-1] += f"; no latency: {reason}"
    else:
        lines[-1] += f"; latency in {recipe.measure.rounds} rounds over all files, {plan.target.threads} thread"
    return lines


def _wider_student(plan: Plan) -> nn.Module | None:
    """Return the student if it is to be wider than the original: how wide, not with which of its blocks."""
    spec = plan.student.value
    if not isinstance(plan.model, Model) or not isinstance(spec, str) or not is_built_from_teacher(spec):
        return None
    width = parse_student(spec).width
    if width is None or (max(width) if isinstance(width, tuple) else width) <= 1:
        return None
    example = torch.zeros(1, *plan.model.input_shape)
    multiple = plan.target.channel_multiple
    student, _ = student_from_teacher(
        plan.model, spec, score=lambda _network: 0.0, example=example, max_evaluations=0, round_to=multiple
    )
    return student.module


def keeps_answers(plan: Plan) -> bool:
    """Return whether the teacher answers a few views of each sample, and not at every step."""
    return plan.recipe.distill.resolved(plan.kind).feature == "none"


def seconds_per_sample(plan: Plan, network: nn.Module) -> tuple[float, float]:
    """Return seconds of a training step and of a forward pass of `network`, each divided by the batch size."""
    size = min(plan.recipe.train.resolved(plan.kind).batch_size, len(plan.splits.fit))
    network = copy.deepcopy(network).to(memory_format=torch.channels_last).train()
    inputs = _inputs(plan, size)
    bf16 = bf16_is_fast()
    steps, forwards = [], []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(*inputs).float().square().mean()
        loss.backward()
        steps.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(*inputs)
        forwards.append(time.perf_counter() - start)
    return min(steps) / size, min(forwards) / size


def _inputs(plan: Plan, size: int) -> tuple[Tensor, ...]:
    """Return inputs of no meaning: black images, or texts of an ordinary length."""
    if isinstance(plan.model, TextModel):
        texts = plan.splits.fit
        assert isinstance(texts, TextSet)
        length = int(np.median(token_lengths(texts, plan.model.tokenizer).clip(max=plan.model.text.max_length)))
        return tuple(
            torch.ones(size, length, dtype=torch.int64) * (name == "attention_mask") for name in plan.model.text.inputs
        )
    return (torch.zeros(size, *plan.model.input_shape).to(memory_format=torch.channels_last),)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
