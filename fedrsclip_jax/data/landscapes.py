"""Painters of scenes that nature or farming shaped: water, woods, sand and fields. See scenes.py."""

import numpy as np

from fedrsclip_jax.data.pen import ACROSS, CROPS, GROUNDS, TREES, WATERS, Pen, blob, column, noise, wave


def river(pen: Pen) -> None:
    pen.ground("grass", "meadow", "woods", "soil", "dry")
    pen.clutter(0.5)
    middle = wave(pen, ACROSS, pen.between(0.08, 0.3)) + pen.between(-0.15, 0.15)
    width = pen.between(0.07, 0.24) * (1 + 0.25 * wave(pen, ACROSS, 0.7))
    bank, water = pen.colour(*GROUNDS["soil"], *GROUNDS["sand"], *GROUNDS["grass"]), pen.colour(*WATERS)
    for colour, rim in ((bank, pen.between(0.008, 0.05)), (water, 0.0)):
        upper, lower = middle + width / 2 + rim, middle - width / 2 - rim
        pen.area(np.vstack([column(ACROSS, upper), column(ACROSS, lower)[::-1]]), colour)
    if pen.chance(0.25):
        place = pen.count(9, 18)
        pen.area(blob(pen, (ACROSS[place], middle[place]), 0.25 * width[place]), bank)
    if pen.chance(0.6):
        x = pen.rng.uniform(-0.7, 0.7, pen.count(8, 40))
        side = pen.rng.choice([-1, 1], len(x)) * (np.interp(x, ACROSS, width) / 2 + pen.rng.uniform(0.02, 0.15, len(x)))
        pen.trees(np.stack([x, np.interp(x, ACROSS, middle) + side], 1))
    if pen.chance(0.2):
        x = pen.between(-0.3, 0.3)
        pen.road([[x, -0.8], [x + pen.between(-0.2, 0.2), 0.8]], pen.between(0.03, 0.06))


