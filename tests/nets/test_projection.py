import torch

from nets.projection import ProjectionHead


def test_embeddings_have_unit_length() -> None:
    embedding = ProjectionHead(12, hidden=8, out=5)(10 * torch.randn(2, 12, 3, 4))
    assert embedding.shape == (2, 5, 3, 4)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 3, 4))


def test_default_widths() -> None:
    shapes = [tuple(parameter.shape) for parameter in ProjectionHead(2048).parameters()]
    assert shapes == [(256, 2048, 1, 1), (256,), (128, 256, 1, 1), (128,)]


def test_zero_embedding_has_a_finite_gradient() -> None:
    head = ProjectionHead(4, hidden=4, out=3)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head(torch.rand(1, 4, 2, 2)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters() if parameter.grad is not None)
