"""Draws one bird: attribute vector and pose -> RGB image and a map of its visible parts."""

from typing import NamedTuple

import numpy as np

from clipviz.birds.shapes import Canvas, Distance, Shape, both, capsule, either, ellipse, polygon
from clipviz.birds.world import WORLD, decode

IMAGE_SIDE = 160
"""Pixels of a rendered image: 2.5 times the bundled model's input, so that a crop shows detail the whole view lost."""

PART_NAMES = tuple(WORLD["parts"])
PART_ID = {name: i for i, name in enumerate(PART_NAMES)}
ATTRIBUTE_PARTS: dict[str, list[str]] = WORLD["attribute_parts"]
COLORS: dict[str, list[float]] = WORLD["colors"]


class Plan(NamedTuple):
    """Proportions of a body plan in bird coordinates (see `shapes`)."""

    body: tuple[float, float, float]  # rx, ry, angle; centered at the origin
    head: tuple[float, float, float]  # cx, cy, radius
    neck: float  # radius of the neck, 0 = none
    tail: tuple[float, float, float, float, float]  # root x, y, direction, length, half width
    forked: bool
    wing: tuple[float, float, float, float, float]  # cx, cy, rx, ry, angle
    legs: tuple[float, float, float]  # hip x of the rear leg, hip y, length
    eye: float  # radius
    middle: tuple[float, float]  # middle of the whole bird: what a picture is centered on


PLANS = {name: Plan(**proportions) for name, proportions in WORLD["plans"].items()}


class Pose(NamedTuple):
    """How a bird sits in the image."""

    center: tuple[float, float]  # of the bird, as a fraction of the side, (x, y) with y down
    size: float  # length of one bird unit as a fraction of the side
    angle: float  # tilt in radians
    mirror: bool  # looks to the left
    proportions: np.ndarray  # (4,) factors near 1 on body width, body height, head radius and tail length
    tint: np.ndarray  # (3,) factors near 1 on every color of the bird
    light: float  # darkening toward the belly, as a fraction per unit


def sample_pose(rng: np.random.Generator, size: float = 1.0) -> Pose:
    """A random pose; `size` scales the bird (1 = it spans about three quarters of the picture)."""
    low, high = 0.42 * size, 0.54 * size
    spread = 0.05 + 0.22 * (1.0 - min(size, 1.0))
    return Pose(
        center=(0.5 + rng.uniform(-spread, spread), 0.50 + rng.uniform(-spread, spread)), size=rng.uniform(low, high),
        angle=rng.normal(0.0, 0.10), mirror=bool(rng.random() < 0.5), proportions=np.exp(rng.normal(0.0, 0.05, 4)),
        tint=np.exp(rng.normal(0.0, 0.06, 3)) * np.exp(rng.normal(0.0, 0.06)), light=rng.uniform(0.1, 0.5),
    )  # fmt: skip


def draw_bird(background: np.ndarray, code: np.ndarray, pose: Pose) -> np.ndarray:
    """Paint the bird with the attributes `code` (A,) on a background (S, S, 3) float32 in [0, 1], in place.

    Returns for every pixel the id of the part that is visible there, (S, S) uint8, as in `PART_NAMES`.
    """
    values = decode(code)
    plan, side = _posed(PLANS[values["plan"]], pose), background.shape[0]
    dx, dy = plan.middle[0] * pose.size * (-1.0 if pose.mirror else 1.0), plan.middle[1] * pose.size
    origin = ((pose.center[0] - dx) * side, (pose.center[1] + dy) * side)
    canvas = Canvas(background, origin, pose.size * side, pose.angle, pose.mirror)
    for draw in (_draw_legs, _draw_tail, _draw_body, _draw_wing, _draw_head):
        draw(_Painter(canvas, pose), plan, values)
    return canvas.parts


def _posed(plan: Plan, pose: Pose) -> Plan:
    fx, fy, fh, ft = pose.proportions
    (rx, ry, angle), (hx, hy, hr), (tx, ty, td, tl, tw) = plan.body, plan.head, plan.tail
    return plan._replace(
        body=(rx * fx, ry * fy, angle), head=(hx * fx, hy * fy, hr * fh), tail=(tx * fx, ty * fy, td, tl * ft, tw),
        legs=(plan.legs[0], plan.legs[1] * fy, plan.legs[2]),
    )  # fmt: skip


