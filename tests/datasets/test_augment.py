"""Random changes: mirrors move all layers, and a change of colour is one matrix with known parts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import adjust_saturation

from config.schema import AugmentConfig
from datasets.augment import LUMA, colour_change, cut_out, flip, tone_change
from datasets.files import Window
from datasets.geometry import Raster

NOTHING = AugmentConfig(hflip=0, vflip=0, jitter=1, brightness=0, contrast=0, saturation=0, hue=0)
BANDS = [1, 2, 3, 4, 13]
few = settings(max_examples=40, deadline=None)


def noisy(bands: int = 3, seed: int = 0, holes: bool = True) -> Raster:
    """Pixels of every brightness; a third of them, which is brighter than all others, holds no data."""
    rng = np.random.default_rng(seed)
    valid = rng.random((16, 20)) > (0.33 if holes else -1)
    image = np.where(valid[..., None], rng.integers(0, 200, (16, 20, bands)), 255).astype(np.uint8)
    return Raster(image, None, valid)


def draws(seed: int) -> np.ndarray:
    """What `colour_change` draws from a generator of this seed: for brightness, contrast, saturation and hue."""
    return np.random.default_rng(seed).uniform(-1, 1, size=4)


def changed(raster: Raster, seed: int = 0, **amounts: Any) -> np.ndarray:
    """The changed pixels as (H, W, C) in [0, 1] where nothing is cut off, by the matrix that was drawn."""
    matrix = colour_change(raster, replace(NOTHING, **amounts), np.random.default_rng(seed)).astype(float)
    return raster.image / 255 @ matrix[:, :-1].T + matrix[:, -1]


@pytest.mark.parametrize("horizontal", [0, 1])
@pytest.mark.parametrize("vertical", [0, 1])
def test_flip_moves_all_layers(horizontal: int, vertical: int) -> None:
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    raster = Raster(image, image[..., 0].copy(), image[..., 0] % 2 == 0)
    flipped = flip(raster, AugmentConfig(hflip=horizontal, vflip=vertical), np.random.default_rng(0))
    rows = range(3, -1, -1) if vertical else range(4)
    columns = range(5, -1, -1) if horizontal else range(6)
    for before, after in zip(raster[:3], flipped[:3], strict=True):
        assert before is not None and after is not None
        assert np.array_equal(after, [[before[row, column] for column in columns] for row in rows])
    assert flip(raster._replace(label=None), AugmentConfig(), np.random.default_rng(0)).label is None
    padded = Raster(image, None, raster.valid, Window(0, 1, 3, 2))
    moved = flip(padded, AugmentConfig(hflip=horizontal, vflip=vertical), np.random.default_rng(0)).box
    assert moved == Window(1 if vertical else 0, 3 if horizontal else 1, 3, 2)


def test_flip_follows_its_probability() -> None:
    raster = Raster(np.array([[[1], [2]]]), None, np.ones((1, 2), bool))
    amounts, rng = AugmentConfig(hflip=0.25, vflip=0), np.random.default_rng(0)
    share = np.mean([flip(raster, amounts, rng).image[0, 0, 0] == 2 for _ in range(2000)])
    assert abs(share - 0.25) < 0.04


def test_change_of_colour_follows_its_probability() -> None:
    raster, amounts, rng = noisy(), AugmentConfig(jitter=0.25), np.random.default_rng(0)
    identity = np.eye(3, 4, dtype=np.float32)
    share = np.mean([not np.array_equal(colour_change(raster, amounts, rng), identity) for _ in range(1000)])
    assert abs(share - 0.25) < 0.05


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("amounts", [NOTHING, AugmentConfig(jitter=0)])
def test_nothing_to_change_is_the_identity(bands: int, amounts: AugmentConfig) -> None:
    matrix = colour_change(noisy(bands), amounts, np.random.default_rng(0))
    assert matrix.dtype == np.float32 and matrix.shape == (bands, bands + 1)
    assert np.abs(matrix - np.eye(bands, bands + 1)).max() < (1e-6 if amounts.jitter else 1e-30)


def test_later_draws_do_not_depend_on_whether_colour_changes() -> None:
    rest = []
    for jitter in (0.0, 1.0):
        rng = np.random.default_rng(0)
        colour_change(noisy(), AugmentConfig(jitter=jitter), rng)
        rest.append(rng.random())
    assert rest[0] == rest[1]


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_brightness_multiplies(bands: int, seed: int) -> None:
    raster, factor = noisy(bands), 1 + 0.8 * draws(seed)[0]
    assert abs(factor - 1) > 0.01
    np.testing.assert_allclose(changed(raster, seed, brightness=0.8), raster.image / 255 * factor, atol=1e-6)


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_contrast_stretches_about_the_mean_grey_of_valid_pixels(bands: int, seed: int) -> None:
    raster, factor = noisy(bands), 1 + 0.8 * draws(seed)[1]
    assert abs(factor - 1) > 0.05
    weights = LUMA if bands == 3 else np.full(bands, 1 / bands)
    grey = (raster.image[raster.valid] / 255 @ weights).mean()
    expected = grey + factor * (raster.image / 255 - grey)
    np.testing.assert_allclose(changed(raster, seed, contrast=0.8), expected, atol=1e-6)


def test_contrast_comes_after_brightness() -> None:
    raster, (brightness, contrast, *_) = noisy(holes=False), 1 + 0.5 * draws(3)
    brighter = raster.image / 255 * brightness
    grey = (brighter @ LUMA).mean()
    both = changed(raster, 3, brightness=0.5, contrast=0.5)
    np.testing.assert_allclose(both, grey + contrast * (brighter - grey), atol=1e-6)


def test_pixels_without_data_have_no_say() -> None:
    raster = noisy()
    other = raster._replace(image=np.where(raster.valid[..., None], raster.image, 0).astype(np.uint8))
    matrices = [colour_change(r, AugmentConfig(jitter=1), np.random.default_rng(0)) for r in (raster, other)]
    assert np.array_equal(*matrices)
    whole = raster._replace(valid=np.ones_like(raster.valid))
    everywhere = colour_change(whole, AugmentConfig(jitter=1), np.random.default_rng(0))
    assert not np.array_equal(everywhere, matrices[0])


def test_image_without_any_data_gets_a_finite_change() -> None:
    empty = noisy()._replace(valid=np.zeros((16, 20), bool))
    assert np.isfinite(colour_change(empty, AugmentConfig(jitter=1), np.random.default_rng(0))).all()


@pytest.mark.parametrize("seed", range(4))
def test_saturation_is_that_of_torchvision(seed: int) -> None:
    raster, factor = noisy(), 1 + 0.9 * float(draws(seed)[2])
    image = torch.from_numpy(raster.image / 255).permute(2, 0, 1)
    expected = adjust_saturation(image, factor).permute(1, 2, 0).numpy()
    result = changed(raster, seed, saturation=0.9).clip(0, 1)
    np.testing.assert_allclose(result, expected, atol=2e-4)  # its weights of grey have one digit more
    assert np.abs(result - raster.image / 255).max() > 0.02


@few
@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
def test_hue_keeps_luma_and_greys_and_the_distance_from_grey(seed: int, hue: float) -> None:
    raster = noisy()
    turned = changed(raster, seed, hue=hue)
    np.testing.assert_allclose(turned @ LUMA, raster.image / 255 @ LUMA, atol=1e-6)
    grey = raster._replace(image=np.repeat(raster.image[..., :1], 3, 2))
    np.testing.assert_allclose(changed(grey, seed, hue=hue), grey.image / 255, atol=1e-6)


def test_hue_of_third_turns_comes_round_after_three() -> None:
    raster, turn = noisy(), float(draws(5)[3])
    matrix = colour_change(raster, replace(NOTHING, hue=1 / 3 / turn), np.random.default_rng(5)).astype(float)
    np.testing.assert_allclose(np.linalg.matrix_power(matrix[:, :3], 3), np.eye(3), atol=1e-5)
    assert np.abs(matrix[:, :3] - np.eye(3)).max() > 0.5 and np.abs(matrix[:, 3]).max() < 1e-6
    red = matrix[:, :3] @ [1, 0, 0]
    assert red.argmax() in (1, 2)  # a third of the circle from red is green or blue


def test_saturation_and_hue_are_for_three_bands_alone() -> None:
    for bands in (1, 2, 4, 13):
        matrix = colour_change(noisy(bands), replace(NOTHING, saturation=0.9, hue=0.5), np.random.default_rng(0))
        assert np.array_equal(matrix, np.eye(bands, bands + 1, dtype=np.float32))


def test_grey_stays_grey_under_any_change() -> None:
    raster = noisy()
    grey = raster._replace(image=np.repeat(raster.image[..., :1], 3, 2))
    for seed in range(10):
        result = changed(grey, seed, brightness=0.5, contrast=0.5, saturation=0.9, hue=0.5)
        assert np.ptp(result, axis=2).max() < 1e-6


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 2))
def test_tone_curve_keeps_black_white_and_order(seed: int, gamma: float) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    curve = tone_change(levels, replace(NOTHING, gamma=gamma), np.random.default_rng(seed)).ravel().astype(int)
    exponent = np.exp(np.random.default_rng(seed).uniform(-gamma, gamma))
    assert curve[0] == 0 and curve[255] == 255 and (np.diff(curve) >= 0).all()
    assert curve[128] == round(255 * (128 / 255) ** exponent)
    assert (curve >= np.arange(256)).all() or (curve <= np.arange(256)).all()


def test_tone_curve_without_gamma_draws_nothing_and_jitter_decides() -> None:
    image, rng = noisy().image, np.random.default_rng(3)
    before = rng.bit_generator.state
    assert tone_change(image, NOTHING, rng) is image and rng.bit_generator.state == before
    changed_ones = sum(
        not np.array_equal(tone_change(image, replace(NOTHING, gamma=1, jitter=0.25), rng), image) for _ in range(400)
    )
    assert 70 < changed_ones < 130


def test_a_cut_out_blanks_three_squares_that_may_overlap() -> None:
    image, amounts = np.full((2, 50, 60), 9, np.uint8), AugmentConfig(cutout=1)
    shares = [(cut_out(image, amounts, np.random.default_rng(seed)) == 0).mean() for seed in range(200)]
    one = 0.3**2
    assert min(shares) >= one and max(shares) <= 3 * one + 1e-9 and np.mean(shares) > 2 * one
    assert (image == 9).all()  # a copy is blanked


def test_a_cut_out_is_as_frequent_as_asked_and_draws_nothing_where_it_is_off() -> None:
    image, rng = np.ones((1, 20, 20), np.uint8), np.random.default_rng(0)
    share = np.mean([(cut_out(image, AugmentConfig(cutout=0.25), rng) == 0).any() for _ in range(1000)])
    assert abs(share - 0.25) < 0.05
    before = rng.bit_generator.state
    assert cut_out(image, AugmentConfig(), rng) is image and rng.bit_generator.state == before
