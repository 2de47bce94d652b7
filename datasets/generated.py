"""The generated pair: two sensors look at different cloudy scenes, with exact labels and nothing to download.

`make_pair` writes `source` (sensor_a: sharp, bright, fine pixels, mostly fields and towns) and `target` (sensor_b:
coarse, dark, hazy, with a colour cast, more water, desert and mountains). A scene is painted ground (`landcover.py`),
clouds of known opacity over it with their shadows, and then the sensor: haze, blur, colour response, exposure, tone
curve and noise. The label is exact: cloud where the optical opacity is at least `CLOUD_OPACITY`, before any blur.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.landcover import PAINTERS, Array, Direction, Ground, fractal_noise, hillshade, mix, ramp, smoothstep
from utils.errors import DataError
from utils.files import write_bytes, write_text
from utils.output import progress_bar

VERSION = 1
CLOUD_OPACITY = 0.25
CLOUD_KINDS = {"none": 0.08, "cumulus": 0.30, "bank": 0.24, "veil": 0.14, "mixed": 0.16, "overcast": 0.08}
MARGIN = 64  # pixels around the picture from which clouds can throw their shadow into it


def _number(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Sensor:
    """What makes a domain. Every field may be interpolated; its legal range stands beside it.

    Attributes:
        name: telling name, stored with the data.
        pixel, blur: ground size of one pixel, metres; standard deviation of the point spread function, pixels.
        haze, haze_colour: share of the signal replaced by scattered light of this RGB, on average; a scene has 0.4 to
            1.6 times as much, and it varies smoothly by up to 40 % inside the scene.
        response: 3x3 colour response, row by row; output R = first row times scene RGB.
        gain: exposure, multiplies the scene.
        gain_spread: standard deviation of log(gain) between scenes, cut at 1.6 of them.
        black_level: added after the gain, share of full scale.
        gamma: exponent of the tone curve; above 1 darkens the mid tones.
        noise: standard deviation of the noise at full scale; its square grows linearly with the signal.
        veil: multiplies the chance of veils and mixed skies, the thin clouds.
        land_cover: (name of a painter, weight) pairs; weights need not sum to 1.
    """

    name: str
    pixel: float = _number(0.8, 12.0)
    blur: float = _number(0.3, 3.0)
    haze: float = _number(0.0, 0.45)
    haze_colour: tuple[float, float, float] = _number(0.0, 1.0)
    response: tuple[float, ...] = _number(-0.3, 1.5)
    gain: float = _number(0.25, 1.6)
    gain_spread: float = _number(0.0, 0.5)
    black_level: float = _number(0.0, 0.15)
    gamma: float = _number(0.6, 1.8)
    noise: float = _number(0.0, 0.08)
    veil: float = _number(0.0, 4.0)
    land_cover: tuple[tuple[str, float], ...] = ()


SENSORS: dict[str, Sensor] = {
    "sensor_a": Sensor(
        name="sensor_a", pixel=2.0, blur=0.6, haze=0.03, haze_colour=(0.72, 0.78, 0.86),
        response=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        gain=1.0, gain_spread=0.14, black_level=0.01, gamma=0.95, noise=0.012, veil=0.8,
        land_cover=(("fields", 0.32), ("town", 0.24), ("forest", 0.12), ("snow", 0.07),
                    ("mountains", 0.09), ("coast", 0.08), ("desert", 0.08)),
    ),
    "sensor_b": Sensor(
        name="sensor_b", pixel=4.0, blur=1.0, haze=0.10, haze_colour=(0.55, 0.68, 0.86),
        response=(0.86, 0.10, 0.02, 0.05, 0.92, 0.05, 0.0, 0.12, 0.95),
        gain=0.70, gain_spread=0.20, black_level=0.02, gamma=1.15, noise=0.016, veil=0.9,
        land_cover=(("fields", 0.12), ("town", 0.07), ("forest", 0.14), ("snow", 0.04),
                    ("mountains", 0.18), ("coast", 0.23), ("desert", 0.22)),
    ),
}  # fmt: skip


def sensor_at_strength(strength: float) -> Sensor:
    """Sensor between sensor_a (`strength` 0) and sensor_b (1); above 1 it goes on, clipped to the legal ranges."""
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength is {strength}; expected a finite number from 0 (sensor_a) upwards, 1 is sensor_b")
    first, second = SENSORS["sensor_a"], SENSORS["sensor_b"]
    values: dict[str, Any] = {}
    for item in (item for item in fields(Sensor) if "range" in item.metadata):
        a, b = np.asarray(getattr(first, item.name)), np.asarray(getattr(second, item.name))
        value = np.clip((1 - strength) * a + strength * b, *item.metadata["range"]).tolist()
        values[item.name] = tuple(value) if a.ndim else value
    a_cover, b_cover = dict(first.land_cover), dict(second.land_cover)
    weights = {n: max(0.0, (1 - strength) * a_cover.get(n, 0) + strength * b_cover.get(n, 0)) for n in PAINTERS}
    cover = tuple((name, weight / sum(weights.values())) for name, weight in weights.items())
    names = {0.0: first.name, 1.0: second.name}
    return Sensor(name=names.get(float(strength), f"strength_{strength:g}"), land_cover=cover, **values)


def _layer(rng: np.random.Generator, canvas: int, kind: str, pixel: float) -> tuple[Array, Array]:
    """One cloud layer on the periodic canvas: opacity and height, both (canvas, canvas), opacity in [0, 1)."""
    angle = rng.uniform(0, np.pi)
    scale = (2.0 / pixel) ** 0.35  # a coarse sensor also sees smaller clouds, but clouds come in all sizes
    if kind == "veil":
        shape = fractal_noise(rng, canvas, 190 * scale, rng.uniform(1.5, 1.8), rng.uniform(1.5, 5.0), angle)
        cover = rng.uniform(0.25, 0.65)
        density = 1 - np.exp(-1.5 * np.maximum(shape - np.float32(np.quantile(shape, 1 - cover) - 0.1), 0))
        return np.float32(rng.uniform(0.55, 0.9)) * density, 0.05 * shape
    wavelength, cover, depth = {
        "cumulus": (rng.uniform(40, 110), rng.uniform(0.15, 0.55), rng.uniform(2.2, 5.0)),
        "bank": (rng.uniform(120, 320), rng.uniform(0.3, 0.7), rng.uniform(1.2, 4.0)),
        "overcast": (rng.uniform(80, 300), 0.98, rng.uniform(1.0, 2.0)),
    }[kind]
    stretch = rng.uniform(1.0, 1.7) if kind == "cumulus" else rng.uniform(1.0, 2.6)
    shape = fractal_noise(rng, canvas, wavelength * scale, rng.uniform(1.9, 2.2), stretch, angle)
    billow = np.abs(fractal_noise(rng, canvas, rng.uniform(28, 90) * scale, 1.9)) - np.float32(0.8)
    shape = shape - np.float32(rng.uniform(0.08, 0.25)) * billow
    shape = shape + np.float32(0.8) * fractal_noise(rng, canvas, 400, 2.2) if kind == "cumulus" else shape
    thickness = np.maximum(shape - np.float32(np.quantile(shape, 1 - cover)), 0)
    if kind != "cumulus":  # thinner and thicker parts
        thickness *= smoothstep(-2.8, 0.8, fractal_noise(rng, canvas, 110 * scale, 1.9, stretch, angle))
    opacity = 1 - np.exp(-np.float32(depth) * thickness ** np.float32(1.25))
    return opacity, np.sqrt(thickness + np.float32(0.02)) - np.float32(0.22) * billow


def _clouds(rng: np.random.Generator, sensor: Sensor, size: int, sun: Direction) -> tuple[Array, Array, Array]:
    """Clouds of one scene: opacity (H, W), colour (H, W, 3) and the light that reaches the ground (H, W)."""
    weights = np.array([w * (sensor.veil if n in ("veil", "mixed") else 1.0) for n, w in CLOUD_KINDS.items()])
    kind = list(CLOUD_KINDS)[rng.choice(len(weights), p=weights / weights.sum())]
    canvas = cv2.getOptimalDFTSize(size + 2 * MARGIN)
    inside = slice(MARGIN, MARGIN + size)
    layers = {"none": [], "mixed": ["cumulus", "veil"]}.get(kind, [kind])
    clear = np.ones((canvas, canvas), np.float32)
    light, height = clear.copy(), np.zeros_like(clear)
    for layer in layers:
        opacity, top = _layer(rng, canvas, layer, sensor.pixel)
        reach = min(rng.uniform(*(90, 130) if layer == "veil" else (30, 95)) / sensor.pixel**0.5, MARGIN - 2)
        move = (round(-sun[1] * reach), round(-sun[0] * reach))
        soft = cv2.GaussianBlur(np.roll(opacity, move, (0, 1)), (0, 0), 2.0 + 0.04 * reach)
        clear, light, height = clear * (1 - opacity), light * (1 - 0.62 * soft), height + top * (layer != "veil")
    alpha = 1 - clear[inside, inside]
    relief: Array = cv2.GaussianBlur(height, (0, 0), 0.8)[inside, inside].astype(np.float32)
    shade = hillshade(relief, sun, 3.2, 0.70) * (1 - 0.10 * smoothstep(0.5, 2.5, relief))
    shade = 0.22 + 0.62 * shade * alpha + 0.62 * (1 - alpha)  # thin cloud has no relief
    colour = ramp(shade, (0.46, 0.50, 0.57), (0.72, 0.75, 0.80), (0.97, 0.975, 0.98))
    return alpha, colour * np.float32(rng.uniform(0.93, 1.02)), light[inside, inside]


def _compose(sensor: Sensor, seed: int, size: int) -> tuple[Array, Array, str]:
    """Scene before the sensor: colour (H, W, 3), opacity of its clouds (H, W), name of its land cover."""
    rng = np.random.default_rng([seed, 1])
    weights = np.array([weight for _, weight in sensor.land_cover])
    cover = sensor.land_cover[rng.choice(len(weights), p=weights / weights.sum())][0]
    azimuth = rng.uniform(0, 2 * np.pi)
    sun = (float(np.cos(azimuth)), float(np.sin(azimuth)))
    ground = np.clip(PAINTERS[cover](Ground(rng, size, sensor.pixel * rng.uniform(0.8, 1.25), sun)), 0, 1)
    alpha, colour, light = _clouds(rng, sensor, size, sun)
    shadow = light[..., None] + (1 - light)[..., None] * np.array((0.0, 0.03, 0.07), np.float32)  # lit by blue sky
    return mix(ground * shadow, colour, alpha), alpha, cover


def _expose(sensor: Sensor, scene: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the sensor makes of a scene (H, W, 3): haze, blur, colour response, exposure, tone curve, noise, 8 bits."""
    size = scene.shape[0]
    haze = sensor.haze * rng.uniform(0.4, 1.6) * (1 + 0.2 * np.clip(fractal_noise(rng, size, 2.0 * size, 2.2), -2, 2))
    scene = mix(scene, sensor.haze_colour, haze.astype(np.float32))
    blurred: Array = cv2.GaussianBlur(scene, (0, 0), sensor.blur, borderType=cv2.BORDER_REFLECT_101).astype(np.float32)
    scene = cv2.transform(blurred, np.array(sensor.response, np.float32).reshape(3, 3)).astype(np.float32)
    spread = sensor.gain_spread * np.clip(rng.standard_normal(), -1.6, 1.6)
    scene = scene * np.float32(sensor.gain * np.exp(spread)) + sensor.black_level
    scene = np.maximum(scene, 0) ** np.float32(sensor.gamma)
    grain = rng.standard_normal(scene.shape, dtype=np.float32) * np.sqrt(0.15 + 0.85 * np.minimum(scene, 1))
    return np.clip((scene + sensor.noise * grain) * 255 + 0.5, 0, 255).astype(np.uint8)