class _Painter:
    """`Canvas.paint` with colors and parts by name, in the light of a pose."""

    def __init__(self, canvas: Canvas, pose: Pose) -> None:
        self.canvas, self.pose = canvas, pose

    def color(self, name: str) -> np.ndarray:
        return np.clip(np.array(COLORS[name]) * self.pose.tint, 0.0, 1.0)

    def __call__(self, shape: Shape, color: str | np.ndarray, part: str, **options: object) -> None:
        rgb = self.color(color) if isinstance(color, str) else color
        self.canvas.paint(shape, rgb, PART_ID[part], shade=self.pose.light, **options)  # type: ignore[arg-type]


def _draw_legs(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    (x, y, length), width = plan.legs, 0.024
    for dx in (0.0, 0.13):
        foot = (x + dx + 0.02, y - length)
        leg = capsule(x + dx, y + 0.08, *foot, width)
        toes = capsule(foot[0] - 0.03, foot[1], foot[0] + 0.09, foot[1] - 0.01, width * 0.9)
        paint(either(leg, toes), values["legs"], "legs")


def _draw_tail(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    x, y, direction, length, width = plan.tail
    turns, end = ((-0.16, 0.16), 0.35) if plan.forked else ((0.0,), 0.9)
    tips = [(x + length * np.cos(direction + turn), y + length * np.sin(direction + turn)) for turn in turns]
    tail = either(*(capsule(x, y, *tip, width * 1.3, width * end) for tip in tips))
    paint(tail, 0.72 * paint.color(values["body"]), "tail")
    if values["tail_tip"] != "no":
        dx, dy = np.cos(direction), np.sin(direction)
        # the outermost part of the tail; at least a fixed length, so that short tails show it too
        start = length - max(0.15, 0.25 * length)

        def beyond(px: np.ndarray, py: np.ndarray) -> np.ndarray:
            return start - ((px - x) * dx + (py - y) * dy)

        paint(both(tail, Shape(tail.box, beyond)), values["tail_tip"], "tail_tip")


def _draw_body(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    rx, ry, angle = plan.body
    paint(ellipse(0.0, 0.0, rx, ry, angle), values["body"], "body")
    if plan.neck:
        hx, hy, hr = plan.head
        neck = capsule(0.62 * rx, 0.40 * ry, hx - 0.2 * hr, hy - 0.3 * hr, plan.neck * 1.5, plan.neck)
        paint(neck, values["body"], "body")
    c, s = np.cos(angle), np.sin(angle)
    # the breast: front lower side of the body, in a pale shade of its color
    cx, cy = 0.42 * rx * c + 0.42 * ry * s, 0.42 * rx * s - 0.42 * ry * c
    breast = both(ellipse(cx, cy, 0.62 * rx, 0.66 * ry, angle), ellipse(0.0, 0.0, 0.97 * rx, 0.97 * ry, angle))
    pale = 0.42 * paint.color(values["body"]) + 0.58 * np.array([0.97, 0.94, 0.86])
    paint(breast, np.clip(pale, 0, 1), "breast")
    pattern = _breast_pattern(values["breast"], angle)
    if pattern is not None:
        paint(breast, 0.30 * paint.color(values["body"]), "breast", ink=pattern)


def _breast_pattern(name: str, angle: float) -> Distance | None:
    """Coverage of the dark marks, 0..1, as a function of position; None for a plain breast."""

    def wave(t: np.ndarray, period: float, share: float) -> np.ndarray:
        """1 on the given share of every period, soft edges."""
        distance = np.abs((t / period) % 1.0 - 0.5) * 2.0
        return np.clip((share - distance) * 5.0 + 0.5, 0.0, 1.0)

    if name == "plain":
        return None
    if name == "streaked":  # along the height of the bird, broken into dashes
        return lambda x, y: wave(x + 0.15 * y, 0.085, 0.42)
    if name == "barred":  # across
        return lambda x, y: wave(y - 0.1 * x, 0.085, 0.42)

    c, s, period = np.cos(angle), np.sin(angle), 0.115

    def spots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, v = c * x + s * y, c * y - s * x
        row = np.floor(v / period)
        du = ((u / period + 0.5 * (row % 2)) % 1.0 - 0.5) * period
        dv = ((v / period) % 1.0 - 0.5) * period
        return np.clip((0.036 - np.hypot(du, dv)) * 40.0 + 0.5, 0.0, 1.0)

    return spots


def _draw_wing(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    cx, cy, rx, ry, angle = plan.wing
    wing = ellipse(cx, cy, rx, ry, angle)
    c, s = np.cos(angle), np.sin(angle)
    # a thin dark rim separates a wing from a body of the same color
    paint(ellipse(cx, cy, rx + 0.018, ry + 0.018, angle), 0.45 * paint.color(values["wing"]), "wing")
    paint(wing, values["wing"], "wing")
    if values["wing_bars"] == "no":
        return
    for along in (0.05, 0.42):
        mx, my = cx + along * rx * c, cy + along * rx * s
        half = 0.86 * ry
        # across the wing, leaning back
        bar = capsule(mx - s * half + 0.05 * c, my + c * half, mx + s * half - 0.05 * c, my - c * half, 0.030)
        paint(both(bar, wing), values["wing_bars"], "wing_bars")


def _draw_head(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    hx, hy, r = plan.head
    head = ellipse(hx, hy, r, r)
    _draw_beak(paint, plan, values)
    paint(head, values["body"], "head")
    if values["throat"] != "no":
        paint(ellipse(hx + 0.28 * r, hy - 0.82 * r, 0.58 * r, 0.62 * r), values["throat"], "throat")
    if values["cap"] != "no":
        cap = both(head, ellipse(hx - 0.10 * r, hy + 0.92 * r, 1.05 * r, 0.72 * r))
        paint(cap, values["cap"], "cap")
    ex, ey = hx + (0.36 * r if values["plan"] != "owl" else 0.30 * r), hy + 0.06 * r
    if values["eye_ring"] != "no":
        paint(ellipse(ex, ey, plan.eye + 0.042, plan.eye + 0.042), values["eye_ring"], "eye_ring")
    paint(ellipse(ex, ey, plan.eye, plan.eye), np.array([0.04, 0.03, 0.03]), "eye")
    glint = 0.34 * plan.eye
    paint(ellipse(ex + glint, ey + glint, glint, glint), np.array([0.95, 0.95, 0.95]), "eye")


def _draw_beak(paint: _Painter, plan: Plan, values: dict[str, str]) -> None:
    hx, hy, r = plan.head
    unit = 0.55 * r + 0.055  # small heads have relatively larger beaks
    x0, y0 = hx + 0.80 * r, hy - 0.08 * r
    shapes = {
        "short": polygon((x0, y0 - 0.42 * unit), (x0 + 1.15 * unit, y0 - 0.05 * unit), (x0, y0 + 0.42 * unit)),
        "long": polygon((x0, y0 - 0.26 * unit), (x0 + 2.7 * unit, y0 - 0.16 * unit), (x0, y0 + 0.26 * unit)),
        "hooked": either(
            polygon((x0, y0 - 0.34 * unit), (x0 + 1.2 * unit, y0 - 0.14 * unit),
                    (x0 + 1.2 * unit, y0 + 0.20 * unit), (x0, y0 + 0.46 * unit)),
            polygon((x0 + 0.72 * unit, y0 - 0.1 * unit), (x0 + 1.05 * unit, y0 - 0.95 * unit),
                    (x0 + 1.38 * unit, y0 + 0.10 * unit), (x0 + 1.2 * unit, y0 + 0.20 * unit)),
        ),
        "broad": either(
            capsule(x0, y0, x0 + 1.45 * unit, y0 - 0.20 * unit, 0.30 * unit, 0.22 * unit),
            ellipse(x0 + 1.5 * unit, y0 - 0.22 * unit, 0.46 * unit, 0.30 * unit),
        ),
    }  # fmt: skip
    paint(shapes[values["beak_shape"]], values["beak_color"], "beak")
