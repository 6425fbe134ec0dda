"""Procedural parts: a smooth body as a height field, its paint, and marks whose colour and relief go together.

Lengths are millimetres, colours linear from 0 to 1. Every part has two kinds of marks: those of the first colour are
always raised, those of the second always sunken. Either is normal everywhere, so only who sees colour and relief at
once can tell that a mark has the wrong one of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Generator = np.random.Generator
COMMON_FIELD = 116.0
"""Width of what a square image shows."""


@dataclass(frozen=True)
class Mark:
    """A chip, a seed, a stud or a ring.

    Attributes:
        u: Centre along the part's first axis.
        v: Centre along the second axis; unused for a ring.
        radii: Half axes along its own axes; infinite across a ring.
        angle: Angle of its first axis, in radians.
        kind: 0 for raised, 1 for sunken.
        amount: Height or depth of the relief, positive.
    """

    u: float
    v: float
    radii: tuple[float, float]
    angle: float
    kind: int
    amount: float

    def distance(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the distance from the centre in units of the half axes: 1 on the outline."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        du, dv = u - self.u, v - self.v
        if np.isinf(self.radii[1]):
            return np.abs(du) / self.radii[0]
        return np.hypot((cosine * du + sine * dv) / self.radii[0], (cosine * dv - sine * du) / self.radii[1])


@dataclass
class Part:
    """A part before it is marked, on the pixel grid.

    Attributes:
        u: (H, W), first coordinate of the part's own frame.
        v: (H, W), second one.
        height: (H, W), height of the smooth body above the background, 0 beside it.
        albedo: (H, W, 3), albedo of the body.
        marks: Marks on it.
        mark_colours: Colours of the two kinds of marks.
    """

    u: np.ndarray
    v: np.ndarray
    height: np.ndarray
    albedo: np.ndarray
    marks: list[Mark]
    mark_colours: np.ndarray


def smooth_noise(rng: Generator, shape: tuple[int, int], cells: float) -> np.ndarray:
    """Return noise (H, W) of unit variance on its grid, with about ``cells`` bumps along the longer side."""
    from PIL import Image

    scale = cells / max(shape)
    grid = rng.standard_normal((max(2, round(shape[0] * scale)), max(2, round(shape[1] * scale)))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float64)


def _vary(rng: Generator, colour: tuple[float, float, float], spread: float = 0.04) -> np.ndarray:
    """Return a colour a little lighter or darker and of a slightly different hue."""
    return np.clip(np.array(colour) * rng.uniform(0.88, 1.12) + rng.normal(0, spread / 2, 3), 0.02, 0.98)


def _paint(colour: np.ndarray, *noises: tuple[np.ndarray, float]) -> np.ndarray:
    """Return a colour (H, W, 3) mottled by noises, each with its amplitude."""
    gain = 1 + sum(noise * amplitude for noise, amplitude in noises)
    return np.asarray(colour * np.asarray(gain)[..., None])


def _turn(x: np.ndarray, y: np.ndarray, angle: float, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in a frame that is shifted and then turned by an angle."""
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = x - shift[0], y - shift[1]
    return cosine * x + sine * y, cosine * y - sine * x


def _dome(distance: np.ndarray, power: float) -> np.ndarray:
    """Return a profile that is 1 in the middle and falls to 0 at distance 1; the larger the power, the flatter."""
    return np.sqrt(np.clip(1 - np.abs(distance) ** power, 0, None))


