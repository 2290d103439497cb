"""Distillation losses: functions from tensors to a scalar tensor, each with its source."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of logits (N, K) softened by T, averaged over the batch.

    T^2 keeps the gradient's size independent of T (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2).
    """
    kl = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    return temperature**2 * kl


def decoupled_kd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Return alpha * target-class KD + beta * non-target-class KD of logits (N, K), times T^2.

    The classical loss ties the second term's weight to the teacher's confidence; this one frees it (Zhao, Cui, Song,
    Qiu, Liang 2022, arXiv 2203.08679, equation 7; alpha = 1 and beta = 8 are its CIFAR values).
    """
    mask = F.one_hot(labels, student.shape[1]).bool()
    log_s, log_t = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    target = F.kl_div(_binary(log_s, mask), _binary(log_t, mask), log_target=True, reduction="batchmean")
    # Removing the target's logit renormalises the softmax over the other classes.
    others = F.kl_div(
        F.log_softmax((student / temperature).masked_fill(mask, -1e4), 1),
        F.log_softmax((teacher / temperature).masked_fill(mask, -1e4), 1),
        log_target=True,
        reduction="batchmean",
    )
    return temperature**2 * (alpha * target + beta * others)


def _binary(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Return log [p(target), p(any other)], shape (N, 2), from log-probabilities (N, K)."""
    target = log_probs[mask][:, None]
    rest = log_probs.masked_fill(mask, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([target, rest], 1)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of features of equal shape; the student's are already projected.

    FitNets (Romero et al. 2015, arXiv 1412.6550, equation 3). Features are scaled by the teacher's RMS so that one
    weight serves layers of different magnitude.
    """
    scale = teacher.square().mean().sqrt().clamp_min(1e-6)
    return F.mse_loss(student / scale, teacher / scale)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of spatial attention maps of features (N, C, H, W); channel counts may differ.

    A map is the mean over channels of squared activations, flattened and L2-normalised (Zagoruyko, Komodakis 2017,
    arXiv 1612.03928, equation 2 with p = 2).
    """
    return (_attention(student) - _attention(teacher)).square().sum(1).mean()


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of the batch's pairwise similarities; features (N, ...) of any shape.

    Similarity-preserving distillation (Tung, Mori 2019, arXiv 1907.09682, equation 4): row-normalised Gram matrices
    (N, N), squared Frobenius distance over N^2. Multiplied by N here, so that the value does not shrink with N.
    """
    return (_similarity(student) - _similarity(teacher)).square().sum() / student.shape[0]


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def attention_scores(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Return the distance of attention scores: queries and keys (N, heads, T, width) of both sides, mask (N, T).

    TinyBERT (Jiao et al. 2020, arXiv 1909.10351): mean squared error of the scores before the softmax, over pairs of
    real tokens. Where the head counts differ, the mean over the heads is compared. Scaled as `hint` is.
    """
    ours, theirs = _scores(*student), _scores(*teacher)
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    pairs = (mask[:, None, :, None] * mask[:, None, None, :]).bool().expand_as(theirs)
    return hint(ours[pairs], theirs[pairs])


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])


def token_relations(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Return KL(teacher || student) of the relations between tokens, vectors (N, T, channels), mask (N, T) int64.

    MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): queries, keys or values are split into `heads` relation heads, and
    the softmax of the scaled dot products of all pairs is compared, averaged over heads and real tokens. The channel
    counts may differ; `heads` divides both.
    """
    ours, theirs = _log_relations(student, mask, heads), _log_relations(teacher, mask, heads)
    kl = (theirs.exp() * (theirs - ours)).sum(3)  # (N, heads, T)
    real = mask[:, None].to(kl.dtype)
    return (kl * real).sum() / (heads * real.sum())


def _log_relations(vectors: Tensor, mask: Tensor, heads: int) -> Tensor:
    parts = vectors.reshape(*vectors.shape[:2], heads, -1).transpose(1, 2)
    scores = parts @ parts.transpose(2, 3) / math.sqrt(parts.shape[3])
    # Finite, so that the masked differences are zero and not NaN.
    return F.log_softmax(scores.masked_fill(mask[:, None, None] == 0, -1e4), 3)
