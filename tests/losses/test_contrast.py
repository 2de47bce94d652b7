from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from engine.build import build_choice
from losses.contrast import FeatureBank, info_nce
from losses.entropy import normalised_entropy
from losses.high_entropy import ContrastMemory, HighEntropyContrast, high_entropy_contrast
from losses.inputs import DomainOutputs, TrainingProgress
from losses.registry import CONTRASTS
from losses.released import PixContrast, pix_contrast
from utils.labels import IGNORE

DIM = 6


def scene(seed=0, spread=0.3, classes=2, size=(2, 9, 11)):
    """Features around one direction per class, entropy and label; some pixels are ignored."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, size, generator=rng)
    noise = torch.randn(2, *size, DIM, generator=rng, dtype=torch.float64)
    trainee, ema = (torch.eye(DIM, dtype=torch.float64)[label] + spread * noise).movedim(-1, 2)
    logits = 2 * torch.randn(size[0], 2, *size[1:], generator=rng, dtype=torch.float64)
    label = label.masked_fill(torch.rand(size, generator=rng) < 0.2, IGNORE)
    return trainee, ema, normalised_entropy(logits.softmax(1)), label


def fresh_memory(classes=2, capacity=64):
    return ContrastMemory(classes, DIM, capacity).double()


def contrast(trainee, ema, entropy, label, *, memory=None, progress=0.0, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    memory = fresh_memory() if memory is None else memory
    return high_entropy_contrast(trainee, ema, entropy, label, memory, progress, generator=generator, **options)


# InfoNCE


def test_info_nce_known_answer():
    anchors = torch.tensor([[1, 0.2, 0], [0, 1, 0.3]], dtype=torch.float64)
    teacher = torch.tensor([[0.9, 0.1, 0.1], [0.1, 1, 0.1]], dtype=torch.float64)
    negatives = teacher.flip(0)[:, None].expand(2, 50, 3)
    value = info_nce(anchors, teacher, negatives, 0.5).item()

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    attract = np.exp(cosine(anchors.numpy(), teacher.numpy()) / 0.5)
    repel = 50 * np.exp(cosine(anchors.numpy(), teacher.flip(0).numpy()) / 0.5)
    assert value == pytest.approx(-np.log(attract / (attract + repel)).mean(), abs=1e-12)
    # The published code gives this value; it leaves float64 arithmetic at the eighth digit after the point.
    assert value == pytest.approx(2.4628081652, abs=1e-7)


def test_info_nce_is_blind_to_length_and_counts_only_valid_anchors():
    rng = torch.Generator().manual_seed(0)
    anchors, positives, negatives = (torch.randn(s, generator=rng).double() for s in ((5, 4), (4,), (5, 3, 4)))
    value = info_nce(anchors, positives, negatives, 0.5)
    torch.testing.assert_close(info_nce(7 * anchors, 0.1 * positives, 3 * negatives, 0.5), value)
    torch.testing.assert_close(info_nce(anchors, positives.expand(5, 4), negatives, 0.5), value)
    valid = torch.tensor([True, False, True, False, False])
    part = info_nce(anchors[valid], positives, negatives[valid], 0.5)
    torch.testing.assert_close(info_nce(anchors, positives, negatives, 0.5, valid), part)


@pytest.mark.parametrize("count", [0, 3])
def test_info_nce_without_anchors_is_a_connected_zero(count):
    anchors = torch.randn(count, 4, requires_grad=True)
    valid = torch.zeros(count, dtype=torch.bool) if count else None
    value = info_nce(anchors, torch.ones(4), torch.randn(count, 2, 4), 0.5, valid)
    value.backward()
    assert value.item() == 0 and not anchors.grad.any()


def test_info_nce_gradient():
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (3, 4), (3, 2, 4))]
    assert torch.autograd.gradcheck(lambda a, p, n: info_nce(a, p, n, 0.5), inputs)


# Memory


@given(seed=st.integers(0, 2**31), capacity=st.integers(1, 40), classes=st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_bank_is_a_bounded_queue_and_prototypes_are_running_means(seed, capacity, classes):
    memory = fresh_memory(classes, capacity)
    queues = [deque(maxlen=capacity) for _ in range(classes)]
    means = [None] * classes
    for step in range(4):
        _, ema, entropy, label = scene(seed + step, classes=classes, size=(1, 4, 5))
        low = entropy < 0.6
        memory.update(ema, label, low)
        rows, flags = F.normalize(ema, dim=1).movedim(1, -1), (label, low)
        for c in range(classes):
            chosen = rows[(flags[0] == c) & flags[1]]
            queues[c].extend(chosen)
            if len(chosen):
                means[c] = chosen.mean(0) if means[c] is None else 0.99 * means[c] + 0.01 * chosen.mean(0)
    assert memory.stored.tolist() == [len(q) for q in queues]
    assert memory.has_prototype.tolist() == [m is not None for m in means]
    for c, queue in enumerate(queues):
        if queue:
            start = int(memory.pushed[c]) % capacity if len(queue) == capacity else 0
            in_order = memory.bank[c, : len(queue)].roll(-start, 0)
            torch.testing.assert_close(in_order, torch.stack(list(queue)), rtol=0, atol=0)
        if means[c] is not None:
            torch.testing.assert_close(memory.prototypes[c], means[c])


def test_memory_ignores_ignored_and_unreliable_pixels():
    _, ema, _, label = scene()
    low = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    first, second = fresh_memory(), fresh_memory()
    first.update(ema, label, low)
    other = ema.clone().movedim(1, -1)
    other[(label == IGNORE) | ~low] = -9.0
    second.update(other.movedim(-1, 1), label, low)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_memory_travels_in_a_state_dict_and_has_nothing_to_train():
    memory = fresh_memory()
    _, ema, entropy, label = scene()
    memory.update(ema, label, entropy < 0.5)
    copy = fresh_memory()
    copy.load_state_dict(memory.state_dict())
    assert set(memory.state_dict()) == {"prototypes", "has_prototype", "bank", "pushed"}
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), copy.buffers(), strict=True))
    assert not list(memory.parameters())
    assert copy.float().prototypes.dtype == torch.float32 and copy.pushed.dtype == torch.int64


def test_negatives_come_uniformly_from_the_filled_slots_of_other_classes():
    memory = ContrastMemory(4, 2, capacity=8)
    memory.pushed.copy_(torch.tensor([3, 8, 0, 13]))
    memory.bank.copy_(torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij"), -1))
    drawn = memory.sample_negatives(1, 300, 40, torch.Generator().manual_seed(0)).reshape(-1, 2)
    slots, count = drawn.unique(dim=0, return_counts=True)
    assert slots.tolist() == [[0, s] for s in range(3)] + [[3, s] for s in range(8)]
    assert (count - 12000 / 11).abs().max() < 150
    again = memory.sample_negatives(1, 300, 40, torch.Generator().manual_seed(0)).reshape(-1, 2)
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("cls", [0, 1])
def test_negatives_are_zeros_when_no_other_class_has_any(cls):
    memory = fresh_memory()
    memory.update(torch.ones(1, DIM, 2, 2), torch.full((1, 2, 2), cls), torch.ones(1, 2, 2, dtype=torch.bool))
    assert not memory.sample_negatives(cls, 5, 3, torch.Generator()).any()


# High-entropy contrast


@pytest.mark.parametrize(("progress", "damping"), [(0.0, 1.0), (0.0, 0.4), (0.5, 1.0), (1.0, 1.0)])
def test_value_and_memory_against_a_plain_computation(progress, damping):
    """With one stored negative per class nothing is left to chance but the order of the anchors."""
    trainee, ema, entropy, label = scene()
    entropy = torch.where(label == 1, damping * entropy, entropy)  # below 1: no anchor of class 1
    memory = fresh_memory(capacity=1)
    loss, stats = contrast(trainee, ema, entropy, label, memory=memory, progress=progress, negatives=5)

    h, y = entropy.numpy(), label.numpy()
    valid = y != IGNORE
    alpha = 20 * (1 - progress)
    low = valid & (h <= np.percentile(h[valid], alpha))
    high = valid & (h >= np.percentile(h[valid], 100 - alpha))
    rows, teacher = (F.normalize(f, dim=1).movedim(1, -1).numpy() for f in (trainee, ema))
    terms, anchors = [], 0
    for c in (0, 1):
        reliable, rival = teacher[low & (y == c)], teacher[low & (y == 1 - c)]
        chosen = rows[high & (y == c)]
        if len(chosen) and len(reliable) and len(rival):
            prototype = reliable.mean(0) / np.linalg.norm(reliable.mean(0))
            attract, repel = np.exp(chosen @ prototype / 0.5), 5 * np.exp(chosen @ rival[-1] / 0.5)
            terms.append(-np.log(attract / (attract + repel)).mean())
            anchors += len(chosen)
    assert len(terms) == {1.0: 2, 0.4: 1}[damping] * (progress < 1)
    assert loss.item() == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-12)
    assert stats["anchors"] == anchors and stats["classes"] == len(terms)
    assert memory.pushed.tolist() == [(low & (y == c)).sum() for c in (0, 1)]


def test_at_the_end_the_memory_is_used_but_only_extremes_take_part():
    memory = fresh_memory()
    contrast(*scene(0), memory=memory)
    loss, stats = contrast(*scene(1), memory=memory, progress=1.0)
    assert stats["anchors"] == 1 and stats["classes"] == 1 and loss > 0


@pytest.mark.parametrize("anchors_per_class", [256, 4])
def test_only_high_entropy_labelled_pixels_get_gradient(anchors_per_class):
    trainee, ema, entropy, label = scene()
    trainee.requires_grad_()
    ema.requires_grad_()
    loss, stats = contrast(trainee, ema, entropy, label, anchors_per_class=anchors_per_class)
    loss.backward()
    touched = trainee.grad.abs().sum(1) > 0
    valid = label != IGNORE
    high = valid & (entropy >= torch.quantile(entropy[valid], 0.8))
    assert ema.grad is None
    if anchors_per_class == 256:
        assert torch.equal(touched, high)
    else:
        assert not (touched & ~high).any()
        assert [(touched & (label == c)).sum().item() for c in (0, 1)] == [4, 4]
    assert stats["anchors"] == touched.sum()


def test_ignored_pixels_never_enter():
    trainee, ema, entropy, label = scene()
    ignored = label == IGNORE
    results = []
    for fill in (0.0, 1e30, -5.0):
        features = [f.movedim(1, -1).clone() for f in (trainee, ema)]
        for f in features:
            f[ignored] = fill
        h = entropy.masked_fill(ignored, fill)
        anchor = features[0].movedim(-1, 1).requires_grad_()
        memory = fresh_memory()
        loss, _ = contrast(anchor, features[1].movedim(-1, 1), h, label, memory=memory)
        loss.backward()
        results.append((loss.detach(), anchor.grad, *memory.buffers()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_length_of_features_and_common_shift_of_scores_do_not_matter():
    trainee, ema, _, label = scene()
    logits = 2 * torch.randn(2, 2, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    loss, _ = contrast(trainee, ema, normalised_entropy(logits.softmax(1)), label)
    scaled, _ = contrast(3 * trainee, 0.2 * ema, normalised_entropy(logits.softmax(1)), label)
    shifted, _ = contrast(trainee, ema, normalised_entropy((logits + 5).softmax(1)), label)
    torch.testing.assert_close(scaled, loss)
    torch.testing.assert_close(shifted, loss)


def test_tighter_clusters_cost_less():
    losses = [contrast(*scene(spread=s))[0].item() for s in (0.05, 0.3, 1.0)]
    assert losses == sorted(losses) and losses[0] < losses[-1]


def test_deterministic_given_the_generator():
    first, second, other = (contrast(*scene(), seed=s, anchors_per_class=5)[0] for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def assert_connected_zero(trainee, loss, stats):
    loss.backward()
    assert loss.item() == 0 and stats["anchors"] == 0 and stats["classes"] == 0
    assert torch.equal(trainee.grad, torch.zeros_like(trainee))


@pytest.mark.parametrize("label_value", [0, 1, IGNORE])
def test_one_class_or_none_gives_a_connected_zero(label_value):
    trainee, ema, entropy, label = scene()
    trainee.requires_grad_()
    loss, stats = contrast(trainee, ema, entropy, torch.full_like(label, label_value))
    assert_connected_zero(trainee, loss, stats)
    assert stats["prototypes"] == (label_value != IGNORE)


def test_an_empty_rival_bank_gives_a_connected_zero():
    memory = fresh_memory()
    memory.prototypes.copy_(torch.eye(2, DIM))
    memory.has_prototype.fill_(True)
    trainee, ema, entropy, label = scene()
    trainee.requires_grad_()
    loss, stats = contrast(trainee, ema, entropy, torch.zeros_like(label), memory=memory)
    assert_connected_zero(trainee, loss, stats)


def test_a_class_without_a_prototype_takes_no_part():
    memory = fresh_memory(3)
    trainee, ema, entropy, label = scene(1, classes=3)
    _, stats = contrast(trainee, ema, torch.where(label == 2, 1.0, entropy), label, memory=memory)
    assert stats["prototypes"] == 2 and stats["classes"] == 0 and stats["anchors"] == 0  # class 2 alone is uncertain
    assert stats["bank"] == 0
    _, stats = contrast(trainee, ema, entropy, label, memory=memory)
    assert stats["prototypes"] == 3 and stats["classes"] == 3


def test_stats_are_detached_scalars_and_dtype_follows_the_memory():
    trainee, ema, entropy, label = scene()
    memory = ContrastMemory(2, DIM, 64)
    loss, stats = contrast(trainee.requires_grad_(), ema, entropy, label, memory=memory)
    assert loss.dtype == torch.float32 and set(stats) == {"anchors", "classes", "prototypes", "bank"}
    assert all(v.shape == () and v.is_floating_point() and not v.requires_grad for v in stats.values())


def test_errors():
    trainee, ema, entropy, label = scene()
    with pytest.raises(ValueError, match="progress"):
        contrast(trainee, ema, entropy, label, progress=1.2)
    with pytest.raises(ValueError, match="expected two features"):
        contrast(trainee, ema, entropy, label.movedim(1, 2))


# The released contrast


@pytest.mark.parametrize(
    ("epoch", "value"),
    [(0, 0.2385491746), (4, 0.2385491746), (5, 0.9541489908), (12, 0.2584228886), (24, 0.0099394454)],
)
def test_pix_known_answers(known, epoch, value):
    assert pix_contrast(known.z1, known.y, epoch, 25).item() == pytest.approx(value, abs=5e-11)


def released_pix(logits, label, epoch, epochs):
    """The term with both of its parts, as the method's description gives it."""
    m, z = label.numpy()[:, None].astype(float), logits.numpy()

    def mean_cosine(a, b):
        norms = np.linalg.norm(np.broadcast_to(a, b.shape), axis=1) * np.linalg.norm(b, axis=1)
        return ((a * b).sum(1) / np.maximum(norms, 1e-8)).mean()

    u, v = mean_cosine(m, z * (1 - m)), mean_cosine(m, z * m)
    total = 1.5 * u + 0.8 * v if u > v + 0.2 else u + 0.5 * v
    q = epoch / epochs
    return total if epoch < 5 else total * (1 - q) / (q + 1e-5)


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 24), offset=st.sampled_from([-4.0, -0.7, 0.0, 3.0]))
@settings(max_examples=40, deadline=None)
def test_pix_equals_the_full_formula(seed, epoch, offset):
    rng = torch.Generator().manual_seed(seed)
    logits = offset + torch.randn(2, 2, 4, 5, generator=rng, dtype=torch.float64)
    label = torch.randint(2, (2, 4, 5), generator=rng)
    expected = released_pix(logits, label, epoch, 25)
    assert pix_contrast(logits, label, epoch, 25).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_pix_defects_are_reproduced(known):
    value = pix_contrast(known.z1, known.y, 0, 25)
    shifted = pix_contrast(known.z1 + 3, known.y, 0, 25)
    assert shifted.item() == pytest.approx(0.2487, abs=5e-5)  # although no prediction changed
    off_cloud = torch.where((known.y == 1)[:, None], known.z1, -7.0)
    assert torch.equal(pix_contrast(off_cloud, known.y, 0, 25), value)  # there is no negative pair


