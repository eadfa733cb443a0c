"""The pen that aerial scenes are drawn with: palettes, shapes under the sun, noise, and what many scenes share."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw

Colour = tuple[int, ...]  # red green blue
Points = Float[np.ndarray, "points 2"]
Pairs = np.ndarray | Sequence  # of x and y, or of width and height

GROUNDS = {  # two colours that a noise field mixes
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
WATERS = ((34, 66, 88), (48, 88, 106), (52, 82, 80), (28, 52, 70), (78, 98, 92), (96, 104, 84))
ROADS = ((112, 112, 112), (94, 94, 96), (136, 134, 130), (152, 146, 136))
ROOFS = (
    (156, 84, 64),
    (128, 118, 112),
    (178, 168, 156),
    (92, 90, 92),
    (188, 128, 94),
    (208, 204, 198),
    (112, 94, 82),
)
TREES = ((40, 66, 36), (52, 80, 44), (66, 92, 50), (34, 56, 38), (78, 98, 54))
CROPS = (
    (96, 128, 60),
    (128, 148, 74),
    (72, 106, 52),
    (168, 154, 98),
    (146, 116, 84),
    (190, 176, 120),
    (112, 92, 68),
)
CARS = (
    (226, 226, 228),
    (200, 202, 206),
    (52, 54, 60),
    (28, 28, 32),
    (158, 44, 40),
    (52, 78, 132),
    (150, 152, 156),
)
WHITE = (232, 232, 226)

ACROSS = np.linspace(-0.78, 0.78, 28)  # abscissae of a curve that crosses the whole image


class Pen:
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
        jitter = self.rng.standard_normal((number, 1)) * spread + self.rng.standard_normal((number, 3)) * spread / 3
        return [tuple(colour) for colour in np.clip(chosen + jitter, 0, 255).astype(int).tolist()]

    def colour(self, *palette: Colour, spread: int = 8) -> Colour:
        return self.colours(palette, 1, spread)[0]

    def scatter(self, number: int, reach: float = 0.72) -> Points:
        return self.rng.uniform(-reach, reach, (number, 2))

    # Ground and shapes --------------------------------------------------------------------------------

    def ground(self, *kinds: str, relief: Float[np.ndarray, "size size"] | None = None) -> str:
        """Covers everything with one of the land covers; `relief` adds its own light and dark."""
        kind = kinds[self.count(0, len(kinds) - 1)]
        low, high = (np.array(self.colour(colour, spread=7), np.float32) for colour in GROUNDS[kind])
        mix = 0.5 + 0.5 * noise(self.rng, self.size)[..., None]
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

    def discs(self, centres: Pairs, radii: Float[np.ndarray, "points"], colours: Sequence[Colour], shade=0.0) -> None:
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

    def box(self, x: float, y: float, width: float, height: float, colour: Colour, angle=0.0, shade=0.0) -> None:
        self.boxes(np.array([[x, y]]), np.array([[width, height]]), [colour], angle, shade)

    # Things that many scenes share --------------------------------------------------------------------

    def trees(self, centres: Points, low: float = 0.012, high: float = 0.026) -> None:
        number = len(centres)
        self.discs(centres, self.rng.uniform(low, high, number), self.colours(TREES, number, 6), shade=0.6)

    def houses(self, centres: Points, sizes: Pairs, angle: float = 0.0) -> None:
        """Gable roofs, one half in the light."""
        roofs = self.colours(ROOFS, len(centres))
        self.boxes(centres, sizes, roofs, angle, shade=1.0)
        corners = self.corners(centres, sizes, angle)
        ridge = (corners + np.roll(corners, -1, 1)) / 2  # middles of the four sides
        half = np.stack([corners[:, 0], corners[:, 1], ridge[:, 1], ridge[:, 3]], 1)
        for points, (red, green, blue) in zip(half.reshape(-1, 8).tolist(), roofs, strict=True):
            self.draw.polygon(points, fill=(red * 3 // 4, green * 3 // 4, blue * 3 // 4))

    def cars(self, centres: Points, angle: float = 0.0, length: float = 0.034) -> None:
        sizes = np.broadcast_to([length, length * 0.5], (len(centres), 2))
        self.boxes(centres, sizes, self.colours(CARS, len(centres)), angle)

    def road(self, points: Pairs, width: float, marked: bool = True) -> None:
        self.path(points, width, self.colour(*ROADS))
        if marked and width > 0.035:
            self.path(points, 0.006, (214, 210, 190))

    def clutter(self, share: float = 0.5) -> None:
        """Some of what any countryside has: a field, a track, a house or two, trees."""
        if self.chance(share):
            at, size = self.scatter(1), self.rng.uniform(0.25, 0.6, (1, 2))
            self.boxes(at, size, self.colours(CROPS, 1), self.between(0.0, 3.0))
        if self.chance(share * 0.7):
            angle, offset = self.between(0.0, np.pi), self.between(-0.4, 0.4)
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-np.sin(angle), np.cos(angle)])
            self.road([offset * across - along, offset * across + along], self.between(0.015, 0.045))
        if self.chance(share * 0.7):
            number = self.count(1, 4)
            self.houses(self.scatter(number, 0.5), self.rng.uniform(0.05, 0.1, (number, 2)), self.between(0.0, 3.0))
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


def noise(rng: np.random.Generator, size: int, cells: Sequence[int] = (4, 9, 20, 44)) -> Float32[np.ndarray, "s s"]:
    """Noise of several octaves, each weaker than the coarser one; standard deviation about 0.6."""
    total = np.zeros((size, size), np.float32)
    for octave, number in enumerate(cells):
        up = _upsampler(number, size)
        total += 0.75**octave * 0.6 * (up @ rng.standard_normal((number, number), np.float32) @ up.T)
    return total


def wave(pen: Pen, x: Float[np.ndarray, "points"], bend: float) -> Float[np.ndarray, "points"]:
    """A smooth random curve over x with three harmonics."""
    phases = pen.rng.uniform(0, 2 * np.pi, 3)
    heights = bend * pen.rng.uniform(0.3, 1, 3) / (1, 2.2, 5)
    return heights @ np.sin(np.array([1.7, 3.9, 8.3])[:, None] * x + phases[:, None])


def blob(pen: Pen, centre: Pairs, radius: float, rough: float = 0.25) -> Points:
    """A closed smooth outline."""
    x, y = np.asarray(centre)
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    reach = np.ones(48)
    for k in range(2, 7):
        reach += rough * pen.between(-1.0, 1.0) / k**0.8 * np.cos(k * angle + pen.between(0.0, 6.3))
    stretch = pen.between(0.7, 1.3)
    return np.stack([x + radius * reach * np.cos(angle) * stretch, y + radius * reach * np.sin(angle) / stretch], 1)


def column(x: np.ndarray, y: np.ndarray | float) -> Points:
    return np.stack([x, np.broadcast_to(y, x.shape)], 1)
