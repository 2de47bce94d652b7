import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.inputs import DomainOutputs, TrainingProgress
from losses.semantic import ClassStatistics, SemanticContrast, semantic_contrast
from utils.labels import IGNORE

CLOCK = TrainingProgress(0, 10, 5, 0)


def deterministic():
    k, d = torch.meshgrid(torch.arange(30.0).double(), torch.arange(6.0).double(), indexing="ij")
    label = torch.arange(30) // 4 % 2
    label[::7] = IGNORE
    return torch.cos(0.3 * k + 0.7 * d), label


def filled(features, label, classes=2):
    statistics = ClassStatistics(classes, features.shape[1])
    statistics.update(features, label)
    return statistics


def test_known_answer():
    features, label = deterministic()
    statistics = ClassStatistics(2, 6)
    statistics.update(features[:15], label[:15])
    statistics.update(features[15:], label[15:])
    assert statistics.mean.sum().item() == pytest.approx(-1.0984790641, abs=5e-11)
    assert statistics.variance.sum().item() == pytest.approx(5.6338577757, abs=5e-11)
    assert statistics.count.tolist() == [15, 10]
    assert semantic_contrast(features, label, statistics, 100.0).item() == pytest.approx(0.6930867683, abs=5e-11)


@given(seed=st.integers(0, 2**31), cuts=st.lists(st.integers(0, 60), max_size=4), offset=st.sampled_from([0.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_the_stream_gives_mean_and_population_variance_of_all(seed, cuts, offset):
    rng = torch.Generator().manual_seed(seed)
    features = offset + torch.randn(60, 3, generator=rng, dtype=torch.float64)
    label = torch.randint(3, (60,), generator=rng)
    label[label == 2] = IGNORE
    statistics = ClassStatistics(3, 3)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        statistics.update(features[begin:end], label[begin:end])
    for cls in (0, 1):
        mine = features[label == cls]
        torch.testing.assert_close(statistics.mean[cls], mine.mean(0))
        torch.testing.assert_close(statistics.variance[cls], mine.var(0, unbiased=False), rtol=1e-7, atol=1e-9)
    assert statistics.count.tolist() == [(label == c).sum() for c in range(3)]
    assert not statistics.mean[2].any() and not statistics.variance[2].any()


def test_ignored_pixels_change_nothing():
    features, label = deterministic()
    results = []
    for fill in (0.0, 1e200, torch.inf):
        f = features.clone()
        f[label == IGNORE] = fill
        statistics = filled(f, label)
        f.requires_grad_()
        loss = semantic_contrast(f, label, statistics, 0.5)
        loss.backward()
        results.append((loss.detach(), f.grad, *statistics.buffers()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_statistics_travel_and_take_no_gradient():
    features, label = deterministic()
    statistics, copy = filled(features.requires_grad_(), label), ClassStatistics(2, 6)
    copy.load_state_dict(statistics.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(statistics.buffers(), copy.buffers(), strict=True))
    assert not list(statistics.parameters()) and not any(b.requires_grad for b in statistics.buffers())
    copy.update(features.float(), label)
    assert copy.mean.dtype == torch.float64


def test_loss_gradient_and_blindness_to_length():
    features, label = deterministic()
    statistics = filled(features, label)
    torch.testing.assert_close(
        semantic_contrast(9 * features, label, statistics, 0.5), semantic_contrast(features, label, statistics, 0.5)
    )
    f = features[:6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: semantic_contrast(x, label[:6], statistics, 0.5), (f,))


def clusters(spread, seed=0):
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (200,), generator=rng)
    return 3 * torch.eye(6)[label] + spread * torch.randn(200, 6, generator=rng), label


def test_tight_clusters_cost_less_and_the_wrong_label_costs_more():
    tight, loose = (semantic_contrast(*c, filled(*c), 0.5) for c in (clusters(0.1), clusters(3.0)))
    assert tight < loose
    features, label = clusters(0.5)
    statistics = filled(features, label)
    assert semantic_contrast(features, label, statistics, 0.5) < semantic_contrast(features, 1 - label, statistics, 0.5)


def test_a_class_without_pixels_takes_no_part():
    features, label = clusters(0.5)
    two, three = filled(features, label), filled(features, label, classes=3)
    torch.testing.assert_close(
        semantic_contrast(features, label, three, 0.5), semantic_contrast(features, label, two, 0.5)
    )
    strange = torch.cat([label[:100], torch.full((100,), 2)])
    torch.testing.assert_close(
        semantic_contrast(features, strange, three, 0.5), semantic_contrast(features[:100], label[:100], two, 0.5)
    )


@pytest.mark.parametrize("empty", ["label", "statistics", "pixels"])
def test_nothing_to_contrast_gives_a_connected_zero(empty):
    features, label = clusters(0.5)
    statistics = ClassStatistics(2, 6) if empty == "statistics" else filled(features, label)
    label = torch.full_like(label, IGNORE) if empty == "label" else label
    if empty == "pixels":
        features, label = features[:0], label[:0]
    features.requires_grad_()
    loss = semantic_contrast(features, label, statistics, 0.5)
    loss.backward()
    assert loss.item() == 0 and not features.grad.any()


def outputs(seed):
    features, label = clusters(1.0, seed)
    grid = label.view(2, 10, 10)
    scores = torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(seed))
    maps = features.view(2, 10, 10, 6).movedim(-1, 1).clone()
    known = torch.ones_like(grid, dtype=torch.bool)
    return DomainOutputs({}, known, {"main": grid}, features=maps.requires_grad_(), scores=scores.requires_grad_())


def test_module_adds_two_levels_over_two_sides_with_the_statistics_of_one():
    module = SemanticContrast(2, 6, 4)
    first, second = outputs(0), outputs(1)
    loss, stats = module(first, second, CLOCK)
    expected = 0.0
    for name in ("features", "scores"):
        rows = [(getattr(s, name).movedim(1, -1).flatten(0, 2), s.label["main"].flatten()) for s in (first, second)]
        statistics = filled(*rows[0])
        expected += sum(semantic_contrast(*r, statistics, module.temperature) for r in rows)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(stats["feature"] + stats["score"], loss.detach())
    loss.backward()
    assert all(t.grad.any() for s in (first, second) for t in (s.features, s.scores))


def test_default_temperature_matters_for_two_classes_where_100_does_not():
    features, label = clusters(1.0)
    statistics = filled(features, label)
    norms = []
    for temperature in (SemanticContrast(2, 6, 4).temperature, 100.0):
        f = features.clone().requires_grad_()
        semantic_contrast(f, label, statistics, temperature).backward()
        norms.append(f.grad.norm())
    assert norms[0] > 20 * norms[1]