@pytest.mark.parametrize("fill", [5.0, 1e100])
def test_pix_ignored_pixels_change_neither_value_nor_gradient(known, fill):
    label = known.y.clone()
    label[:, ::2] = IGNORE
    results = []
    for value in (0.0, fill):
        logits = known.z1.clone()
        logits[:, :, ::2] = value
        logits.requires_grad_()
        loss = pix_contrast(logits, label, 0, 25)
        loss.backward()
        results.append((loss.detach(), logits.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.testing.assert_close(results[0][0], pix_contrast(known.z1[:, :, 1::2], known.y[:, 1::2], 0, 25))


def test_pix_without_labelled_pixels_is_a_connected_zero(known):
    logits = known.z1.clone().requires_grad_()
    loss = pix_contrast(logits, torch.full_like(known.y, IGNORE), 7, 25)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_pix_needs_two_classes():
    with pytest.raises(ValueError, match="2 classes"):
        pix_contrast(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), 0, 25)


# Modules


def outputs(seed=0, dtype=torch.float32, logit_scale=2.0):
    """A side with both heads; its grid is a third of its image."""
    rng = torch.Generator().manual_seed(seed)

    def maps(channels, size=(6, 5)):
        return torch.randn(2, channels, *size, generator=rng, dtype=dtype)

    label = torch.randint(2, (2, 18, 15), generator=rng)
    return DomainOutputs(
        logits={head: logit_scale * maps(2, (18, 15)) for head in ("main", "aux")},
        valid=torch.ones(2, 18, 15, dtype=torch.bool),
        label={head: label.clone() for head in ("main", "aux")},
        features=maps(8).requires_grad_(),
        projected=maps(DIM).requires_grad_(),
        scores=maps(2).requires_grad_(),
        ema_projected=maps(DIM),
        ema_scores=logit_scale * maps(2),
    )


def at(progress=0.0, seed=7):
    return TrainingProgress(step=int(progress * 100), steps=100, epoch_steps=10, seed=seed)


def inputs(one):
    return [t for t in (one.features, one.projected, one.scores) if t is not None]


def test_bank_sample_is_uniform_over_the_stored_features_of_the_class():
    bank = FeatureBank(2, 1, capacity=4)
    bank.push(torch.arange(6.0)[:, None], torch.tensor([[True] * 6, [False] * 6]))
    values, count = bank.sample(0, (100, 40), torch.Generator().manual_seed(0)).unique(return_counts=True)
    assert values.tolist() == [2, 3, 4, 5] and (count - 1000).abs().max() < 120
    assert not bank.sample(1, (3, 2), torch.Generator()).any()


def test_hec_module_is_the_function_on_the_grid():
    one, module = outputs(), HighEntropyContrast(2, 8, DIM)
    loss, stats = module(one, outputs(1), at(0.3))
    entropy = normalised_entropy(one.ema_scores.softmax(1))
    expected, _ = high_entropy_contrast(
        one.projected,
        one.ema_projected,
        entropy,
        one.grid_label(),
        ContrastMemory(2, DIM),
        0.3,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal(loss, expected) and loss > 0 and stats["classes"] == 2
    assert {name.split(".")[0] for name in module.state_dict()} == {"memory"}


def test_pix_module_sums_the_heads():
    one = outputs()
    loss, stats = PixContrast(2, 8, DIM)(one, outputs(1), at(0.6))
    expected = sum(pix_contrast(one.logits[h], one.label[h], 6, 10) for h in ("main", "aux"))
    torch.testing.assert_close(loss, expected)
    assert stats == {}


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_contrast_is_deterministic_resumes_and_has_only_buffers(name):
    first, second = (build_choice(CONTRASTS, name, {}, 2, 8, DIM) for _ in range(2))
    assert not list(first.parameters())
    first(outputs(1), outputs(2), at())
    second.load_state_dict(first.state_dict())
    (loss, stats), (again, _) = (module(outputs(3), outputs(4), at(0.2)) for module in (first, second))
    assert torch.equal(loss, again) and loss.isfinite()
    assert all(v.shape == () and not v.requires_grad for v in stats.values())
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_contrast_without_valid_pixels_is_a_connected_zero(name):
    domains = [outputs(1), outputs(2)]
    for one in domains:
        one.valid.fill_(False)
        for tensor in one.label.values():
            tensor.fill_(IGNORE)
        for z in one.logits.values():
            z.requires_grad_()
    loss, _ = build_choice(CONTRASTS, name, {}, 2, 8, DIM)(*domains, at())
    loss.backward()
    assert loss.item() == 0
    tensors = [t for one in domains for t in (*inputs(one), *one.logits.values())]
    grads = [t.grad for t in tensors if t.grad is not None]
    assert grads and not any(g.any() for g in grads)


@pytest.mark.parametrize("name", ["hec", "u2pl", "sdca"])
@pytest.mark.parametrize("ignored", [True, False])
def test_every_contrast_survives_a_huge_feature(name, ignored):
    domains = [outputs(1), outputs(2)]
    for one in domains:
        for tensor in (*inputs(one), one.ema_projected):
            tensor.data[:, :, 0, 0] = 1e30
        if ignored:
            one.label["main"][:, :2, :2] = IGNORE
    loss, _ = build_choice(CONTRASTS, name, {}, 2, 8, DIM)(*domains, at())
    loss.backward()
    grads = [t.grad for one in domains for t in inputs(one) if t.grad is not None]
    assert loss.isfinite() and grads and all(g.isfinite().all() for g in grads)
    if ignored:
        assert not any(g[:, :, 0, 0].any() for g in grads)


def test_an_unknown_option_raises():
    with pytest.raises(TypeError, match="momentum"):
        PixContrast(2, 8, DIM, momentum=0.9)