def _scatter(rng: Generator, n: int, draw: Callable[[], tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Draw up to ``n`` places that keep a gap."""
    places: list[tuple[float, float]] = []
    for _ in range(40 * n):
        u, v = draw()
        if all(np.hypot(u - a, v - b) >= gap for a, b in places):
            places.append((u, v))
            if len(places) == n:
                break
    return places


def _kinds(rng: Generator, n: int) -> np.ndarray:
    """Draw the kinds of n marks; both occur."""
    kinds = rng.integers(2, size=n)
    kinds[: min(2, n)] = np.arange(min(2, n))
    return rng.permutation(kinds)


def cookie(rng: Generator, x: np.ndarray, y: np.ndarray) -> Part:
    """A biscuit: chips of dark chocolate stand out, drops of white chocolate have sunk in."""
    u, v = _turn(x, y, rng.uniform(0, 2 * np.pi), rng.uniform(-6, 6, 2))
    radius = rng.uniform(34, 38)
    outline = smooth_noise(rng, x.shape, 7) * 0.6
    height = rng.uniform(12, 14) * _dome((np.hypot(u, v) + outline) / radius, 6)
    height += (smooth_noise(rng, x.shape, 9) * 0.5 + smooth_noise(rng, x.shape, 40) * 0.12) * (height > 0)
    colour = _vary(rng, (0.72, 0.5, 0.28))
    grain = ((smooth_noise(rng, x.shape, 8), 0.06), (smooth_noise(rng, x.shape, 60), 0.05))
    baked = np.clip(np.hypot(u, v) / radius - 0.7, 0, 1)[..., None] * np.array([0.25, 0.28, 0.2])

    def place() -> tuple[float, float]:
        r, a = (radius - 8) * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        return r * np.cos(a), r * np.sin(a)

    places = _scatter(rng, int(rng.integers(9, 14)), place, 12.5)
    marks = [
        Mark(a, b, (rng.uniform(4.2, 5.6), rng.uniform(4.2, 5.6)), rng.uniform(0, np.pi), int(k), rng.uniform(1.8, 2.6))
        for (a, b), k in zip(places, _kinds(rng, len(places)), strict=True)
    ]
    colours = np.stack([_vary(rng, (0.2, 0.11, 0.07)), _vary(rng, (0.92, 0.86, 0.74))])
    return Part(u, v, height, _paint(colour, *grain) - baked, marks, colours)


def bagel(rng: Generator, x: np.ndarray, y: np.ndarray) -> Part:
    """A ring: pumpkin seeds lie on it, olives are pressed in."""
    u, v = _turn(x, y, rng.uniform(0, 2 * np.pi), rng.uniform(-5, 5, 2))
    ring, tube = rng.uniform(25, 27.5), rng.uniform(13, 14.5)
    across = (np.hypot(u, v) - ring + smooth_noise(rng, x.shape, 6) * 0.7) / tube
    height = rng.uniform(20, 23) * _dome(across, 2.4)
    height += smooth_noise(rng, x.shape, 8) * 0.6 * (height > 0)
    crust = np.clip(1 - across**2, 0, 1)[..., None] * np.array([-0.08, -0.14, -0.14])
    grain = ((smooth_noise(rng, x.shape, 7), 0.09), (smooth_noise(rng, x.shape, 50), 0.03))
    albedo = _paint(_vary(rng, (0.8, 0.58, 0.34)), *grain) + crust

    def place() -> tuple[float, float]:
        r, a = ring + rng.uniform(-5.5, 5.5), rng.uniform(0, 2 * np.pi)
        return r * np.cos(a), r * np.sin(a)

    places = _scatter(rng, int(rng.integers(9, 14)), place, 12.5)
    marks = [
        Mark(a, b, (rng.uniform(5.0, 6.4), rng.uniform(3.2, 3.8)), rng.uniform(0, np.pi), int(k), rng.uniform(1.8, 2.5))
        for (a, b), k in zip(places, _kinds(rng, len(places)), strict=True)
    ]
    colours = np.stack([_vary(rng, (0.62, 0.68, 0.4)), _vary(rng, (0.2, 0.2, 0.16))])
    return Part(u, v, height, albedo, marks, colours)


def tray(rng: Generator, x: np.ndarray, y: np.ndarray) -> Part:
    """A ridged plate of moulded plastic: orange studs stand on it, blue sockets are let in."""
    u, v = _turn(x, y, rng.uniform(-0.35, 0.35) + rng.integers(4) * np.pi / 2, rng.uniform(-4, 4, 2))
    half = rng.uniform(31, 34)
    edge = (np.abs(u / half) ** 8 + np.abs(v / half) ** 8) ** (1 / 8)
    height = rng.uniform(10.5, 12.5) * _dome(edge, 14)
    height += 0.35 * np.cos(2 * np.pi * v / rng.uniform(4.5, 5.5) + rng.uniform(0, 6)) * (edge < 0.93)
    height += smooth_noise(rng, x.shape, 4) * 0.35 * (edge < 1)
    grain = ((smooth_noise(rng, x.shape, 5), 0.03), (smooth_noise(rng, x.shape, 90), 0.025))
    albedo = _paint(_vary(rng, (0.62, 0.64, 0.62), 0.06), *grain)
    pitch = half * 0.52
    grid = [(i * pitch, j * pitch) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    places = [(a + rng.uniform(-2.5, 2.5), b + rng.uniform(-2.5, 2.5)) for a, b in grid if rng.uniform() < 0.9]
    marks = [
        Mark(a, b, (r, r), 0.0, int(k), rng.uniform(1.8, 2.4))
        for (a, b), k, r in zip(
            places, _kinds(rng, len(places)), rng.uniform(4.4, 5.6, len(places)), strict=True
        )
    ]  # fmt: skip
    colours = np.stack([_vary(rng, (0.88, 0.46, 0.14)), _vary(rng, (0.16, 0.3, 0.62))])
    return Part(u, v, height, albedo, marks, colours)


def _rings(rng: Generator, length: float, n: int, half_width: tuple[float, float]) -> list[Mark]:
    """Draw n rings along a bar, each in a stretch of its own."""
    stretch = 2 * length / n
    centres = -length + stretch * (np.arange(n) + 0.5) + rng.uniform(-0.22, 0.22, n) * stretch
    return [
        Mark(float(c), 0.0, (rng.uniform(*half_width), np.inf), 0.0, int(k), rng.uniform(1.7, 2.4))
        for c, k in zip(centres, _kinds(rng, n), strict=True)
    ]


def rope(rng: Generator, x: np.ndarray, y: np.ndarray) -> Part:
    """A laid rope: whippings of blue twine stand out, red bands are drawn tight. Its images are twice as wide as high.

    The strands' twist is part of the body, the paint follows it.
    """
    u, v = _turn(x, y, rng.uniform(-0.06, 0.06), rng.uniform(-4, 4, 2))
    v = v + rng.uniform(2, 6) * np.sin(u / rng.uniform(24, 34) + rng.uniform(0, 6))
    radius, length = rng.uniform(11, 12.5), rng.uniform(66, 70)
    ends = np.clip((np.abs(u) - length) / 4, 0, 1) ** 2
    phase = 2 * np.pi * (u + 0.9 * v) / rng.uniform(10.5, 12) + rng.uniform(0, 6)
    height = (rng.uniform(19, 22) - 0.6 + 0.6 * np.cos(phase)) * _dome(np.hypot(v / radius, ends), 2.4)
    height += smooth_noise(rng, x.shape, 12) * 0.4 * (height > 0)
    fibres = smooth_noise(rng, x.shape, 110)
    grain = ((np.cos(phase), 0.1), (fibres, 0.06), (smooth_noise(rng, x.shape, 7), 0.05))
    albedo = _paint(_vary(rng, (0.74, 0.68, 0.55)), *grain)
    marks = _rings(rng, length - 8, int(rng.integers(6, 9)), (3.6, 4.6))
    colours = np.stack([_vary(rng, (0.14, 0.3, 0.58)), _vary(rng, (0.68, 0.16, 0.16))])
    return Part(u, v, height, albedo, marks, colours)


def dowel(rng: Generator, x: np.ndarray, y: np.ndarray) -> Part:
    """A turned wooden pin: dark collars stand out, green rings lie in grooves."""
    u, v = _turn(x, y, rng.uniform(-0.5, 0.5) + rng.choice([0.6, -0.6]), rng.uniform(-4, 4, 2))
    radius, length = rng.uniform(13, 15), rng.uniform(37, 40)
    ends = np.clip((np.abs(u) - length + 5) / 5, 0, None)
    height = rng.uniform(22, 25) * _dome(np.hypot(v / radius, ends), 2.6)
    height += smooth_noise(rng, x.shape, 5) * 0.3 * (height > 0)
    years = np.sin(2 * np.pi * (v + smooth_noise(rng, x.shape, 5) * 1.6 + u * 0.05) / rng.uniform(3.2, 4.6))
    grain = ((years, 0.07), (smooth_noise(rng, x.shape, 70), 0.03), (smooth_noise(rng, x.shape, 5), 0.04))
    albedo = _paint(_vary(rng, (0.78, 0.62, 0.42)), *grain)
    marks = _rings(rng, length - 6, int(rng.integers(4, 6)), (2.8, 3.6))
    colours = np.stack([_vary(rng, (0.24, 0.15, 0.12)), _vary(rng, (0.2, 0.5, 0.42))])
    return Part(u, v, height, albedo, marks, colours)


PARTS: dict[str, Callable[[Generator, np.ndarray, np.ndarray], Part]] = {
    "bagel_ring": bagel,
    "chip_cookie": cookie,
    "laid_rope": rope,
    "stud_tray": tray,
    "turned_dowel": dowel,
}
WIDE = ("laid_rope",)
