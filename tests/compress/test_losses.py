"""Losses against values computed by hand or by another formula."""

import pytest
import torch
from torch.nn import functional as F

from tlc.compress.losses import (
    attention_scores,
    attention_transfer,
    decoupled_kd,
    hint,
    relation,
    softened_kl,
    token_relations,
)

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


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def test_attention_scores_are_compared_over_real_tokens_alone() -> None:
    torch.manual_seed(0)
    ours, theirs = [torch.randn(2, 2, 4, 3) for _ in range(2)], [torch.randn(2, 2, 4, 3) for _ in range(2)]
    a, b = (queries @ keys.mT / 3**0.5 for queries, keys in (ours, theirs))
    errors = torch.cat([((a - b) ** 2)[0, :, :3, :3].flatten(), ((a - b) ** 2)[1, :, :2, :2].flatten()])
    scale = torch.cat([b[0, :, :3, :3].flatten(), b[1, :, :2, :2].flatten()]).square().mean()

    loss = attention_scores((ours[0], ours[1]), (theirs[0], theirs[1]), MASK)

    assert loss.item() == pytest.approx((errors.mean() / scale).item(), rel=1e-5)


def test_attention_scores_of_other_head_counts_are_averaged() -> None:
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 1, 4, 3), torch.randn(2, 1, 4, 3)
    twice = (queries.expand(2, 2, 4, 3), keys.expand(2, 2, 4, 3))

    assert attention_scores((queries, keys), twice, MASK).item() == pytest.approx(0, abs=1e-10)


def test_token_relations_are_the_kl_of_the_softmax_of_real_tokens_products() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 6), torch.randn(2, 4, 10)
    total = 0.0
    for sample, length in enumerate((3, 2)):
        for head in range(2):
            s = ours[sample, :length, 3 * head : 3 * head + 3]
            t = theirs[sample, :length, 5 * head : 5 * head + 5]
            p, q = F.softmax(t @ t.T / 5**0.5, 1), F.softmax(s @ s.T / 3**0.5, 1)
            total += float((p * (p / q).log()).sum())

    assert token_relations(ours, theirs, MASK, heads=2).item() == pytest.approx(total / (2 * 5), rel=1e-4)


def test_padding_changes_no_loss_between_tokens() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    moved = ours + 100 * (1 - MASK)[:, :, None]

    def heads(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        split = vectors.reshape(2, 4, 2, 3).transpose(1, 2)
        return split, split

    assert token_relations(moved, theirs, MASK, 2) == token_relations(ours, theirs, MASK, 2)
    assert attention_scores(heads(moved), heads(theirs), MASK) == attention_scores(heads(ours), heads(theirs), MASK)
