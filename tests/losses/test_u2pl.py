from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from losses.inputs import DomainOutputs, TrainingProgress
from losses.segmentation import cross_entropy
from losses.u2pl import UncertainContrast, entropy_drop
from utils.labels import IGNORE


def at(progress=0.0, seed=0):
    return TrainingProgress(step=int(100 * progress), steps=100, epoch_steps=10, seed=seed)


def outputs(label, scores, ema, trainee=None):
    """One image of one row, its grid as large as itself; rows of features and scores."""
    label = torch.tensor(label)[None, None]
    maps = [
        torch.tensor(t, dtype=torch.float64).T[None, :, None]
        for t in (scores, ema, ema if trainee is None else trainee)
    ]
    return DomainOutputs(
        logits={},
        valid=torch.ones_like(label, dtype=torch.bool),
        label={"main": label},
        features=torch.zeros(1, 1, 1, label.shape[-1]),
        projected=maps[2].clone().requires_grad_(),
        ema_projected=maps[1],
        ema_scores=maps[0],
    )


def random_side(seed, classes=2, size=(2, 8, 9), dim=5):
    rng = torch.Generator().manual_seed(seed)
    maps = [torch.randn(size[0], c, *size[1:], generator=rng, dtype=torch.float64) for c in (dim, dim, classes)]
    label = torch.randint(classes, size, generator=rng)
    label = label.masked_fill(torch.rand(size, generator=rng) < 0.2, IGNORE)
    valid = torch.rand(size, generator=rng) < 0.9
    return DomainOutputs(
        {},
        valid,
        {"main": label},
        features=maps[0],
        projected=maps[0].requires_grad_(),
        ema_projected=maps[1],
        ema_scores=2 * maps[2],
    )


def module(dim=3, classes=2, **options):
    return UncertainContrast(classes, 1, dim, **options).double()


# Cross-entropy


def unsupervised_loss(logits, label, teacher_logits, percent):
    """Mean cross-entropy over the pixels kept, times all pixels over those kept: what the rule `entropy_drop` costs."""
    kept = entropy_drop(label, teacher_logits, percent)
    return cross_entropy(logits, kept) * kept.numel() / (kept != IGNORE).sum().clamp(min=1)


@pytest.mark.parametrize(("percent", "value"), [(80, 0.9787867609), (100, 0.7915660125)])
def test_known_answers(known, percent, value):
    assert unsupervised_loss(known.z1, known.y, known.z2, percent).item() == pytest.approx(value, abs=5e-11)


@pytest.mark.parametrize("percent", [0.0, 30.0, 80.0, 100.0])
def test_the_most_uncertain_known_pixels_are_dropped(known, percent):
    label = known.y.clone()
    label[:, :3] = IGNORE
    kept = entropy_drop(label, known.z2, percent)
    prob = known.z2.softmax(1).numpy()
    entropy = -(prob * np.log(prob)).sum(1)
    known_pixels = label.numpy() != IGNORE
    expected = known_pixels & (entropy < np.percentile(entropy[known_pixels], percent))
    assert ((kept != IGNORE).numpy() == expected).all()
    assert (kept[kept != IGNORE] == label[kept != IGNORE]).all()


def test_ignored_pixels_neither_count_nor_move_the_percentile(known):
    label = known.y.clone()
    label[:, ::2] = IGNORE
    results = []
    for fill in (0.0, 60.0):
        z1, z2 = known.z1.clone(), known.z2.clone()
        z1[:, :, ::2], z2[:, 0, ::2] = fill, fill
        results.append(unsupervised_loss(z1.requires_grad_(), label, z2, 80))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_known_gives_a_connected_zero(dtype):
    logits = torch.randn(1, 2, 4, 4, dtype=dtype, requires_grad=True)
    loss = unsupervised_loss(logits, torch.full((1, 4, 4), IGNORE), logits.detach(), 80)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# Contrast


def test_info_nce_known_answer_through_the_module():
    teacher, trainee = [[0.9, 0.1, 0.1], [0.1, 1, 0.1]], [[1, 0.2, 0], [0, 1, 0.3]]
    confident, uncertain = [[9.0, 0.0], [0.0, 9.0]], [[0.1, 0.0], [0.0, 0.1]]
    contrast = module()
    loss, stats = contrast(
        outputs([0, 1], confident, teacher, trainee), outputs([IGNORE] * 2, uncertain, teacher), at()
    )
    assert loss.item() == pytest.approx(2.4628081652, abs=1e-7)
    assert stats["anchors"] == 2 and stats["classes"] == 2 and stats["bank"] == 1
    torch.testing.assert_close(contrast.bank.bank[:, 0], F.normalize(torch.tensor(teacher).double(), dim=1).flip(0))


def test_negatives_are_uncertain_pixels_of_other_classes_and_labelled_mistakes():
    """Two domains of ten pixels; the feature of a pixel tells its place."""
    angle = torch.linspace(0, 3, 20)
    ema = torch.stack([angle.cos(), angle.sin(), torch.zeros(20)], 1).tolist()
    label = [0, 1] * 5
    scores = [[4.0, 0.0] if c == 0 else [0.0, 4.0] for c in label]
    labelled_scores = [*scores]
    labelled_scores[3] = [3.0, 0.0]  # labelled 1, taken for 0: a negative of 0
    unlabelled_scores = [*scores]
    unlabelled_scores[6] = [0.2, 0.0]  # uncertain, more likely 0: a negative of 1
    unlabelled_scores[7] = [0.0, 0.1]  # uncertain, more likely 1: a negative of 0; its pseudo-label is dropped
    pseudo = [*label]
    pseudo[7] = IGNORE
    contrast = module()
    loss, stats = contrast(
        outputs(label, labelled_scores, ema[:10]), outputs(pseudo, unlabelled_scores, ema[10:]), at()
    )
    assert contrast.bank.pushed.tolist() == [2, 1]
    expected = F.normalize(torch.tensor(ema).double(), dim=1)
    torch.testing.assert_close(contrast.bank.bank[0, :2], expected[[3, 17]])
    torch.testing.assert_close(contrast.bank.bank[1, :1], expected[[16]])
    assert loss > 0 and stats["classes"] == 2