def lake(pen: Pen) -> None:
    pen.ground("grass", "meadow", "woods", "dry", "soil")
    pen.clutter(0.5)
    x, y = pen.scatter(1, 0.25)[0]
    shore = blob(pen, (x, y), pen.between(0.16, 0.46), pen.between(0.1, 0.4))
    rim = pen.colour(*GROUNDS["sand"], *GROUNDS["grass"], *GROUNDS["woods"], *GROUNDS["dry"])
    pen.area(np.array([x, y]) + (shore - [x, y]) * pen.between(1.04, 1.16), rim)
    water = pen.colour(*WATERS)
    pen.area(shore, water)
    deep = tuple(part * 9 // 10 for part in water)
    pen.area(np.array([x, y]) + (shore - [x, y]) * 0.8, deep)
    if pen.chance(0.2):
        pen.area(blob(pen, (x, y), 0.05), rim)
    if pen.chance(0.65):
        around = shore[pen.rng.integers(len(shore), size=pen.count(8, 40))]
        spread = pen.rng.uniform(1.12, 1.5, (len(around), 1))
        pen.trees(np.array([x, y]) + (around - [x, y]) * spread)
    if pen.chance(0.25):
        pen.path([shore[0], shore[0] * 0.75 + 0.25 * np.array([x, y])], 0.02, (176, 160, 136))


def beach(pen: Pen) -> None:
    pen.ground("sea", "bay")
    y, bend = pen.between(-0.2, 0.25), pen.between(0.02, 0.12)
    coast = wave(pen, ACROSS, bend)
    sand, width = pen.colour(*GROUNDS["sand"]), pen.between(0.12, 0.4)
    wet = tuple(part * 4 // 5 for part in sand)
    land = pen.colour(*GROUNDS["grass"], *GROUNDS["meadow"], *GROUNDS["city"], *GROUNDS["woods"])
    bands = [(-0.2, (58, 118, 134)), (-0.1, (92, 152, 158))] if pen.chance(0.7) else []
    bands += [(-0.045, (226, 232, 230)), (-0.02, wet), (0.03, sand), (width, land)]
    for offset, colour in bands:
        edge = y + offset + coast + wave(pen, 2.5 * ACROSS, 0.014)
        pen.area(np.vstack([column(ACROSS, edge), [[0.8, 0.8], [-0.8, 0.8]]]), pen.colour(colour, spread=4))
    for _ in range(pen.count(0, 3)):  # breakers further out
        start, long, out = pen.count(0, 18), pen.count(5, 10), pen.between(0.07, 0.2)
        pen.path(column(ACROSS, y + coast - out)[start : start + long], 0.014, (220, 228, 228))
    if pen.chance(0.4):
        x = pen.rng.uniform(-0.6, 0.6, 20)
        at = column(x, y + np.interp(x, ACROSS, coast) + pen.rng.uniform(0.05, max(0.07, width - 0.03), 20))
        pen.discs(
            at,
            np.full(20, 0.01),
            pen.colours(((200, 60, 50), (60, 100, 170), (240, 240, 240)), 20),
            shade=0.4,
        )
    if pen.chance(0.7):
        x = pen.rng.uniform(-0.7, 0.7, pen.count(6, 30))
        inland = np.interp(x, ACROSS, coast) + width + pen.rng.uniform(0.02, 0.35, len(x))
        pen.trees(column(x, y + inland))
    if pen.chance(0.4):
        edge = y + width + 0.08
        pen.road(column(ACROSS, edge + coast), 0.04)
        pen.houses(column(np.linspace(-0.5, 0.5, 6), edge + 0.14), pen.rng.uniform(0.06, 0.12, (6, 2)))


def forest(pen: Pen) -> None:
    pen.ground("woods")
    if pen.chance(0.4):
        pen.path(column(ACROSS, wave(pen, ACROSS, 0.2)), pen.between(0.02, 0.06), pen.colour(*GROUNDS["soil"]))
    gaps = [pen.scatter(1, 0.5) for _ in range(pen.count(0, 2))]
    for gap in gaps:
        pen.area(blob(pen, gap[0], pen.between(0.06, 0.16)), pen.colour(*GROUNDS["grass"], *GROUNDS["soil"]))
    size = pen.between(0.016, 0.036)
    at = pen.scatter(int(np.clip(pen.between(0.12, 0.2) / size**2, 120, 320)))
    for gap in gaps:
        at = at[np.hypot(*(at - gap).T) > 0.1]
    tint = pen.colours(TREES, 3, 8)
    pen.discs(at, pen.rng.uniform(0.6, 1.3, len(at)) * size, pen.colours(tint, len(at), 9))
    lit = at[: len(at) // 2] - 0.4 * size * pen.sun / np.hypot(*pen.sun) @ pen.turn.T
    pen.discs(lit, np.full(len(lit), 0.55 * size), pen.colours(((92, 116, 66), (70, 94, 52)), len(lit)))


def desert(pen: Pen) -> None:
    size, height = pen.size, 2.2 * noise(pen.rng, pen.size, (3, 6, 11))
    grid = (np.arange(size) / size - 0.5).astype(np.float32)
    along = grid * np.float32(np.cos(pen.angle)) + grid[:, None] * np.float32(np.sin(pen.angle))
    phase = 2 * np.pi * pen.between(4.0, 11.0) * along + pen.between(0.6, 1.6) * height
    ridge = np.sin(phase) + 0.35 * np.sin(2 * phase + 1.0)  # steeper on the lee side
    relief = pen.between(5.0, 17.0) * ridge * np.clip(0.7 + 0.5 * height, 0.1, 1.2) + pen.between(0.0, 9.0) * height
    pen.ground("sand", "red sand", "sand", "dry", relief=relief)
    if pen.chance(0.3):
        rock = pen.colour((136, 110, 86), (116, 98, 84))
        for _ in range(pen.count(1, 5)):
            pen.area(blob(pen, pen.scatter(1, 0.5)[0], pen.between(0.03, 0.1), 0.5), rock)
    if pen.chance(0.3):
        number = pen.count(6, 40)
        pen.discs(pen.scatter(number), np.full(number, 0.009), pen.colours(((96, 96, 62), (116, 106, 72)), number))
    if pen.chance(0.2):
        pen.path(column(ACROSS, wave(pen, ACROSS, 0.15)), 0.02, pen.colour((176, 156, 124), (128, 120, 112)))


def circular_farmland(pen: Pen) -> None:
    pen.ground("dry", "soil", "meadow", "sand")
    gap = pen.between(0.34, 0.8)
    at = np.stack(np.meshgrid(*[np.arange(-0.9, 1.0, gap) + pen.between(0.0, gap)] * 2), -1).reshape(-1, 2)
    at = at[pen.rng.random(len(at)) < 0.85] if gap < 0.5 else at
    if pen.chance(0.5):
        pen.boxes(at, np.full((len(at), 2), gap * 0.96), pen.colours((*CROPS[3:6], *GROUNDS["dry"]), len(at), 5))
    radius = gap * pen.between(0.42, 0.49)
    crops = pen.colours(CROPS, len(at), 6)
    pen.discs(at, np.full(len(at), radius), crops)
    angle = np.linspace(0, 1, 20)
    for (x, y), other in zip(at, pen.colours(CROPS, len(at), 6), strict=True):
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


def rectangular_farmland(pen: Pen) -> None:
    pen.ground("soil", "dry", "meadow")
    edge, wide, tall = pen.between(0.0, 0.014), pen.between(0.14, 0.3), pen.between(0.2, 0.5)
    x = -0.75 - pen.between(0.0, wide)
    while x < 0.75:
        width = wide * pen.between(0.7, 1.5)
        y = -0.75 - pen.between(0.0, tall)
        while y < 0.75:
            height = tall * pen.between(0.6, 1.4)
            colour = pen.colour(*CROPS)
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
        pen.houses(corner + pen.rng.uniform(-0.08, 0.08, (number, 2)), pen.rng.uniform(0.05, 0.09, (number, 2)))
        pen.trees(corner + pen.rng.normal(0, 0.08, (6, 2)))
