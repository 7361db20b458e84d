"""Antialiased painting with signed distances: the few shapes that birds, leaves and branches are made of.

A shape knows its bounding box and the signed distance of points to its edge (negative inside). A `Canvas` paints a
shape only inside the pixel window of that box, which is what makes a 160-pixel bird cost two milliseconds.
Coordinates are the bird's own: x to the right, y up, the body about one unit long.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Shape(NamedTuple):
    """Signed distance function with the box (x0, y0, x1, y1) outside of which it is positive."""

    box: tuple[float, float, float, float]
    distance: Distance


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> Shape:
    """Ellipse with radii (rx, ry), turned by `angle` radians; first-order distance, exact on the edge."""
    c, s = np.cos(angle), np.sin(angle)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = x - cx, y - cy
        u, v = (c * dx + s * dy) / rx, (c * dy - s * dx) / ry
        k0, k1 = np.sqrt(u * u + v * v), np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + 1e-9
        return k0 * (k0 - 1.0) / k1

    hx, hy = np.hypot(rx * c, ry * s), np.hypot(rx * s, ry * c)
    return Shape((cx - hx, cy - hy, cx + hx, cy + hy), distance)


def capsule(x0: float, y0: float, x1: float, y1: float, r0: float, r1: float | None = None) -> Shape:
    """Thick segment from (x0, y0) to (x1, y1) whose radius goes from r0 to r1."""
    r1 = r0 if r1 is None else r1
    dx, dy = x1 - x0, y1 - y0
    length2 = dx * dx + dy * dy + 1e-12

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        px, py = x - x0, y - y0
        t = np.clip((px * dx + py * dy) / length2, 0.0, 1.0)
        return np.hypot(px - t * dx, py - t * dy) - (r0 + t * (r1 - r0))

    r = max(r0, r1)
    return Shape((min(x0, x1) - r, min(y0, y1) - r, max(x0, x1) + r, max(y0, y1) + r), distance)


def polygon(*points: tuple[float, float]) -> Shape:
    """Convex polygon, corners counter-clockwise."""
    xs, ys = np.array(points, dtype=np.float64).T
    edges = []
    for i in range(len(points)):
        ex, ey = xs[i] - xs[i - 1], ys[i] - ys[i - 1]
        norm = np.hypot(ex, ey) + 1e-12
        edges.append((ey / norm, -ex / norm, xs[i - 1], ys[i - 1]))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        out = np.full(np.broadcast(x, y).shape, -np.inf, dtype=np.float32)
        for nx, ny, px, py in edges:
            np.maximum(out, nx * (x - px) + ny * (y - py), out=out)
        return out

    return Shape((xs.min(), ys.min(), xs.max(), ys.max()), distance)


def both(a: Shape, b: Shape) -> Shape:
    """Intersection of two shapes."""
    box = (max(a.box[0], b.box[0]), max(a.box[1], b.box[1]), min(a.box[2], b.box[2]), min(a.box[3], b.box[3]))
    return Shape(box, lambda x, y: np.maximum(a.distance(x, y), b.distance(x, y)))


def either(*shapes: Shape) -> Shape:
    """Union of shapes."""
    boxes = np.array([shape.box for shape in shapes])
    box = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
    return Shape(box, lambda x, y: reduce(np.minimum, (shape.distance(x, y) for shape in shapes)))


class Canvas:
    """An image under construction, with the part that is frontmost at every pixel.

    The origin of the bird's coordinates is at the pixel `center` (x, y), a unit is `scale` pixels long; the bird is
    tilted by `angle` radians counter-clockwise, and with `mirror` looks to the left instead of to the right.

    Attributes:
        rgb: (S, S, 3) float32 in [0, 1], the background, painted on in place.
        parts: (S, S) uint8, 0 where no part is visible.
    """

    def __init__(
        self, background: np.ndarray, center: tuple[float, float] = (0.0, 0.0), scale: float = 1.0, angle: float = 0.0,
        mirror: bool = False,
    ) -> None:  # fmt: skip
        self.rgb = background
        self.parts, self.scale = np.zeros(background.shape[:2], dtype=np.uint8), scale
        side = background.shape[0]
        px = np.arange(side, dtype=np.float32)[None, :] + np.float32(0.5 - center[0])
        py = np.float32(center[1] - 0.5) - np.arange(side, dtype=np.float32)[:, None]
        sign = -1.0 if mirror else 1.0
        # bird -> pixel: p = scale * R(angle) (sign * x, y)
        to_pixel = scale * np.array([[sign * np.cos(angle), -np.sin(angle)], [sign * np.sin(angle), np.cos(angle)]])
        self._to_pixel = to_pixel.tolist()
        (a, b), (c, d) = np.linalg.inv(to_pixel).astype(np.float32)
        self.x, self.y = a * px + b * py, c * px + d * py
        self._center = center

    def _window(self, box: tuple[float, float, float, float]) -> tuple[slice, slice]:
        (a, b), (c, d) = self._to_pixel
        corners = [(x, y) for x in box[::2] for y in box[1::2]]
        xs = [self._center[0] + a * x + b * y for x, y in corners]
        ys = [self._center[1] - c * x - d * y for x, y in corners]
        edges = min(ys) - 2, max(ys) + 3, min(xs) - 2, max(xs) + 3
        top, bottom, left, right = (int(min(max(edge, 0), len(self.rgb))) for edge in edges)
        return slice(top, bottom), slice(left, right)

    def paint(
        self, shape: Shape, color: np.ndarray, part: int, *,
        ink: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None, shade: float = 0.0,
    ) -> None:  # fmt: skip
        """Paint a shape in a color (3,) over what is there; `part` is seen where that covers more than half a pixel.

        The coverage of a pattern, `ink` (x, y) -> [0, 1], is multiplied with the shape's; `shade` darkens toward the
        lower edge, as a fraction per unit of y.
        """
        window = self._window(shape.box)
        x, y = self.x[window], self.y[window]
        if x.size == 0:
            return
        alpha = np.minimum(np.maximum(0.5 - shape.distance(x, y) * self.scale, 0.0), 1.0)
        if ink is not None:
            alpha = alpha * ink(x, y)
        alpha = alpha.astype(np.float32)
        light, painted = 1.0 + shade * y, self.rgb[window]
        for channel, level in enumerate(np.asarray(color, dtype=np.float32)):  # a loop over threes would be slower
            target = np.minimum(np.maximum(level * light, 0.0), 1.0) if shade else level
            painted[..., channel] += alpha * (target - painted[..., channel])
        self.parts[window][alpha > 0.5] = part