@pytest.mark.parametrize("kind", ["mistake", "uncertain"])
def test_the_term_has_a_gradient_where_the_teacher_is_wrong_but_uncertain(kind):
    """With two classes the reference's term is zero here."""
    label = [0] * 10 + [1] * 10
    confident = [[5.0, 0.0]] * 10 + [[0.0, 5.0]] * 10
    doubtful = confident[:15] + [[0.3, 0.0]] * 5
    ema = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).tolist()
    first = outputs(label, doubtful if kind == "mistake" else confident, ema)
    second = outputs(label, doubtful if kind == "uncertain" else confident, ema)
    if kind == "mistake":
        second = replace(second, valid=torch.zeros_like(second.valid))
    loss, _ = module()(first, second, at())
    loss.backward()
    assert loss > 0 and first.projected.grad.any()


@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_value_against_a_plain_computation(progress, classes):
    """With one stored negative per class nothing is left to chance but the order of the anchors."""
    domains = [random_side(s, classes) for s in (1, 2)]
    contrast = module(5, classes, capacity=1)
    loss, stats = contrast(*domains, at(progress))
    rows = lambda t: t.detach().movedim(1, -1).reshape(-1, t.shape[1]).numpy()  # noqa: E731
    anchors, reliable, negatives = ([[] for _ in range(classes)] for _ in range(3))
    alpha = 20 * (1 - progress)
    for s in domains:
        y, valid = s.label["main"].flatten().numpy(), s.valid.flatten().numpy()
        prob, ema, trainee = (
            rows(s.ema_scores.softmax(1)),
            rows(F.normalize(s.ema_projected)),
            rows(F.normalize(s.projected)),
        )
        h = -(prob * np.log(prob)).sum(1)
        low, high = (np.percentile(h[valid], q) for q in (alpha if s is domains[1] else 100, 100 - alpha))
        for p in np.flatnonzero(valid):
            best = prob[p].argmax()
            for c in range(classes):
                if y[p] == c and h[p] <= low:
                    reliable[c].append(ema[p])
                    if prob[p, c] > 0.3:
                        anchors[c].append(trainee[p])
                if (s is domains[0] and y[p] not in (c, IGNORE) and best == c) or (
                    s is domains[1] and h[p] >= high and best != c
                ):
                    negatives[c].append(ema[p])
    terms = []
    for c in range(classes):
        if anchors[c] and negatives[c]:
            positive = np.mean(reliable[c], 0)
            attract = np.exp(np.array(anchors[c]) @ positive / np.linalg.norm(positive) / 0.5)
            repel = 50 * np.exp(np.array(anchors[c]) @ negatives[c][-1] / 0.5)
            terms.append(-np.log(attract / (attract + repel)).mean())
    assert contrast.bank.pushed.tolist() == [len(n) for n in negatives]
    assert stats["anchors"] == sum(map(len, anchors)) and stats["classes"] == len(terms) > 0
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-12)


def test_only_reliable_pixels_get_gradient_and_the_teacher_none():
    domains = [random_side(s) for s in (1, 2)]
    for s in domains:
        s.ema_projected.requires_grad_()
        s.ema_scores.requires_grad_()
    loss, stats = module(5)(*[replace(s, ema_projected=s.ema_projected.detach()) for s in domains], at(0.3))
    loss.backward()
    touched = sum((s.projected.grad.abs().sum(1) > 0).sum() for s in domains)
    assert touched == stats["anchors"] > 0
    assert all(s.ema_scores.grad is None for s in domains)
    assert not any(s.projected.grad.movedim(1, -1)[~s.valid | (s.label["main"] == IGNORE)].any() for s in domains)


def test_an_empty_bank_gives_a_connected_zero():
    label, confident = [0] * 6, [[5.0, 0.0]] * 6
    ema = torch.randn(6, 3).tolist()
    first, second = outputs(label, confident, ema), outputs([IGNORE] * 6, confident, ema)
    contrast = module()
    loss, stats = contrast(first, second, at())
    loss.backward()
    assert contrast.bank.pushed.tolist() == [0, 6]  # nothing is a negative of the class that all are
    assert loss.item() == 0 and stats["classes"] == 0 and not first.projected.grad.any()


def test_the_seed_of_the_moment_decides():
    domains = [random_side(s) for s in (1, 2)]
    values = [module(5, anchors_per_class=3)(*domains, at(seed=s))[0] for s in (1, 1, 2)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


def test_percent_below_100_costs_as_the_mean_over_the_kept(known):
    kept = entropy_drop(known.y, known.z2, 60)
    expected = cross_entropy(known.z1, kept) * kept.numel() / (kept != IGNORE).sum()
    torch.testing.assert_close(unsupervised_loss(known.z1, known.y, known.z2, 60), expected)