def render_scene(sensor: Sensor, seed: int, size: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene as `sensor` sees it, `size` pixels (at least 16) high and wide: image (H, W, 3) uint8 RGB and label
    (H, W) uint8, 255 = cloud, 0 = clear."""
    return _render(sensor, seed, size)[:2]


def _render(sensor: Sensor, seed: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    scene, alpha, cover = _compose(sensor, seed, size)
    label = np.where(alpha >= CLOUD_OPACITY, 255, 0).astype(np.uint8)
    return _expose(sensor, scene, np.random.default_rng([seed, 2])), label, cover


def _derive(*keys: int) -> int:
    """Independent 64-bit seed of a tuple of keys."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0])


def _fill_domain(root: Path, sensor: Sensor, seed: int, counts: Mapping[str, int], size: int, progress: bool) -> None:
    """Write images, labels and lists of one domain. Scene i of a split depends on (seed, split, i) alone."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    scenes = [(split, i) for split, count in enumerate(counts.values()) for i in range(count)]
    rows: list[list[str]] = [[] for _ in counts]
    bar = progress_bar(scenes, desc=f"{root.name} ({sensor.name})", unit="scene", disable=not progress)
    for number, (split, i) in enumerate(bar):
        image, label, cover = _render(sensor, _derive(seed, split, i), size)
        row = [f"{folder}/{cover}_{number:04d}.png" for folder in ("images", "labels")]
        for path, pixels in zip(row, (cv2.cvtColor(image, cv2.COLOR_RGB2BGR), label), strict=True):
            write_bytes(root / path, cv2.imencode(".png", pixels)[1].tobytes())
        rows[split].append(" ".join(row) + "\n")
    for name, lines in zip(counts, rows, strict=True):
        write_text(root / f"{name}.txt", "".join(lines))


def _require_same(root: Path, wanted: dict[str, Any]) -> None:
    """Refuse a folder that was made with other parameters than these, or holds something else."""
    record = root / "generated.json"
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{root} exists without a readable generated.json; choose another folder or remove it")
    differ = ", ".join(
        key if isinstance(wanted.get(key), dict) else f"{key} {found.get(key)!r} instead of {wanted.get(key)!r}"
        for key in sorted(wanted.keys() | found.keys())
        if wanted.get(key) != found.get(key)
    )
    if differ:
        raise DataError(f"{record}: made with other parameters ({differ}); choose another folder or remove this one")


def make_pair(
    root: Path,
    *,
    seed: int = 0,
    train: int = 200,
    evaluation: int = 60,
    size: int = 256,
    strength: float = 1.0,
    progress: bool = True,
) -> None:
    """Write `root/source` (sensor_a) and `root/target` (`sensor_at_strength(strength)`), scenes unpaired.

    Each holds `images/`, `labels/`, `train.txt` and `eval.txt`, whose rows read `images/fields_0007.png
    labels/fields_0007.png`. Nothing happens when `root` already holds the same parameters; raises DataError if it
    exists with others or without `generated.json`.
    """
    domains = {"source": SENSORS["sensor_a"], "target": sensor_at_strength(strength)}
    counts = {"train": train, "eval": evaluation}
    sensors = {role: asdict(sensor) for role, sensor in domains.items()}
    parameters = {"version": VERSION, "seed": seed, **counts, "size": size, "strength": strength, "sensors": sensors}
    record = json.dumps(parameters, indent=2) + "\n"
    if root.exists():
        return _require_same(root, json.loads(record))
    part = root.with_name(f".{root.name}.{uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        for index, (role, sensor) in enumerate(domains.items()):
            _fill_domain(part / role, sensor, _derive(seed, index), counts, size, progress)
        write_text(part / "generated.json", record)
        try:
            part.rename(root)
        except OSError:
            if not root.exists():
                raise
            _require_same(root, json.loads(record))  # another process was faster
    finally:
        shutil.rmtree(part, ignore_errors=True)
