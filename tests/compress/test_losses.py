"""Losses against values computed by hand or by another formula."""

import pytest
import torch
from torch.nn import functional as F

from tlc.compress.losses import attention_transfer, decoupled_kd, hint, relation, softened_kl

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
TEACHER = torch.tensor([[1.0, 1.5, -0.5], [2.0, -1.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_softened_kl_is_the_sum_of_p_log_p_over_q_times_the_squared_temperature() -> None:
    p, q = F.softmax(TEACHER / 4, 1), F.softmax(LOGITS / 4, 1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()

    assert softened_kl(LOGITS, TEACHER, 4.0).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_every_distance_of_equal_outputs_is_zero(temperature: float) -> None:
    features = torch.randn(4, 8, 5, 5)

    assert softened_kl(LOGITS, LOGITS, temperature).item() == pytest.approx(0, abs=1e-5)
    assert decoupled_kd(LOGITS, LOGITS, LABELS, temperature).item() == pytest.approx(0, abs=1e-4)
    assert hint(features, features).item() == 0
    assert attention_transfer(features, features).item() == 0
    assert relation(features, features).item() == 0


def test_decoupled_terms_recombine_to_the_classical_loss_when_weighted_by_the_teachers_doubt() -> None:
    """Equation 5 of the paper: KD = TCKD + (1 - p_t) NCKD, here for one sample."""
    student, teacher, label = LOGITS[:1], TEACHER[:1], LABELS[:1]
    doubt = 1 - F.softmax(teacher, 1)[0, label.item()].item()  # type: ignore[index]

    recombined = decoupled_kd(student, teacher, label, 1.0, alpha=1.0, beta=doubt)

    assert recombined.item() == pytest.approx(softened_kl(student, teacher, 1.0).item(), rel=1e-4)


def test_attention_and_relation_compare_networks_of_different_width() -> None:
    wide = torch.randn(4, 16, 5, 5)

    assert attention_transfer(torch.randn(4, 8, 5, 5), wide).item() > 0
    assert relation(torch.randn(4, 8, 3, 3), wide).item() > 0


def test_scaling_the_students_features_does_not_change_its_attention() -> None:
    student, teacher = torch.randn(4, 8, 5, 5), torch.randn(4, 8, 5, 5)

    assert attention_transfer(3 * student, teacher).item() == pytest.approx(attention_transfer(student, teacher).item())
