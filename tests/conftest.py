"""Tiny domains on disk, and the arguments of a run that takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def make_domain() -> Callable[..., Path]:
    """Write a domain: dark noisy ground, one bright soft disc as the cloud, its core as the label (0 and 255)."""

    def make(root: Path, count: int = 6, size: tuple[int, int] = (40, 48), labels: bool = True, seed: int = 0) -> Path:
        height, width = size
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:height, :width]
        for folder in ("images", "labels") if labels else ("images",):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            distance = np.hypot(rows - rng.uniform(0.3, 0.7) * height, columns - rng.uniform(0.3, 0.7) * width)
            radius = rng.uniform(0.2, 0.4) * min(height, width)
            opacity = np.clip((radius - distance) / 4 + 0.5, 0, 1)[..., None]
            ground = rng.uniform(20, 90, 3) + rng.normal(0, 12, (height, width, 3))
            pixels = np.clip((1 - opacity) * ground + opacity * 230, 0, 255).astype(np.uint8)
            assert cv2.imwrite(str(root / "images" / f"scene_{i:02d}.png"), pixels)
            if labels:
                mask = np.where(opacity[..., 0] > 0.5, 255, 0).astype(np.uint8)
                assert cv2.imwrite(str(root / "labels" / f"scene_{i:02d}.png"), mask)
        return root

    return make


@pytest.fixture
def tiny_arguments(make_domain: Callable[..., Path]) -> Callable[..., list[str]]:
    """The command line of a run of seconds; makes its two labelled domains below `tmp_path` on first use."""

    def arguments(tmp_path: Path, *extra: str) -> list[str]:
        for seed, role in enumerate(("source", "target")):
            if not (tmp_path / role).exists():
                make_domain(tmp_path / role, seed=seed)
        values = {
            "out": tmp_path / "run",
            "device": "cpu",
            "source.root": tmp_path / "source",
            "target.root": tmp_path / "target",
            "data.size": 32,
            "net.backbone": "mobilenetv3_small_050",
            "net.discriminator_width": 4,
            "teacher.steps": 6,
            "teacher.batch": 2,
            "intra.steps": 6,
            "intra.batch": 2,
            "log.every": 1,
            "log.checkpoint": 2,
            "log.pictures": 3,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))] + list(extra)

    return arguments
