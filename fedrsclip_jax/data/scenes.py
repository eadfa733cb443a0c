"""Procedural labelled aerial scenes: sixteen land-use classes seen from above, drawn on the fly.

They stand in for a data set where none is at hand; the small CLIP can be pretrained on any number of them.
The scenes vary in place, scale, direction, palette, land cover and shadow, and borrow from each other (trees,
roads, houses, fields), so that a small network is right about nine times in ten rather than always.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

from fedrsclip_jax.data.looks import DOMAINS, FEDERATION, Look, alter, known
from fedrsclip_jax.errors import InputError

VERSION = 1  # part of every digest: bump it when a drawing or `alter` changes

Colour = tuple[int, ...]  # red green blue
Points = Float[np.ndarray, "points 2"]
Pairs = np.ndarray | Sequence  # of x and y, or of width and height

_GROUNDS = {  # two colours that a noise field mixes
    "grass": ((84, 110, 58), (112, 130, 78)),
    "meadow": ((116, 128, 78), (142, 148, 94)),
    "soil": ((134, 108, 80), (162, 136, 104)),
    "dry": ((164, 146, 108), (186, 170, 130)),
    "city": ((124, 122, 116), (152, 148, 142)),
    "concrete": ((158, 154, 146), (182, 178, 168)),
    "asphalt": ((84, 84, 86), (108, 107, 106)),
    "sand": ((206, 180, 136), (228, 206, 164)),
    "red sand": ((190, 142, 98), (212, 168, 122)),
    "woods": ((38, 58, 34), (58, 80, 46)),
    "sea": ((28, 66, 92), (44, 88, 112)),
    "bay": ((44, 82, 92), (66, 106, 112)),
}
_WATERS = ((34, 66, 88), (48, 88, 106), (52, 82, 80), (28, 52, 70), (78, 98, 92), (96, 104, 84))
_ROADS = ((112, 112, 112), (94, 94, 96), (136, 134, 130), (152, 146, 136))
_ROOFS = (
    (156, 84, 64),
    (128, 118, 112),
    (178, 168, 156),
    (92, 90, 92),
    (188, 128, 94),
    (208, 204, 198),
    (112, 94, 82),
)
_TREES = ((40, 66, 36), (52, 80, 44), (66, 92, 50), (34, 56, 38), (78, 98, 54))
_CROPS = (
    (96, 128, 60),
    (128, 148, 74),
    (72, 106, 52),
    (168, 154, 98),
    (146, 116, 84),
    (190, 176, 120),
    (112, 92, 68),
)
_CARS = (
    (226, 226, 228),
    (200, 202, 206),
    (52, 54, 60),
    (28, 28, 32),
    (158, 44, 40),
    (52, 78, 132),
    (150, 152, 156),
)
_WHITE = (232, 232, 226)


class _Pen:
    """Draws one scene at twice its size, so that edges are smooth once it is halved.

    Lengths are in image widths; x and y run from the centre, turned by one angle. The visible square lies
    within 0.71 of the centre whatever the angle, so what fills it spans -0.75 to 0.75.
    """

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng = rng
        self.size = size
        self.turned(float(rng.uniform(0, 2 * np.pi)))
        towards = rng.uniform(0, 2 * np.pi)
        self.sun = rng.uniform(0.008, 0.024) * np.array([np.cos(towards), np.sin(towards)])

    def turned(self, angle: float) -> None:
        self.angle = angle
        self.turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    # Draws of chance ----------------------------------------------------------------------------------

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def count(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def colours(self, palette: Sequence[Colour], number: int, spread: int = 8) -> list[Colour]:
        chosen = np.array(palette)[self.rng.integers(len(palette), size=number)]
        jitter = (
            self.rng.standard_normal((number, 1)) * spread
            + self.rng.standard_normal((number, 3)) * spread / 3
        )
        return [tuple(colour) for colour in np.clip(chosen + jitter, 0, 255).astype(int).tolist()]

    def colour(self, *palette: Colour, spread: int = 8) -> Colour:
        return self.colours(palette, 1, spread)[0]

    def scatter(self, number: int, reach: float = 0.72) -> Points:
        return self.rng.uniform(-reach, reach, (number, 2))

    # Ground and shapes --------------------------------------------------------------------------------

    def ground(self, *kinds: str, relief: Float[np.ndarray, "size size"] | None = None) -> str:
        """Covers everything with one of the land covers; `relief` adds its own light and dark."""
        kind = kinds[self.count(0, len(kinds) - 1)]
        low, high = (np.array(self.colour(colour, spread=7), np.float32) for colour in _GROUNDS[kind])
        mix = 0.5 + 0.5 * _noise(self.rng, self.size)[..., None]
        cover = low + mix * (high - low)
        if relief is not None:
            cover += relief[..., None]
        image = Image.fromarray(np.clip(cover, 0, 255).astype(np.uint8))
        self.image = image.resize((2 * self.size, 2 * self.size), Image.Resampling.BILINEAR)
        self.draw = ImageDraw.Draw(self.image)
        return kind

    def pixels(self, points: Pairs) -> np.ndarray:
        return (np.asarray(points) @ self.turn + 0.5) * (2 * self.size)

    def area(self, points: Pairs, colour: Colour) -> None:
        self.draw.polygon(self.pixels(points).ravel().tolist(), fill=colour)

    def path(self, points: Pairs, width: float, colour: Colour) -> None:
        flat = self.pixels(points).ravel().tolist()
        self.draw.line(flat, fill=colour, width=max(1, round(width * 2 * self.size)), joint="curve")

    def discs(
        self, centres: Pairs, radii: Float[np.ndarray, "points"], colours: Sequence[Colour], shade=0.0
    ) -> None:
        """Discs in one colour each; `shade` is how long their shadows are, in shadows of a house."""
        at, reach = self.pixels(centres), np.asarray(radii)[:, None] * 2 * self.size
        if shade:
            dark = at + shade * self.sun * 2 * self.size
            for box in np.hstack([dark - reach, dark + reach]).tolist():
                self.draw.ellipse(box, fill=(40, 44, 40))
        for box, colour in zip(np.hstack([at - reach, at + reach]).tolist(), colours, strict=True):
            self.draw.ellipse(box, fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        self.discs(np.array([[x, y]]), np.array([radius]), [colour])

    def corners(self, centres: Pairs, sizes: Pairs, angle: float = 0.0) -> Float[np.ndarray, "boxes 4 2"]:
        """Corners of boxes in pixels; `angle` turns each about its own centre."""
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
        return self.pixels(np.asarray(centres)[:, None] + (unit * np.asarray(sizes)[:, None]) @ turn)

    def boxes(self, centres: Pairs, sizes: Pairs, colours: Sequence[Colour], angle=0.0, shade=0.0) -> None:
        corners = self.corners(centres, sizes, angle)
        if shade:
            for box in (corners + shade * self.sun * 2 * self.size).reshape(-1, 8).tolist():
                self.draw.polygon(box, fill=(44, 46, 46))
        for box, colour in zip(corners.reshape(-1, 8).tolist(), colours, strict=True):
            self.draw.polygon(box, fill=colour)

    def box(
        self, x: float, y: float, width: float, height: float, colour: Colour, angle=0.0, shade=0.0
    ) -> None:
        self.boxes(np.array([[x, y]]), np.array([[width, height]]), [colour], angle, shade)

    # Things that many scenes share --------------------------------------------------------------------

    def trees(self, centres: Points, low: float = 0.012, high: float = 0.026) -> None:
        number = len(centres)
        self.discs(centres, self.rng.uniform(low, high, number), self.colours(_TREES, number, 6), shade=0.6)

    def houses(self, centres: Points, sizes: Pairs, angle: float = 0.0) -> None:
        """Gable roofs, one half in the light."""
        roofs = self.colours(_ROOFS, len(centres))
        self.boxes(centres, sizes, roofs, angle, shade=1.0)
        corners = self.corners(centres, sizes, angle)
        ridge = (corners + np.roll(corners, -1, 1)) / 2  # middles of the four sides
        half = np.stack([corners[:, 0], corners[:, 1], ridge[:, 1], ridge[:, 3]], 1)
        for points, (red, green, blue) in zip(half.reshape(-1, 8).tolist(), roofs, strict=True):
            self.draw.polygon(points, fill=(red * 3 // 4, green * 3 // 4, blue * 3 // 4))

    def cars(self, centres: Points, angle: float = 0.0, length: float = 0.034) -> None:
        sizes = np.broadcast_to([length, length * 0.5], (len(centres), 2))
        self.boxes(centres, sizes, self.colours(_CARS, len(centres)), angle)

    def road(self, points: Pairs, width: float, marked: bool = True) -> None:
        self.path(points, width, self.colour(*_ROADS))
        if marked and width > 0.035:
            self.path(points, 0.006, (214, 210, 190))

    def clutter(self, share: float = 0.5) -> None:
        """Some of what any countryside has: a field, a track, a house or two, trees."""
        if self.chance(share):
            at, size = self.scatter(1), self.rng.uniform(0.25, 0.6, (1, 2))
            self.boxes(at, size, self.colours(_CROPS, 1), self.between(0.0, 3.0))
        if self.chance(share * 0.7):
            angle, offset = self.between(0.0, np.pi), self.between(-0.4, 0.4)
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-np.sin(angle), np.cos(angle)])
            self.road([offset * across - along, offset * across + along], self.between(0.015, 0.045))
        if self.chance(share * 0.7):
            number = self.count(1, 4)
            self.houses(
                self.scatter(number, 0.5), self.rng.uniform(0.05, 0.1, (number, 2)), self.between(0.0, 3.0)
            )
        if self.chance(share * 1.4):
            centre = self.scatter(1, 0.5)
            number = self.count(4, 24)
            self.trees(centre + self.rng.normal(0, self.between(0.06, 0.4), (number, 2)))


@lru_cache(maxsize=64)
def _upsampler(cells: int, size: int) -> Float32[np.ndarray, "size cells"]:
    """Smooth interpolation from `cells` samples to `size` pixels, as a matrix."""
    at = np.linspace(0, cells - 1, size, dtype=np.float32)
    left = np.minimum(at.astype(int), cells - 2)
    step = at - left
    step = step * step * (3 - 2 * step)
    matrix = np.zeros((size, cells), np.float32)
    matrix[np.arange(size), left] = 1 - step
    matrix[np.arange(size), left + 1] = step
    return matrix


def _noise(
    rng: np.random.Generator, size: int, cells: Sequence[int] = (4, 9, 20, 44)
) -> Float32[np.ndarray, "s s"]:
    """Noise of several octaves, each weaker than the coarser one; standard deviation about 0.6."""
    total = np.zeros((size, size), np.float32)
    for octave, number in enumerate(cells):
        up = _upsampler(number, size)
        total += 0.75**octave * 0.6 * (up @ rng.standard_normal((number, number), np.float32) @ up.T)
    return total


def _wave(pen: _Pen, x: Float[np.ndarray, "points"], bend: float) -> Float[np.ndarray, "points"]:
    """A smooth random curve over x with three harmonics."""
    phases = pen.rng.uniform(0, 2 * np.pi, 3)
    heights = bend * pen.rng.uniform(0.3, 1, 3) / (1, 2.2, 5)
    return heights @ np.sin(np.array([1.7, 3.9, 8.3])[:, None] * x + phases[:, None])


def _blob(pen: _Pen, centre: Pairs, radius: float, rough: float = 0.25) -> Points:
    """A closed smooth outline."""
    x, y = np.asarray(centre)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    reach = np.ones(48)
    for k in range(2, 7):
        reach += rough * pen.between(-1.0, 1.0) / k**0.8 * np.cos(k * angle + pen.between(0.0, 6.3))
    stretch = pen.between(0.7, 1.3)
    return np.stack(
        [x + radius * reach * np.cos(angle) * stretch, y + radius * reach * np.sin(angle) / stretch], 1
    )


def _column(x: np.ndarray, y: np.ndarray | float) -> Points:
    return np.stack([x, np.broadcast_to(y, x.shape)], 1)


# ------------------------------------------------------------------------------------------ classes

_ACROSS = np.linspace(-0.78, 0.78, 28)  # abscissae of a curve that crosses the whole image


def _river(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "woods", "soil", "dry")
    pen.clutter(0.5)
    middle = _wave(pen, _ACROSS, pen.between(0.08, 0.3)) + pen.between(-0.15, 0.15)
    width = pen.between(0.07, 0.24) * (1 + 0.25 * _wave(pen, _ACROSS, 0.7))
    bank, water = pen.colour(*_GROUNDS["soil"], *_GROUNDS["sand"], *_GROUNDS["grass"]), pen.colour(*_WATERS)
    for colour, rim in ((bank, pen.between(0.008, 0.05)), (water, 0.0)):
        upper, lower = middle + width / 2 + rim, middle - width / 2 - rim
        pen.area(np.vstack([_column(_ACROSS, upper), _column(_ACROSS, lower)[::-1]]), colour)
    if pen.chance(0.25):
        place = pen.count(9, 18)
        pen.area(_blob(pen, (_ACROSS[place], middle[place]), 0.25 * width[place]), bank)
    if pen.chance(0.6):
        x = pen.rng.uniform(-0.7, 0.7, pen.count(8, 40))
        side = pen.rng.choice([-1, 1], len(x)) * (
            np.interp(x, _ACROSS, width) / 2 + pen.rng.uniform(0.02, 0.15, len(x))
        )
        pen.trees(np.stack([x, np.interp(x, _ACROSS, middle) + side], 1))
    if pen.chance(0.2):
        x = pen.between(-0.3, 0.3)
        pen.road([[x, -0.8], [x + pen.between(-0.2, 0.2), 0.8]], pen.between(0.03, 0.06))


def _forest(pen: _Pen) -> None:
    pen.ground("woods")
    if pen.chance(0.4):
        pen.path(
            _column(_ACROSS, _wave(pen, _ACROSS, 0.2)), pen.between(0.02, 0.06), pen.colour(*_GROUNDS["soil"])
        )
    gaps = [pen.scatter(1, 0.5) for _ in range(pen.count(0, 2))]
    for gap in gaps:
        pen.area(
            _blob(pen, gap[0], pen.between(0.06, 0.16)), pen.colour(*_GROUNDS["grass"], *_GROUNDS["soil"])
        )
    size = pen.between(0.016, 0.036)
    at = pen.scatter(int(np.clip(pen.between(0.12, 0.2) / size**2, 120, 320)))
    for gap in gaps:
        at = at[np.hypot(*(at - gap).T) > 0.1]
    tint = pen.colours(_TREES, 3, 8)
    pen.discs(at, pen.rng.uniform(0.6, 1.3, len(at)) * size, pen.colours(tint, len(at), 9))
    lit = at[: len(at) // 2] - 0.4 * size * pen.sun / np.hypot(*pen.sun) @ pen.turn.T
    pen.discs(lit, np.full(len(lit), 0.55 * size), pen.colours(((92, 116, 66), (70, 94, 52)), len(lit)))


def _harbor(pen: _Pen) -> None:
    pen.ground("sea", "bay")
    shore = pen.between(-0.45, -0.1)
    quay = pen.colour(*_GROUNDS["concrete"], *_GROUNDS["city"])
    pen.area([[-0.8, -0.8], [0.8, -0.8], [0.8, shore], [-0.8, shore]], quay)
    if pen.chance(0.7):
        number = pen.count(2, 6)
        at = _column(pen.rng.uniform(-0.6, 0.6, number), shore - pen.rng.uniform(0.08, 0.25, number))
        pen.houses(at, pen.rng.uniform(0.06, 0.16, (number, 2)))
    wood, gap = pen.colour((196, 186, 168), (164, 156, 144), (140, 130, 118)), pen.between(0.17, 0.3)
    boat, end = pen.between(0.045, 0.085), shore + pen.between(0.45, 0.9)
    hulls = []
    for x in np.arange(-0.75 + pen.between(0.0, gap), 0.75, gap):
        tip = end + pen.between(-0.08, 0.05)
        pen.box(x, (shore + tip) / 2, 0.022, tip - shore, wood)
        berths = np.arange(shore + 0.05, tip - 0.01, boat * pen.between(0.42, 0.6))
        for side in (-1, 1):
            taken = berths[pen.rng.random(len(berths)) < 0.8]
            hulls.append(_column(np.full(len(taken), x + side * (0.016 + boat / 2)), taken))
    at = np.vstack(hulls)
    colours = pen.colours(
        ((238, 238, 236), (222, 224, 226), (240, 236, 226), (90, 110, 140), (190, 186, 176)), len(at)
    )
    length, beam = boat * pen.rng.uniform(0.75, 1.0, (len(at), 1)), boat * 0.3
    pen.boxes(at, np.hstack([length, np.full_like(length, beam)]), colours)
    if pen.chance(0.5):
        x, y, long = pen.between(-0.4, 0.4), end + pen.between(0.03, 0.2), pen.between(0.06, 0.16)
        pen.box(x, y, long, long * 0.3, _WHITE, pen.between(-0.5, 0.5))


def _runway(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "dry", "soil")
    pen.clutter(0.25)
    y, width, tarmac = (
        pen.between(-0.15, 0.2),
        pen.between(0.13, 0.24),
        pen.colour((74, 76, 80), (100, 100, 102)),
    )
    if pen.chance(0.75):
        side = y - width / 2 - pen.between(0.16, 0.26)
        taxi = pen.colour((128, 126, 122), (104, 104, 104))
        pen.path([[-0.8, side], [0.8, side]], width * 0.4, taxi)
        for x in pen.rng.uniform(-0.6, 0.6, pen.count(1, 3)):
            pen.path([[x, side], [x + pen.between(-0.15, 0.15), y]], width * 0.4, taxi)
        pen.path([[-0.8, side], [0.8, side]], 0.006, (206, 176, 70))
    start = pen.between(-0.5, -0.2) if pen.chance(0.55) else -0.9
    pen.path([[start - 0.04, y], [0.8, y]], width, tarmac)
    for edge in (-0.44, 0.44):
        pen.path([[start, y + edge * width], [0.8, y + edge * width]], 0.008, _WHITE)
    dash = pen.between(0.07, 0.13)
    for x in np.arange(start + 0.26, 0.8, 1.8 * dash):
        pen.path([[x, y], [x + dash, y]], 0.013, _WHITE)
    if start > -0.8:
        stripes = np.linspace(-0.36, 0.36, 8) * width + y
        at = _column(np.full(8, start + 0.07), stripes)
        pen.boxes(at, np.broadcast_to([0.1, width * 0.06], (8, 2)), [_WHITE] * 8)
        pen.path([[start + 0.17, y - width * 0.1], [start + 0.17, y + width * 0.1]], 0.03, _WHITE)
    for x in (start + 0.34, start + 0.46):
        at = np.array([[x, y - width * 0.25], [x, y + width * 0.25]])
        pen.boxes(at, np.broadcast_to([0.06, width * 0.14], (2, 2)), [_WHITE] * 2)
    if pen.chance(0.7):  # worn rubber where wheels touch
        for x in pen.rng.uniform(start + 0.2, start + 0.7, 4):
            pen.path([[x, y + 0.03], [x + 0.2, y + 0.03]], 0.012, (58, 58, 62))
    if pen.chance(0.3):
        x, span = pen.between(-0.1, 0.3), pen.between(0.1, 0.16)
        pen.box(x, y, span, span * 0.14, _WHITE)
        pen.area(
            [[x + span * 0.1, y], [x - span * 0.12, y - span / 2], [x - span * 0.12, y + span / 2]], _WHITE
        )


def _storage_tanks(pen: _Pen) -> None:
    pen.ground("concrete", "soil", "city", "dry", "grass")
    pen.clutter(0.25)
    if pen.chance(0.5):
        pen.road([[-0.8, -0.02], [0.8, 0.02]], pen.between(0.03, 0.06), marked=False)
    gap = pen.between(0.2, 0.44)
    across = np.arange(-0.7 + pen.between(0.0, gap), 0.7, gap)
    at = np.stack(np.meshgrid(across, across + pen.between(-0.1, 0.1)), -1).reshape(-1, 2)
    at = at[pen.rng.random(len(at)) < pen.between(0.5, 1.0)] if len(at) > 5 else at
    at = at + pen.rng.normal(0, 0.012, at.shape)
    radii = gap * pen.between(0.3, 0.42) * pen.rng.choice([1.0, 1.0, 0.8, 0.6], len(at))
    if pen.chance(0.5):
        rims = np.broadcast_to([[gap * 0.98, gap * 0.98]], (len(at), 2))
        pen.boxes(at, rims, [pen.colour((122, 104, 82), (146, 140, 128))] * len(at))
        pen.boxes(at, rims * 0.93, [pen.colour(*_GROUNDS["dry"], *_GROUNDS["concrete"])] * len(at))
    for _ in range(pen.count(1, 4)):
        (x, y), colour = pen.scatter(1)[0], pen.colour((186, 184, 178), (96, 92, 88))
        pen.path([[x, -0.8], [x, y], [0.8, y]], 0.009, colour)
    paint = pen.colours(
        ((236, 236, 232), (218, 218, 214), (232, 228, 214), (170, 150, 136), (204, 208, 204)), 2, 6
    )
    pen.discs(at, radii, [(112, 112, 110)] * len(at), shade=pen.between(1.2, 2.4))
    tops = pen.colours(paint, len(at), 5)
    pen.discs(at, radii * 0.94, tops)
    if pen.chance(0.5):  # floating roofs: the wall shades a crescent of the lid
        lids = [(red * 5 // 6, green * 5 // 6, blue * 5 // 6) for red, green, blue in tops]
        pen.discs(at, radii * 0.8, lids)
        pen.discs(
            at + 0.14 * radii[:, None] * (pen.sun / np.hypot(*pen.sun)) @ pen.turn.T, radii * 0.64, tops
        )
    else:
        pen.discs(at, radii * 0.12, [(150, 150, 148)] * len(at))


def _circular_farmland(pen: _Pen) -> None:
    pen.ground("dry", "soil", "meadow", "sand")
    gap = pen.between(0.34, 0.8)
    at = np.stack(np.meshgrid(*[np.arange(-0.9, 1.0, gap) + pen.between(0.0, gap)] * 2), -1).reshape(-1, 2)
    at = at[pen.rng.random(len(at)) < 0.85] if gap < 0.5 else at
    if pen.chance(0.5):
        pen.boxes(
            at, np.full((len(at), 2), gap * 0.96), pen.colours((*_CROPS[3:6], *_GROUNDS["dry"]), len(at), 5)
        )
    radius = gap * pen.between(0.42, 0.49)
    crops = pen.colours(_CROPS, len(at), 6)
    pen.discs(at, np.full(len(at), radius), crops)
    angle = np.linspace(0, 1, 20)
    for (x, y), other in zip(at, pen.colours(_CROPS, len(at), 6), strict=True):
        start = pen.between(0.0, 2 * np.pi)
        if pen.chance(0.5):
            turn = start + angle * pen.between(0.5, 3.5)
            pen.area(
                np.vstack([[[x, y]], np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)]),
                other,
            )
        pen.path([[x, y], [x + radius * np.cos(start), y + radius * np.sin(start)]], 0.008, (196, 190, 160))
    if pen.chance(0.4):
        side = at[0, 0] + gap / 2
        pen.road([[side, -0.8], [side, 0.8]], 0.02)
    pen.clutter(0.12)


def _rectangular_farmland(pen: _Pen) -> None:
    pen.ground("soil", "dry", "meadow")
    edge, wide, tall = pen.between(0.0, 0.014), pen.between(0.14, 0.3), pen.between(0.2, 0.5)
    x = -0.75 - pen.between(0.0, wide)
    while x < 0.75:
        width = wide * pen.between(0.7, 1.5)
        y = -0.75 - pen.between(0.0, tall)
        while y < 0.75:
            height = tall * pen.between(0.6, 1.4)
            colour = pen.colour(*_CROPS)
            pen.box(x + width / 2, y + height / 2, width - edge, height - edge, colour)
            if pen.chance(0.55):
                shade, step = pen.between(0.78, 1.12), pen.between(0.022, 0.045)
                row = tuple(min(255, int(part * shade)) for part in colour)
                for line in np.arange(x + step, x + width - edge, step):
                    pen.path([[line, y + edge], [line, y + height - edge]], 0.008, row)
            y += height
        if pen.chance(0.2):
            pen.road([[x, -0.8], [x, 0.8]], pen.between(0.015, 0.03))
        x += width
    if pen.chance(0.35):
        corner, number = pen.scatter(1, 0.4), pen.count(1, 3)
        pen.houses(
            corner + pen.rng.uniform(-0.08, 0.08, (number, 2)), pen.rng.uniform(0.05, 0.09, (number, 2))
        )
        pen.trees(corner + pen.rng.normal(0, 0.08, (6, 2)))


def _dense_residential(pen: _Pen) -> None:
    pen.ground("city", "grass", "soil", "concrete")
    lot, depth = pen.between(0.1, 0.16), pen.between(0.12, 0.18)
    street, road = pen.between(0.05, 0.08), pen.colour(*_ROADS)
    y, trees = -0.8 + pen.between(0.0, depth), []
    while y < 0.8:
        pen.path([[-0.8, y], [0.8, y]], street, road)
        for row in (y + street / 2 + depth / 2, y + street / 2 + depth * 1.5):
            x = np.arange(-0.75 + pen.between(0.0, lot), 0.75, lot)
            x = x[pen.rng.random(len(x)) < 0.95]
            at = _column(x, row) + pen.rng.normal(0, 0.008, (len(x), 2))
            sizes = np.array([lot, depth]) * pen.rng.uniform(0.58, 0.86, (len(x), 2))
            pen.houses(at, sizes)
            trees.append(at[pen.rng.random(len(at)) < 0.3] + [lot / 2, depth * 0.4])
        y += street + 2 * depth
    if pen.chance(0.5):
        x = pen.between(-0.3, 0.3)
        pen.path([[x, -0.8], [x, 0.8]], street, road)
    pen.trees(np.vstack(trees), 0.012, 0.022)


def _sparse_residential(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "grass", "dry")
    if pen.chance(0.3):
        pen.area(_blob(pen, pen.scatter(1, 0.6)[0], 0.3), pen.colour(*_CROPS))
    y = _wave(pen, _ACROSS, pen.between(0.03, 0.2))
    pen.road(_column(_ACROSS, y), pen.between(0.03, 0.05))
    number = pen.count(2, 7)
    x = np.linspace(-0.5, 0.5, number) + pen.rng.uniform(-0.06, 0.06, number)
    side = np.where(np.arange(number) % 2, 1, -1) * pen.rng.uniform(0.12, 0.3, number)
    at = _column(x, np.interp(x, _ACROSS, y) + side)
    drive = pen.colour(*_GROUNDS["concrete"])
    for home in at:
        pen.path([home, [home[0], np.interp(home[0], _ACROSS, y)]], 0.018, drive)
    pen.trees(pen.scatter(pen.count(12, 60)), 0.015, 0.034)
    sizes = pen.rng.uniform(0.08, 0.15, (number, 2))
    pen.houses(at, sizes, pen.between(-0.4, 0.4))
    if pen.chance(0.5):
        pen.houses(at[:2] + sizes[:2] * [0.9, 0.5], sizes[:2] * 0.6)
    if pen.chance(0.25):
        pen.disc(at[0, 0], at[0, 1] + 0.1, 0.025, (92, 176, 196))


def _parking_lot(pen: _Pen) -> None:
    pen.ground("asphalt", "city", "asphalt")
    stall, length = pen.between(0.036, 0.056), pen.between(0.07, 0.1)
    aisle, full = length * pen.between(0.6, 0.95), pen.between(0.35, 1.0)
    y, grid = -0.75 + pen.between(0.0, 0.2), np.arange(-0.75, 0.75, stall)
    while y < 0.75:
        for row in (y - length / 2, y + length / 2):
            marks = _column(grid, row)
            pen.boxes(marks, np.broadcast_to([0.007, length], marks.shape), [(196, 196, 190)] * len(marks))
            taken = grid[pen.rng.random(len(grid)) < full] + stall / 2
            at = _column(taken, row) + pen.rng.normal(0, 0.003, (len(taken), 2))
            pen.boxes(
                at, np.broadcast_to([stall * 0.62, length * 0.8], at.shape), pen.colours(_CARS, len(at))
            )
        if pen.chance(0.3):
            pen.box(0.0, y, 1.6, 0.02, pen.colour(*_GROUNDS["grass"]))
            pen.trees(_column(pen.rng.uniform(-0.7, 0.7, 8), y))
        y += 2 * length + aisle
    if pen.chance(0.4):
        edge = pen.between(0.25, 0.5)
        pen.area(
            [[-0.8, edge], [0.8, edge], [0.8, 0.8], [-0.8, 0.8]],
            pen.colour(*_GROUNDS["grass"], *_GROUNDS["city"]),
        )
        if pen.chance(0.6):
            pen.box(pen.between(-0.3, 0.3), edge + 0.2, 0.7, 0.3, pen.colour(*_ROOFS), shade=1.5)
        else:
            pen.trees(_column(pen.rng.uniform(-0.7, 0.7, 16), edge + pen.rng.uniform(0.04, 0.3, 16)))


def _beach(pen: _Pen) -> None:
    pen.ground("sea", "bay")
    y, bend = pen.between(-0.2, 0.25), pen.between(0.02, 0.12)
    coast = _wave(pen, _ACROSS, bend)
    sand, width = pen.colour(*_GROUNDS["sand"]), pen.between(0.12, 0.4)
    wet = tuple(part * 4 // 5 for part in sand)
    land = pen.colour(*_GROUNDS["grass"], *_GROUNDS["meadow"], *_GROUNDS["city"], *_GROUNDS["woods"])
    bands = [(-0.2, (58, 118, 134)), (-0.1, (92, 152, 158))] if pen.chance(0.7) else []
    bands += [(-0.045, (226, 232, 230)), (-0.02, wet), (0.03, sand), (width, land)]
    for offset, colour in bands:
        edge = y + offset + coast + _wave(pen, 2.5 * _ACROSS, 0.014)
        pen.area(np.vstack([_column(_ACROSS, edge), [[0.8, 0.8], [-0.8, 0.8]]]), pen.colour(colour, spread=4))
    for _ in range(pen.count(0, 3)):  # breakers further out
        start, long, out = pen.count(0, 18), pen.count(5, 10), pen.between(0.07, 0.2)
        pen.path(_column(_ACROSS, y + coast - out)[start : start + long], 0.014, (220, 228, 228))
    if pen.chance(0.4):
        x = pen.rng.uniform(-0.6, 0.6, 20)
        at = _column(x, y + np.interp(x, _ACROSS, coast) + pen.rng.uniform(0.05, max(0.07, width - 0.03), 20))
        pen.discs(
            at,
            np.full(20, 0.01),
            pen.colours(((200, 60, 50), (60, 100, 170), (240, 240, 240)), 20),
            shade=0.4,
        )
    if pen.chance(0.7):
        x = pen.rng.uniform(-0.7, 0.7, pen.count(6, 30))
        inland = np.interp(x, _ACROSS, coast) + width + pen.rng.uniform(0.02, 0.35, len(x))
        pen.trees(_column(x, y + inland))
    if pen.chance(0.4):
        edge = y + width + 0.08
        pen.road(_column(_ACROSS, edge + coast), 0.04)
        pen.houses(_column(np.linspace(-0.5, 0.5, 6), edge + 0.14), pen.rng.uniform(0.06, 0.12, (6, 2)))


def _freeway(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "dry", "city", "soil")
    pen.clutter(0.5)
    bend = pen.between(-0.35, 0.35) if pen.chance(0.5) else 0.0
    curve = bend * (_ACROSS**2 - 0.2) + pen.between(-0.12, 0.12)
    lanes, lane, median = pen.count(2, 4), pen.between(0.034, 0.046), pen.between(0.012, 0.09)
    road, half = pen.colour(*_ROADS), lanes * lane
    if pen.chance(0.3):
        offset = median / 2 + half + 0.05
        pen.path(_column(_ACROSS, curve + offset + 0.5 * np.maximum(0, _ACROSS)), 0.045, road)
    barrier = pen.colour(*_GROUNDS["grass"], *_GROUNDS["dry"], (176, 174, 168))
    pen.path(_column(_ACROSS, curve), median + 2 * half, barrier)
    for side in (-1, 1):
        centre = curve + side * (median + half) / 2
        pen.path(_column(_ACROSS, centre), half + 0.014, road)
        for edge in (-half / 2, half / 2):
            pen.path(_column(_ACROSS, centre + edge), 0.007, (214, 212, 200))
        for mark in range(1, lanes):
            line = centre - half / 2 + mark * lane
            for k in range(0, len(_ACROSS) - 1, 2):
                pen.path(_column(_ACROSS, line)[k : k + 2], 0.006, (206, 206, 202))
        x = pen.rng.uniform(-0.7, 0.7, pen.count(3, 12))
        which = pen.rng.integers(lanes, size=len(x))
        at = _column(x, np.interp(x, _ACROSS, centre) - half / 2 + (which + 0.5) * lane)
        slope = np.interp(x, _ACROSS, 2 * bend * _ACROSS)
        for car, lean in zip(at, slope, strict=True):
            pen.cars(car[None], float(np.arctan(lean)), 0.075 if pen.chance(0.15) else 0.04)
    if pen.chance(0.25):  # a bridge over it
        x, lean = pen.between(-0.3, 0.3), pen.between(-0.25, 0.25)
        pen.path(np.array([[x - lean, -0.8], [x + lean, 0.8]]) + pen.sun @ pen.turn.T, 0.09, (54, 54, 56))
        pen.road([[x - lean, -0.8], [x + lean, 0.8]], 0.085)


def _baseball_diamond(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "grass", "dry")
    pen.clutter(0.3)
    reach = pen.between(0.5, 0.95)
    x, y = -reach * 0.36 + pen.between(-0.1, 0.1), -reach * 0.36 + pen.between(-0.1, 0.1)

    def fan(radius: float, low: float = 0.0, high: float = np.pi / 2) -> Points:
        angle = np.linspace(low, high, 24)
        return np.vstack([[[x, y]], np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)])

    dirt = pen.colour((178, 132, 92), (196, 156, 112), (160, 112, 80))
    outfield, infield = pen.colours(((82, 122, 56), (100, 136, 68), (70, 104, 50)), 2, 7)
    if pen.chance(0.6):
        pen.area(fan(reach * 1.04, -0.06, np.pi / 2 + 0.06), dirt)
    pen.area(fan(reach * 0.98), outfield)
    base = reach * pen.between(0.3, 0.4)
    pen.area(fan(base * 1.5), dirt)
    pen.disc(x, y, base * 0.26, dirt)
    if pen.chance(0.75):
        pen.box(x + base / 2, y + base / 2, base * 0.78, base * 0.78, infield)
        pen.disc(x + base / 2, y + base / 2, base * 0.12, dirt)
    for end in ((x + reach, y), (x, y + reach)):
        pen.path([[x, y], end], 0.008, _WHITE)
    bases = np.array([[x, y], [x + base, y], [x, y + base], [x + base, y + base]])
    pen.discs(bases, np.full(4, 0.011), [_WHITE] * 4)
    if pen.chance(0.6):
        stands = pen.colour(*_ROOFS)
        pen.box(x - base * 0.42, y + base * 0.3, 0.05, base * 0.8, stands, shade=1.0)
        pen.box(x + base * 0.3, y - base * 0.42, base * 0.8, 0.05, stands, shade=1.0)
    angle = pen.rng.uniform(0, np.pi / 2, pen.count(0, 18))
    at = np.stack([x + (reach + 0.07) * np.cos(angle), y + (reach + 0.07) * np.sin(angle)], 1)
    pen.trees(at, 0.02, 0.036)


def _lake(pen: _Pen) -> None:
    pen.ground("grass", "meadow", "woods", "dry", "soil")
    pen.clutter(0.5)
    x, y = pen.scatter(1, 0.25)[0]
    shore = _blob(pen, (x, y), pen.between(0.16, 0.46), pen.between(0.1, 0.4))
    rim = pen.colour(*_GROUNDS["sand"], *_GROUNDS["grass"], *_GROUNDS["woods"], *_GROUNDS["dry"])
    pen.area(np.array([x, y]) + (shore - [x, y]) * pen.between(1.04, 1.16), rim)
    water = pen.colour(*_WATERS)
    pen.area(shore, water)
    deep = tuple(part * 9 // 10 for part in water)
    pen.area(np.array([x, y]) + (shore - [x, y]) * 0.8, deep)
    if pen.chance(0.2):
        pen.area(_blob(pen, (x, y), 0.05), rim)
    if pen.chance(0.65):
        around = shore[pen.rng.integers(len(shore), size=pen.count(8, 40))]
        spread = pen.rng.uniform(1.12, 1.5, (len(around), 1))
        pen.trees(np.array([x, y]) + (around - [x, y]) * spread)
    if pen.chance(0.25):
        pen.path([shore[0], shore[0] * 0.75 + 0.25 * np.array([x, y])], 0.02, (176, 160, 136))


def _desert(pen: _Pen) -> None:
    size, height = pen.size, 2.2 * _noise(pen.rng, pen.size, (3, 6, 11))
    grid = (np.arange(size) / size - 0.5).astype(np.float32)
    along = grid * np.float32(np.cos(pen.angle)) + grid[:, None] * np.float32(np.sin(pen.angle))
    phase = 2 * np.pi * pen.between(4.0, 11.0) * along + pen.between(0.6, 1.6) * height
    ridge = np.sin(phase) + 0.35 * np.sin(2 * phase + 1.0)  # steeper on the lee side
    relief = (
        pen.between(5.0, 17.0) * ridge * np.clip(0.7 + 0.5 * height, 0.1, 1.2)
        + pen.between(0.0, 9.0) * height
    )
    pen.ground("sand", "red sand", "sand", "dry", relief=relief)
    if pen.chance(0.3):
        rock = pen.colour((136, 110, 86), (116, 98, 84))
        for _ in range(pen.count(1, 5)):
            pen.area(_blob(pen, pen.scatter(1, 0.5)[0], pen.between(0.03, 0.1), 0.5), rock)
    if pen.chance(0.3):
        number = pen.count(6, 40)
        pen.discs(
            pen.scatter(number), np.full(number, 0.009), pen.colours(((96, 96, 62), (116, 106, 72)), number)
        )
    if pen.chance(0.2):
        pen.path(
            _column(_ACROSS, _wave(pen, _ACROSS, 0.15)), 0.02, pen.colour((176, 156, 124), (128, 120, 112))
        )


def _roundabout(pen: _Pen) -> None:
    pen.ground("city", "grass", "meadow", "concrete", "soil")
    pen.clutter(0.35)
    x, y = pen.scatter(1, 0.1)[0]
    radius, width, road = pen.between(0.13, 0.27), pen.between(0.075, 0.12), pen.colour(*_ROADS[:3])
    arms = pen.count(3, 5)
    angles = np.arange(arms) * 2 * np.pi / arms + pen.rng.uniform(-0.25, 0.25, arms)
    verge = pen.colour(*_GROUNDS["grass"], *_GROUNDS["concrete"])
    towards = np.stack([np.cos(angles), np.sin(angles)], 1)
    for arm in towards:
        pen.path([[x, y], [x, y] + 1.3 * arm], width + 0.03, verge)
    pen.disc(x, y, radius + width + 0.015, verge)
    for arm in towards:
        pen.path([[x, y], [x, y] + 1.3 * arm], width, road)
        pen.path([[x, y] + (radius + width) * arm, [x, y] + 1.3 * arm], 0.012, _WHITE)
    pen.disc(x, y, radius + width, road)
    pen.disc(x, y, radius + 0.008, _WHITE)
    pen.disc(x, y, radius, pen.colour(*_GROUNDS["grass"], *_GROUNDS["meadow"], *_GROUNDS["concrete"]))
    if pen.chance(0.6):
        pen.disc(
            x,
            y,
            radius * pen.between(0.25, 0.6),
            pen.colour(*_TREES, *_GROUNDS["soil"], *_GROUNDS["concrete"]),
        )
    if pen.chance(0.5):
        turn = pen.rng.uniform(0, 2 * np.pi, 7)
        pen.trees(np.array([x, y]) + radius * 0.7 * np.stack([np.cos(turn), np.sin(turn)], 1))
    for angle in pen.rng.uniform(0, 2 * np.pi, pen.count(1, 6)):
        ring = radius + width / 2
        pen.cars(np.array([[x + ring * np.cos(angle), y + ring * np.sin(angle)]]), angle + np.pi / 2, 0.044)
    between = (angles + np.roll(angles, -1)) / 2 + np.where(angles > np.roll(angles, -1), np.pi, 0)
    for angle in between[pen.rng.random(arms) < 0.5]:
        home = np.array([[x, y]]) + 0.52 * np.array([[np.cos(angle), np.sin(angle)]])
        pen.houses(home, pen.rng.uniform(0.09, 0.16, (1, 2)), angle)


_PAINTERS: dict[str, Callable[[_Pen], None]] = {
    "river": _river,
    "forest": _forest,
    "harbor": _harbor,
    "runway": _runway,
    "storage tanks": _storage_tanks,
    "circular farmland": _circular_farmland,
    "rectangular farmland": _rectangular_farmland,
    "dense residential": _dense_residential,
    "sparse residential": _sparse_residential,
    "parking lot": _parking_lot,
    "beach": _beach,
    "freeway": _freeway,
    "baseball diamond": _baseball_diamond,
    "lake": _lake,
    "desert": _desert,
    "roundabout": _roundabout,
}
CLASSES: tuple[str, ...] = tuple(_PAINTERS)


def draw(class_name: str, rng: np.random.Generator, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """A clean scene of this class, by summer daylight; the same generator state gives the same pixels.

    Raises:
      InputError: the class is not one of CLASSES.
    """
    pen = _Pen(rng, size)
    _PAINTERS[known(class_name, CLASSES, "scene class")](pen)
    image = np.asarray(pen.image.reduce(2), np.float32)
    # The world is not flat colour: surfaces vary over metres, and a lens never gives two equal pixels.
    texture = 0.05 * _noise(rng, size, (7, 16, 37)) + 0.025 * rng.standard_normal((size, size), np.float32)
    return np.clip(image * (1 + texture[..., None]) + 0.5, 0, 255).astype(np.uint8)


class Scenes:
    """Labelled scenes seen by several sensors: a data source whose images are made when they are asked for.

    Attributes:
      class_names: the classes, in the order of the labels.
      labels: int32 [N], every class equally often (image i is of class i mod C).
      domain_names: the sensor domains, in the order of `domains`.
      domains: int32 [N], every domain equally often within every class.
      digests: a hexadecimal digest per image of all that determines its pixels.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0, domains: Sequence[str] = FEDERATION):
        """
        Args:
          count: number of images, at least 1.
          size: side in pixels, at least 16.
          seed: not negative; another seed gives other scenes.
          domains: names from looks.DOMAINS.
        """
        for what, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0)):
            if value < least:
                raise InputError(f"{what} of the scenes is {value}; it must be at least {least}")
        if not domains or isinstance(domains, str):
            raise InputError(f"domains of the scenes are {domains!r}; give names, such as ('dust', 'dusk')")
        self.size, self.seed = size, seed
        self.class_names = CLASSES
        self.domain_names = tuple(known(name, DOMAINS, "domain") for name in domains)
        number = np.arange(count)
        self.labels = (number % len(CLASSES)).astype(np.int32)
        # One domain for a whole run through the classes: domain and class are independent.
        self.domains = (number // len(CLASSES) % len(self.domain_names)).astype(np.int32)
        of_domain = [f"scenes {VERSION} {seed} {size} {DOMAINS[name]}" for name in self.domain_names]
        self.digests = [
            hashlib.sha256(f"{of_domain[domain]} {i}".encode()).hexdigest()
            for i, domain in enumerate(self.domains.tolist())
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def _look_and_rngs(self, i: int) -> tuple[Look, np.random.Generator, np.random.Generator]:
        if not 0 <= i < len(self):
            raise IndexError(f"scenes image {i} of {len(self)}")
        # Two streams, so that the same scene can be seen by another sensor.
        scene, sensor = np.random.default_rng((self.seed, i)).spawn(2)
        look = DOMAINS[self.domain_names[self.domains[i]]].sample(sensor)
        return look, scene, sensor

    def look(self, i: int) -> Look:
        """The look of image i, for its caption."""
        return self._look_and_rngs(i)[0]

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Image i: a pure function of (seed, i), whatever was asked for before."""
        look, scene, sensor = self._look_and_rngs(i)
        return alter(draw(CLASSES[self.labels[i]], scene, self.size), look, sensor)

    def name(self, i: int) -> str:
        """Image i in an error message."""
        return f"scenes image {i}"
