import pytest
import torch
from torch._subclasses import FakeTensorMode

from engine.build import bound_choice
from losses.inputs import TrainingProgress
from losses.registry import SELF_TRAINING
from losses.segmentation import cross_entropy, weighted_cross_entropy
from losses.self_training import strong_colour
from losses.u2pl import entropy_drop
from utils.labels import IGNORE

HEADS = ("main", "aux")


def at(progress=0.5):
    return TrainingProgress(step=int(100 * progress), steps=100, epoch_steps=10, seed=0)


def scene(seed=0, bands=3, size=(3, 24, 40), classes=2):
    """A labelled and an unlabelled batch with some invalid pixels, and scores of two heads."""
    rng = torch.Generator().manual_seed(seed)
    labelled, unlabelled = (
        {
            "image": torch.rand(size[0], bands, *size[1:], generator=rng),
            "valid": torch.rand(size, generator=rng) < 0.9,
            "label": torch.randint(classes, size, generator=rng),
        }
        for _ in range(2)
    )
    labelled["label"][torch.rand(size, generator=rng) < 0.1] = IGNORE
    logits = {head: 4 * torch.randn(size[0], classes, *size[1:], generator=rng) for head in HEADS}
    return labelled, unlabelled, logits


def apply(name, case, progress=0.5, seed=0, **options):
    rule = bound_choice(SELF_TRAINING, name, {name: options})
    return rule(*case, at(progress), torch.Generator().manual_seed(seed))


def ema_label(case, head="main"):
    """The EMA argmax, 255 outside the valid area."""
    return case[2][head].argmax(1).masked_fill(~case[1]["valid"], IGNORE)


def loss_of(batch, logits, head="main"):
    return weighted_cross_entropy(logits, batch.label[head], batch.weight[head])


# All rules


@pytest.mark.parametrize("name", SELF_TRAINING)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_every_rule_gives_a_view_of_the_batch_by_its_generator(name, bands):
    case = scene(bands=bands)
    before = [{k: v.clone() for k, v in part.items()} for part in case]
    batch, again = apply(name, case), apply(name, case)
    assert batch.image.shape == case[1]["image"].shape and batch.image.min() >= 0 and batch.image.max() <= 1
    assert set(batch.label) == set(batch.weight) == set(HEADS)
    assert torch.equal(batch.image, again.image)
    for head in HEADS:
        assert batch.label[head].dtype == torch.int64 and set(batch.label[head].unique().tolist()) <= {0, 1, IGNORE}
        assert batch.weight[head].shape in ((), batch.label[head].shape) and (batch.weight[head] >= 0).all()
        assert torch.equal(batch.label[head], again.label[head]) and torch.equal(batch.weight[head], again.weight[head])
        if name != "classmix":
            assert (batch.label[head][~case[1]["valid"]] == IGNORE).all()
    assert all(torch.equal(old[k], part[k]) for old, part in zip(before, case, strict=True) for k in part)


@pytest.mark.parametrize("name", SELF_TRAINING)
def test_nothing_valid_gives_a_connected_zero(name):
    case = scene()
    for part in case[:2]:
        part["valid"].fill_(False)
    batch = apply(name, case)
    logits = torch.randn(3, 2, 24, 40, requires_grad=True)
    loss = loss_of(batch, logits)
    loss.backward()
    assert (batch.label["main"] == IGNORE).all() and loss.item() == 0 and not logits.grad.any()


# Weighted cross-entropy


def test_weighted_cross_entropy_is_the_mean_over_the_known_pixels():
    case = scene()
    label, logits = ema_label(case), case[2]["aux"]
    value = weighted_cross_entropy(logits, label, torch.tensor(0.3))
    torch.testing.assert_close(value, 0.3 * cross_entropy(logits, label))
    half = (torch.rand(label.shape) < 0.5).float()
    part = cross_entropy(logits, label.masked_fill(half == 0, IGNORE)) * ((half == 1) & (label != IGNORE)).sum()
    torch.testing.assert_close(weighted_cross_entropy(logits, label, half) * (label != IGNORE).sum(), part)
    half[label == IGNORE] = 1e30
    assert weighted_cross_entropy(logits, label, half).isfinite()


# Stored, entropy drop


def test_stored_hands_on_the_image_itself_and_the_label_of_the_valid_pixels():
    case = scene()
    batch = apply("stored", case)
    assert batch.image is case[1]["image"]
    expected = case[1]["label"].masked_fill(~case[1]["valid"], IGNORE)
    assert all(torch.equal(batch.label[h], expected) and batch.weight[h] == 1 for h in HEADS)


@pytest.mark.parametrize(("progress", "percent"), [(0.0, 80.0), (0.5, 90.0), (0.99, 99.8)])
def test_entropy_drop_costs_what_the_unsupervised_loss_costs(progress, percent):
    case = scene()
    batch = apply("entropy_drop", case, progress)
    for head in HEADS:
        trainee = torch.randn(3, 2, 24, 40)
        kept = entropy_drop(ema_label(case, head), case[2][head], percent)
        expected = cross_entropy(trainee, kept) * kept.numel() / (kept != IGNORE).sum()
        torch.testing.assert_close(loss_of(batch, trainee, head), expected)


