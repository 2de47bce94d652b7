"""Painted ground for the generated scenes: fields, forest, towns, coasts, mountains, deserts and snow.

Every painter takes a `Ground` (random generator, picture size, pixel size, sun) and returns the colour of the surface
seen without atmosphere: (H, W, 3) float32 RGB, display-referred, about 0..1. Lengths inside the painters are metres;
`Ground.pixel` metres fall on one pixel, so a coarser sensor sees more and smaller structure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Direction = tuple[float, float]  # unit vector (x, y)


def fractal_noise(
    rng: np.random.Generator, size: int, wavelength: float, slope: float = 1.8, stretch: float = 1.0, angle: float = 0.0
) -> Array:
    """Periodic Gaussian noise with a power-law spectrum, zero mean and unit variance, (size, size).

    Shaping white noise in the Fourier domain leaves no lattice to be seen, which summed value noise does. The longest
    structure has `wavelength` pixels; amplitude falls as frequency ** -`slope`: 1.3 is ragged, 1.8 cloud-like, 2.2
    smooth hills. `stretch` is the elongation along `angle` (radians); 1 is isotropic.
    """
    ky = np.fft.fftfreq(size).astype(np.float32)[:, None]
    kx = np.fft.rfftfreq(size).astype(np.float32)[None, :]
    along, across = kx * np.cos(angle) + ky * np.sin(angle), ky * np.cos(angle) - kx * np.sin(angle)
    power = (along * np.float32(stretch)) ** 2 + across**2 + np.float32(wavelength) ** -2
    white = rng.random((*power.shape, 2), dtype=np.float32) - np.float32(0.5)  # the sum over frequencies is Gaussian
    spectrum = white.view(np.complex64)[..., 0] * np.exp(np.float32(-slope / 2) * np.log(power))
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(size, size)).astype(np.float32)
    return field / (field.std() + np.float32(1e-6))


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, cubic in between."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(below: Array, above: Array | Colour, weight: Array) -> Array:
    """Blend (H, W, 3) `below` into `above` by (H, W) `weight` in [0, 1]."""
    return below + weight[..., None] * (np.asarray(above, np.float32) - below)


def ramp(t: Array, *colours: Colour) -> Array:
    """Colour (H, W, 3) of `t` in [0, 1] along equally spaced `colours`."""
    stops = np.linspace(0, 1, len(colours))
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, c) for c in np.array(colours).T], -1).astype(np.float32)
    return table[np.clip(t * 255, 0, 255).astype(np.uint8)]


def hillshade(height: Array, sun: Direction, steepness: float, elevation: float = 0.8) -> Array:
    """Brightness of a lit surface relative to flat ground (1), about 0..1.6.

    `height` and `steepness` share a free unit; `sun` is the unit vector (x, y) towards the sun, `elevation` its sine.
    """
    gx, gy = (cv2.Sobel(height, cv2.CV_32F, dx, dy, scale=steepness / 8) for dx, dy in ((1, 0), (0, 1)))
    flat = np.sqrt(1 - elevation**2) / elevation
    return np.clip((1 - np.float32(flat) * (gx * sun[0] + gy * sun[1])) / np.sqrt(1 + gx * gx + gy * gy), 0, 1.7)


@dataclass(frozen=True)
class Ground:
    """What a painter needs: random generator, picture size (pixels), pixel size (metres), unit vector to the sun."""

    rng: np.random.Generator
    size: int
    pixel: float
    sun: Direction

    def noise(self, wavelength: float, slope: float = 1.8, stretch: float = 1.0, angle: float = 0.0) -> Array:
        """Unit-variance noise (H, W), not periodic; `wavelength` in metres."""
        canvas = cv2.getOptimalDFTSize(self.size + self.size // 4 + 8)
        field = fractal_noise(self.rng, canvas, wavelength / self.pixel, slope, stretch, angle)
        field = field[: self.size, : self.size]
        return (field - field.mean()) / (field.std() + np.float32(1e-6))

    def axes(self, angle: float, warp: float = 0.0) -> tuple[Array, Array]:
        """Ground coordinates (H, W) in metres along and across `angle`, from a random origin, bent by `warp` metres."""
        y, x = np.mgrid[: self.size, : self.size].astype(np.float32) * np.float32(self.pixel)
        u = x * np.cos(angle) + y * np.sin(angle) + self.rng.uniform(1e3, 5e3)
        v = y * np.cos(angle) - x * np.sin(angle) + self.rng.uniform(1e3, 5e3)
        if warp:
            u, v = u + warp * self.noise(400, 2.2), v + warp * self.noise(400, 2.2)
        return u.astype(np.float32), v.astype(np.float32)


def _line(distance: Array, half_width: float, pixel: float) -> Array:
    """Antialiased coverage (H, W) of a line, from the distance to its centre, in metres."""
    return np.clip((np.float32(half_width) - np.abs(distance)) / np.float32(pixel) + np.float32(0.5), 0, 1)


def _table(rng: np.random.Generator, colours: list[Colour], weights: ArrayLike, spread: float) -> Array:
    """2048 colours (2048, 3) drawn from a weighted palette, each jittered in lightness and hue."""
    picks = np.array(colours, np.float32)[rng.choice(len(colours), 2048, p=np.divide(weights, np.sum(weights)))]
    jitter = 1 + spread * rng.standard_normal((2048, 1)) + spread / 3 * rng.standard_normal((2048, 3))
    return (picks * jitter).astype(np.float32)


def _canopy(ground: Ground) -> Array:
    """Tree crowns lit from the side, (H, W, 3)."""
    crowns = ground.noise(7, 1.4)
    shade = hillshade(crowns, ground.sun, 0.75, 0.78) * (1 + 0.10 * crowns)
    hue = np.float32(ground.rng.uniform(0.25, 0.75)) + 0.13 * ground.noise(250)
    return ramp(hue, (0.14, 0.21, 0.14), (0.19, 0.26, 0.16), (0.27, 0.29, 0.18)) * np.clip(shade, 0.35, 1.4)[..., None]


def fields(ground: Ground) -> Array:
    """Patchwork farmland with rows, hedges, tracks, a road and woods."""
    rng = ground.rng
    u, v = ground.axes(rng.uniform(0, np.pi), warp=rng.uniform(2, 12))
    depth = rng.uniform(90, 190)
    block, across = np.divmod(u, np.float32(depth))
    index = block.astype(np.int64) % 512
    width, start = rng.uniform(35, 170, 512).astype(np.float32), rng.uniform(0, 999, 512).astype(np.float32)
    strip, along = np.divmod(v + start[index], width[index])
    plot = (index * 389 + strip.astype(np.int64) * 53) % 2048
    palette: list[Colour] = [
        (0.26, 0.34, 0.20), (0.36, 0.42, 0.26), (0.19, 0.26, 0.18),
        (0.47, 0.40, 0.31), (0.62, 0.56, 0.42), (0.38, 0.31, 0.25),
    ]  # fmt: skip
    colour = _table(rng, palette, rng.dirichlet([2.5, 1.8, 1.2, 1.5, 0.9, 0.5]), 0.09)[plot]
    period = rng.uniform(5, 11, 2048).astype(np.float32)[plot]
    rows = np.sin(2 * np.pi * np.where(plot % 2 == 0, u, v) / period)
    visible = float(np.clip(8 / ground.pixel / 1.5 - 1.0, 0, 1))  # 1 for well sampled rows, 0 for too fine ones
    contrast = rng.uniform(0.01, 0.08, 2048).astype(np.float32)[plot] * visible
    texture = 1 + contrast * rows + 0.05 * ground.noise(120, 1.4) + 0.03 * ground.noise(6, 1.0)
    colour = colour * texture[..., None]
    edge = np.minimum.reduce([across, depth - across, along, width[index] - along])  # metres to the border of the plot
    growth = ground.noise(60, 1.2)
    colour = mix(colour, (0.15, 0.21, 0.12), _line(edge, 3.0, ground.pixel) * smoothstep(-0.1, 0.6, growth) * 0.9)
    colour = mix(colour, (0.56, 0.51, 0.42), _line(edge, 2.0, ground.pixel) * smoothstep(0.3, 0.9, -growth) * 0.7)
    wood = smoothstep(0.0, 0.06, ground.noise(350, 2.0) - np.float32(rng.uniform(0.7, 2.0)))
    colour = mix(colour, _canopy(ground), wood)
    s, _ = ground.axes(rng.uniform(0, np.pi), warp=rng.uniform(10, 50))
    bright = rng.uniform(0.4, 0.72)
    road = s - np.float32(s.mean() + rng.uniform(-0.3, 0.3) * ground.size * ground.pixel)
    return mix(colour, (bright, bright * 0.97, bright * 0.92), _line(road, 4.0, ground.pixel) * 0.85)


def forest(ground: Ground) -> Array:
    """Closed forest on gentle relief, with clearings, a track and often a river."""
    rng = ground.rng
    relief = ground.noise(500, 2.1)
    colour = _canopy(ground) * hillshade(relief, ground.sun, 11 / ground.pixel**0.5, 0.75)[..., None]
    meadow = ramp(0.5 + 0.3 * ground.noise(90), (0.30, 0.35, 0.19), (0.45, 0.42, 0.27), (0.55, 0.47, 0.34))
    colour = mix(colour, meadow, smoothstep(0.0, 0.15, ground.noise(180, 1.7) - np.float32(rng.uniform(1.0, 2.2))))
    s, _ = ground.axes(rng.uniform(0, np.pi), warp=rng.uniform(30, 90))
    s = s - np.float32(s.mean())
    if rng.random() < 0.5:
        half = rng.uniform(8, 26)
        colour = mix(colour, (0.55, 0.52, 0.44), _line(s + 6 * ground.noise(60), half * 1.25, ground.pixel))
        colour = mix(colour, (0.13, 0.20, 0.20), _line(s, half, ground.pixel))
    return mix(colour, (0.52, 0.45, 0.36), _line(s - 120 + 25 * relief, 3.0, ground.pixel) * 0.8)


def town(ground: Ground) -> Array:
    """Street grid with houses, halls with bright roofs, trees, parks and cast shadows."""
    rng, pixel = ground.rng, ground.pixel
    u, v = ground.axes(rng.uniform(0, np.pi), warp=rng.uniform(2, 14))
    long, short = rng.uniform(130, 210), rng.uniform(80, 120)
    bu, iu = np.divmod(u, np.float32(long))
    bv, iv = np.divmod(v, np.float32(short))
    block = (bu.astype(np.int64) * 97 + bv.astype(np.int64) * 31) % 2048
    industrial = rng.random(2048)[block] < rng.choice([0.08, 0.2, 0.5])
    lot_u, lot_v = np.where(industrial, long / 2, long / 8), np.where(industrial, short / 2, short / 4)
    ju, x = np.divmod(iu, lot_u)
    jv, y = np.divmod(iv, lot_v)
    lot = (block * 41 + ju.astype(np.int64) * 7 + jv.astype(np.int64) * 211) % 2048
    fill, shift = rng.uniform(0.24, 0.43, (2, 2048))[:, lot], rng.uniform(-0.07, 0.07, (2, 2048))[:, lot]
    dx, dy = x / lot_u - 0.5 - shift[0], y / lot_v - 0.5 - shift[1]
    street = np.minimum(np.minimum(iu, long - iu), np.minimum(iv, short - iv)).astype(np.float32)
    present = (rng.random(2048) < 0.9)[lot] & (street > 6)
    roof = ((np.abs(dx) < fill[0]) & (np.abs(dy) < fill[1]) & present).astype(np.float32)
    soil = ramp(0.5 + 0.22 * ground.noise(60, 1.3), (0.20, 0.26, 0.15), (0.34, 0.34, 0.26), (0.48, 0.44, 0.37))
    colour = mix(soil, (0.44, 0.43, 0.41), industrial.astype(np.float32) * 0.8)
    trees = smoothstep(0.1, 0.5, ground.noise(26, 1.3) - np.float32(rng.uniform(0.0, 1.0)))
    colour = mix(colour, _canopy(ground), trees)
    tone = rng.uniform(0.28, 0.5)
    colour = mix(colour, (tone, tone, tone * 1.02), _line(street, 5.0, pixel))
    houses: list[Colour] = [
        (0.50, 0.31, 0.24), (0.44, 0.40, 0.37), (0.30, 0.29, 0.30),
        (0.64, 0.60, 0.54), (0.93, 0.93, 0.91), (0.34, 0.45, 0.60),
    ]  # fmt: skip
    weights = [rng.uniform(1, 5), 2.5, 2.0, 1.2, rng.uniform(0.3, 1.8), 0.25]
    lit = np.where(dx * rng.choice([-1, 1]) > 0, 1.08, 0.86).astype(np.float32)
    top = np.clip(_table(rng, houses, weights, 0.08)[lot] * np.where(industrial, 1.0, lit)[..., None], 0, 1)
    length = rng.uniform(5, 11) / pixel
    move = np.array([[1, 0, -ground.sun[0] * length], [0, 1, -ground.sun[1] * length]], np.float32)
    cast = cv2.warpAffine(roof, move, (ground.size, ground.size), borderMode=cv2.BORDER_REPLICATE)
    colour = colour * (1 - 0.55 * cast)[..., None]
    park = smoothstep(0.0, 0.08, ground.noise(300, 2.0) - np.float32(rng.uniform(1.0, 2.4)))
    colour = mix(colour, top.astype(np.float32), roof)
    return mix(colour, _canopy(ground) * 1.2, park)


def coast(ground: Ground) -> Array:
    """Land and water with beach, surf, waves and, in some scenes, sun glint."""
    rng = ground.rng
    height = ground.noise(900, 2.0) + 0.10 * ground.noise(60, 1.5) - np.float32(rng.choice([-0.4, 0.5, 2.0, 9.0]))
    depth = np.clip(0.15 - height * np.float32(rng.uniform(0.25, 0.6)), 0, 1)
    sea = ramp(depth, (0.35, 0.50, 0.47), (0.13, 0.29, 0.36), (0.07, 0.17, 0.27), (0.05, 0.13, 0.23))
    waves = ground.noise(22, 1.2, 4.0, rng.uniform(0, np.pi))
    sea = sea * (1 + 0.10 * waves + 0.06 * ground.noise(300))[..., None]
    if rng.random() < 0.35:
        glint = smoothstep(-0.6, 2.2, ground.noise(900, 2.4)) * np.float32(rng.uniform(0.4, 0.9))
        sparkle = np.clip(0.55 + 0.30 * waves + 0.22 * ground.noise(5, 0.8), 0, 1.3)
        sea = mix(sea, (0.93, 0.93, 0.90), np.clip(glint * sparkle, 0, 1))
    inland = 0.3 + 0.25 * height + 0.12 * ground.noise(80, 1.4)
    land = ramp(inland, (0.42, 0.40, 0.29), (0.27, 0.32, 0.20), (0.21, 0.27, 0.17), (0.40, 0.36, 0.28))
    land = mix(land, _canopy(ground), smoothstep(0.2, 0.7, ground.noise(150, 1.6)))
    land = land * hillshade(height, ground.sun, 16 / ground.pixel**0.5, 0.8)[..., None]
    land = mix(land, (0.80, 0.74, 0.60), 1 - smoothstep(0.03, 0.12, height + 0.03 * waves))
    colour = mix(sea, land, smoothstep(-0.012, 0.012, height))
    surf = np.exp(-(((height + 0.035 + 0.025 * ground.noise(120)) / 0.018) ** 2)) * smoothstep(-0.6, 0.8, waves)
    return mix(colour, (0.92, 0.95, 0.95), 0.9 * surf)


def mountains(ground: Ground) -> Array:
    """Bare ridges under a low sun, scrub in the valleys and snow above a ragged snow line."""
    rng = ground.rng
    ridge: Array = -np.abs(ground.noise(700, 2.2))
    height: Array = 0.75 * ground.noise(1200, 2.4) + 0.7 * ridge
    shade = hillshade(height, ground.sun, rng.uniform(30, 50) / ground.pixel**0.5, 0.72)
    warm = rng.uniform(0, 1)
    rock = (0.40 + 0.12 * warm, 0.37 + 0.04 * warm, 0.35 - 0.06 * warm)
    low = (0.27, 0.30, 0.19) if rng.random() < 0.6 else (0.52, 0.43, 0.33)
    colour = ramp(0.55 + 0.28 * height + 0.10 * ground.noise(60, 1.3), low, low, rock, (0.50, 0.47, 0.44))
    colour = colour * (1 + 0.08 * ground.noise(12, 1.1))[..., None]
    line = np.float32(np.quantile(height, rng.choice([1.0, 0.8, 0.6, 0.4], p=[0.45, 0.3, 0.2, 0.05])))
    patchy = 0.28 * ground.noise(90, 1.4) - 0.5 * np.clip(0.75 - shade, 0, 1)
    snow = smoothstep(0.0, 0.10, height - line + patchy) * np.float32(line < height.max())
    white = ramp(shade / 1.3, (0.42, 0.48, 0.60), (0.72, 0.76, 0.83), (0.96, 0.96, 0.97))
    return mix(colour * (0.18 + 0.82 * shade)[..., None], white, snow)


def desert(ground: Ground) -> Array:
    """Sand with dunes, rock outcrops, dry channels and, in some scenes, a bright salt flat."""
    rng = ground.rng
    sands: list[Colour] = [
        (0.72, 0.61, 0.45), (0.65, 0.47, 0.34), (0.80, 0.72, 0.58), (0.58, 0.48, 0.38), (0.61, 0.40, 0.30)
    ]  # fmt: skip
    first, second = rng.choice(len(sands), 2, replace=False)
    colour = ramp(0.5 + 0.25 * ground.noise(600, 1.6), sands[first], sands[second])
    u, _ = ground.axes(rng.uniform(0, np.pi))
    phase = u / np.float32(rng.uniform(80, 240)) + np.float32(rng.uniform(0.3, 0.8)) * ground.noise(500, 2.4)
    saw = phase - np.floor(phase)
    dune = np.where(saw < 0.72, saw / 0.72, (1 - saw) / 0.28).astype(np.float32)
    rounded: Array = cv2.GaussianBlur(dune * dune, (0, 0), max(0.6, 2.5 / ground.pixel)).astype(np.float32)
    relief: Array = rounded * smoothstep(-0.8, 0.9, ground.noise(700, 2.0)) * np.float32(rng.uniform(3, 9))
    relief = relief + 0.35 * ground.noise(160, 1.8)
    colour = colour * hillshade(relief, ground.sun, 1.1 / ground.pixel**0.3, 0.72)[..., None]
    colour = colour * (1 + 0.035 * ground.noise(10, 1.0))[..., None]
    outcrop = smoothstep(0.0, 0.25, ground.noise(420, 1.7) - np.float32(rng.uniform(0.6, 2.2)))
    rock = np.array((0.36, 0.29, 0.24), np.float32) * hillshade(ground.noise(250, 2.0), ground.sun, 9, 0.75)[..., None]
    colour = mix(colour, rock, outcrop)
    channel = smoothstep(0.93, 1.0, 1 - np.abs(ground.noise(700, 1.9))) * smoothstep(-0.3, 0.8, ground.noise(500))
    colour = mix(colour, (0.46, 0.42, 0.31), 0.7 * channel)
    if rng.random() < 0.4:
        salt = smoothstep(0.0, 0.35, ground.noise(800, 1.7) - np.float32(rng.uniform(0.1, 0.9)))
        crust = np.clip(0.9 + 0.04 * ground.noise(14, 1.1) + 0.05 * ground.noise(200), 0, 1)
        colour = mix(colour, crust[..., None] * np.array((1.0, 0.99, 0.96), np.float32), salt)
    return colour


def snow(ground: Ground) -> Array:
    """Snow plain with wind drifts, thin places, dark scrub, woods and a river."""
    rng = ground.rng
    relief = ground.noise(900, 2.3) + 0.05 * ground.noise(90, 1.8, 3.0, rng.uniform(0, np.pi))
    shade = hillshade(relief, ground.sun, rng.uniform(14, 30) / ground.pixel**0.5, 0.76)
    lightness = shade / 1.35 + 0.02 * ground.noise(8, 1.0)
    colour = ramp(lightness, (0.40, 0.46, 0.57), (0.70, 0.75, 0.82), (0.95, 0.96, 0.98))
    soil = np.array((0.34, 0.30, 0.26), np.float32) * (1 + 0.2 * ground.noise(20, 1.2))[..., None]
    bare = smoothstep(0.0, 0.4, ground.noise(260, 1.4) - np.float32(rng.uniform(0.6, 2.0)))
    colour = mix(colour, soil * shade[..., None], bare)
    scrub = smoothstep(1.6, 2.3, ground.noise(9, 1.2) + 0.9 * ground.noise(300))
    colour = mix(colour, (0.19, 0.20, 0.19), 0.85 * scrub)
    wood = smoothstep(0.0, 0.12, ground.noise(400, 1.8) - np.float32(rng.uniform(0.3, 1.6)))
    colour = mix(colour, _canopy(ground) * 0.85 + 0.05, wood)
    s, _ = ground.axes(rng.uniform(0, np.pi), warp=70)
    return mix(colour, (0.18, 0.22, 0.26), _line(s - np.float32(s.mean()), rng.uniform(0, 25), ground.pixel))


PAINTERS: dict[str, Callable[[Ground], Array]] = {
    painter.__name__: painter for painter in (fields, forest, town, coast, mountains, desert, snow)
}
