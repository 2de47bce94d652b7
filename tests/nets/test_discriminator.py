import pytest
import torch

from nets.discriminator import Discriminator


def test_known_answers() -> None:
    discriminator = Discriminator(2)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_763_713
    assert discriminator(torch.rand(1, 2, 256, 256)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("size", "out"), [(32, 1), (63, 1), (64, 2), (100, 3)])
def test_output_is_a_thirty_second(size: int, out: int) -> None:
    assert Discriminator(2, width=4)(torch.rand(1, 2, size, size)).shape == (1, 1, out, out)


@pytest.mark.parametrize("shape", [(1, 2, 31, 64), (1, 2, 64, 31), (1, 3, 64, 64)])
def test_unusable_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 channels of at least 32x32 .* \(1, "):
        Discriminator(2, width=4)(torch.rand(shape))