def test_entropy_drop_at_100_drops_the_maximum_only():
    case = scene()
    batch = apply("entropy_drop", case, start=100.0)
    assert (ema_label(case) != IGNORE).sum() - (batch.label["main"] != IGNORE).sum() == 1


# ClassMix


def test_every_pixel_of_a_mixture_comes_from_one_image_with_its_label():
    case = scene()
    batch = apply("classmix", case, strong=False)
    labelled, unlabelled, logits = case
    from_labelled = (batch.image == labelled["image"]).all(1)
    from_unlabelled = (batch.image == unlabelled["image"]).all(1)
    assert (from_labelled ^ from_unlabelled).all() and from_labelled.any() and from_unlabelled.any()
    for image in range(3):
        pasted = labelled["label"][image][from_labelled[image]].unique()
        assert len(pasted) == 1
        all_of_it = (labelled["label"][image] == pasted) & labelled["valid"][image]
        assert torch.equal(from_labelled[image], all_of_it)
    for head in HEADS:
        expected = torch.where(from_labelled, labelled["label"], ema_label(case, head))
        assert torch.equal(batch.label[head], expected)
        confident = (logits[head].softmax(1).amax(1) >= 0.968)[unlabelled["valid"]].float().mean()
        assert 0 < confident < 1
        torch.testing.assert_close(batch.weight[head], torch.where(from_labelled, 1.0, confident))


def test_both_classes_get_pasted_and_a_lone_class_always():
    case = scene(size=(1, 6, 6))
    lone = scene(size=(1, 6, 6))
    lone[0]["label"].fill_(1)
    drawn = set()
    for seed in range(20):
        batch = apply("classmix", case, seed=seed, strong=False)
        pasted = (batch.image == case[0]["image"]).all(1)
        drawn.add(case[0]["label"][pasted].unique().item())
        batch = apply("classmix", lone, seed=seed, strong=False)
        assert torch.equal((batch.image == lone[0]["image"]).all(1), lone[0]["valid"])
    assert drawn == {0, 1}


def test_half_of_many_classes_are_pasted():
    case = scene(classes=5)
    batch = apply("classmix", case, strong=False)
    pasted = (batch.image == case[0]["image"]).all(1)
    assert [len(case[0]["label"][i][pasted[i]].unique()) for i in range(3)] == [3, 3, 3]


# Masking


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7, 1.0])
def test_masked_hides_about_that_share_of_the_blocks_and_no_label(ratio):
    case = scene(size=(4, 85, 90))
    batch = apply("masked", case, block=4, ratio=ratio, strong=False)
    mean = case[1]["image"].mean((0, 2, 3))[:, None, None]
    hidden = (batch.image == mean).all(1)
    assert torch.equal(batch.image, torch.where(hidden[:, None], mean, case[1]["image"]))
    corner = hidden[:, ::4, ::4]
    assert torch.equal(hidden, corner.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :85, :90])
    assert corner.float().mean().item() == pytest.approx(ratio, abs=0.05)
    for head in HEADS:
        assert torch.equal(batch.label[head], ema_label(case, head))
        confident = (case[2][head].softmax(1).amax(1) >= 0.968)[case[1]["valid"]].float().mean()
        torch.testing.assert_close(batch.weight[head], confident)


# Colour


@pytest.mark.parametrize("bands", [1, 3, 4, 8])
def test_strong_colour_changes_most_images_each_in_its_way(bands):
    images = torch.rand(1, bands, 12, 13, generator=torch.Generator().manual_seed(0)).expand(40, -1, -1, -1)
    changed = strong_colour(images, 1)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    same = (changed == images).flatten(1).all(1).sum()
    assert 0 < same < 12  # 0.2 * 0.5 of them
    assert len(changed.flatten(1).unique(dim=0)) == 41 - same
    assert torch.equal(changed, strong_colour(images, 1))
    assert not torch.equal(changed, strong_colour(images, 2))


def test_strong_colour_of_strength_0_only_blurs():
    images = torch.full((20, 4, 9, 9), 0.25)
    torch.testing.assert_close(strong_colour(images, 0, strength=0.0), images)


@pytest.mark.parametrize("name", sorted(SELF_TRAINING))
def test_no_rule_waits_for_the_device(name):
    """Fake tensors know devices without having one; reading a number from them, or mixing them, is an error."""
    with FakeTensorMode():
        labelled, unlabelled = (
            {
                "image": torch.rand(2, 3, 16, 16, device="cuda"),
                "valid": torch.ones(2, 16, 16, dtype=torch.bool, device="cuda"),
                "label": torch.zeros(2, 16, 16, dtype=torch.int64, device="cuda"),
            }
            for _ in range(2)
        )
        logits = {head: torch.rand(2, 2, 16, 16, device="cuda") for head in HEADS}
        batch = bound_choice(SELF_TRAINING, name, {})(labelled, unlabelled, logits, at(), torch.Generator())
        assert batch.image.device.type == "cuda" and batch.label["main"].device.type == "cuda"
