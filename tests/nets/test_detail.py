"""The detail branch: starts as nothing, sees 7x7 pixels, and makes the main head's logits as fine as the image."""

import json
from pathlib import Path

import torch

from nets.detail import DetailBranch
from nets.segmenter import Segmenter, resize_logits
from nets.weights import load_segmenter, save_segmenter


def small(detail: int) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter("mobilenetv3_small_050", output_stride=16, detail=detail).eval()


def trained(branch: DetailBranch) -> DetailBranch:
    torch.manual_seed(1)
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return branch


def test_it_starts_with_the_logits_as_they_are() -> None:
    image, logits = torch.rand(2, 4, 9, 13), torch.randn(2, 2, 9, 13)
    assert torch.equal(DetailBranch(4, 2, 8)(image, logits), logits)


def test_the_first_step_moves_the_last_layer_and_the_second_all() -> None:
    branch = DetailBranch(3, 2, 8)
    optimizer = torch.optim.SGD(branch.parameters(), lr=0.1)
    image, logits, label = torch.rand(2, 3, 16, 16), torch.randn(2, 2, 16, 16), torch.randint(0, 2, (2, 16, 16))
    for moved in (2, 6):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(branch(image, logits), label).backward()
        gradients = [parameter.grad for parameter in branch.parameters()]
        assert sum(bool(gradient is not None and gradient.any()) for gradient in gradients) == moved
        optimizer.step()


def test_a_pixel_sees_three_to_each_side() -> None:
    branch = trained(DetailBranch(3, 2, 8))
    image = torch.rand(1, 3, 21, 21, requires_grad=True)
    branch(image, torch.zeros(1, 2, 21, 21))[0, 1, 10, 10].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().amax(0).nonzero()
    assert seen.min(0).values.tolist() == [7, 7] and seen.max(0).values.tolist() == [13, 13]


def test_main_is_as_fine_as_the_image_and_at_first_the_head_s_own() -> None:
    image = torch.rand(2, 3, 70, 96)
    plain, fine = small(0), small(8)
    fine.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        coarse, sharp = plain(image), fine(image)
    assert sharp.main.shape == (2, 2, 70, 96) and sharp.aux.shape == coarse.aux.shape
    torch.testing.assert_close(sharp.main, resize_logits(coarse.main, (70, 96)))
    torch.testing.assert_close(sharp.features, coarse.features)


def test_a_branch_put_on_a_taught_network_changes_nothing_at_first() -> None:
    image = torch.rand(2, 3, 70, 96)
    plain, fine = small(0), small(0)
    fine.add_detail(8)
    with torch.no_grad():
        torch.testing.assert_close(fine(image).main, resize_logits(plain(image).main, (70, 96)))
    assert fine.architecture == small(8).architecture and fine.state_dict().keys() == small(8).state_dict().keys()


def test_it_learns_with_the_heads_and_is_kept_in_the_file(tmp_path: Path) -> None:
    network = small(8)
    heads = {id(parameter) for parameter in network.head_parameters()}
    assert network.detail is not None and {id(parameter) for parameter in network.detail.parameters()} <= heads
    trained(network.detail)
    save_segmenter(tmp_path / "w.safetensors", network)
    again = load_segmenter(tmp_path / "w.safetensors")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image).main, network(image).main)
    assert json.loads(again.architecture)["detail"] == 8


def test_files_of_before_the_branch_still_load(tmp_path: Path) -> None:
    network = small(0)
    network.architecture = json.dumps(
        {key: value for key, value in json.loads(network.architecture).items() if key != "detail"}
    )
    save_segmenter(tmp_path / "w.safetensors", network)
    assert load_segmenter(tmp_path / "w.safetensors").detail is None
