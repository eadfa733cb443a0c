"""Painters of scenes that people built: homes, roads, harbors, runways, tanks and sports grounds. See scenes.py."""

import numpy as np

from fedrsclip_jax.data.pen import (
    ACROSS,
    CARS,
    CROPS,
    GROUNDS,
    ROADS,
    ROOFS,
    TREES,
    WHITE,
    Pen,
    Points,
    blob,
    column,
    wave,
)


def harbor(pen: Pen) -> None:
    pen.ground("sea", "bay")
    shore = pen.between(-0.45, -0.1)
    quay = pen.colour(*GROUNDS["concrete"], *GROUNDS["city"])
    pen.area([[-0.8, -0.8], [0.8, -0.8], [0.8, shore], [-0.8, shore]], quay)
    if pen.chance(0.7):
        number = pen.count(2, 6)
        at = column(pen.rng.uniform(-0.6, 0.6, number), shore - pen.rng.uniform(0.08, 0.25, number))
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
            hulls.append(column(np.full(len(taken), x + side * (0.016 + boat / 2)), taken))
    at = np.vstack(hulls)
    colours = pen.colours(((238, 238, 236), (222, 224, 226), (240, 236, 226), (90, 110, 140), (190, 186, 176)), len(at))
    length, beam = boat * pen.rng.uniform(0.75, 1.0, (len(at), 1)), boat * 0.3
    pen.boxes(at, np.hstack([length, np.full_like(length, beam)]), colours)
    if pen.chance(0.5):
        x, y, long = pen.between(-0.4, 0.4), end + pen.between(0.03, 0.2), pen.between(0.06, 0.16)
        pen.box(x, y, long, long * 0.3, WHITE, pen.between(-0.5, 0.5))


def runway(pen: Pen) -> None:
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
        pen.path([[start, y + edge * width], [0.8, y + edge * width]], 0.008, WHITE)
    dash = pen.between(0.07, 0.13)
    for x in np.arange(start + 0.26, 0.8, 1.8 * dash):
        pen.path([[x, y], [x + dash, y]], 0.013, WHITE)
    if start > -0.8:
        stripes = np.linspace(-0.36, 0.36, 8) * width + y
        at = column(np.full(8, start + 0.07), stripes)
        pen.boxes(at, np.broadcast_to([0.1, width * 0.06], (8, 2)), [WHITE] * 8)
        pen.path([[start + 0.17, y - width * 0.1], [start + 0.17, y + width * 0.1]], 0.03, WHITE)
    for x in (start + 0.34, start + 0.46):
        at = np.array([[x, y - width * 0.25], [x, y + width * 0.25]])
        pen.boxes(at, np.broadcast_to([0.06, width * 0.14], (2, 2)), [WHITE] * 2)
    if pen.chance(0.7):  # worn rubber where wheels touch
        for x in pen.rng.uniform(start + 0.2, start + 0.7, 4):
            pen.path([[x, y + 0.03], [x + 0.2, y + 0.03]], 0.012, (58, 58, 62))
    if pen.chance(0.3):
        x, span = pen.between(-0.1, 0.3), pen.between(0.1, 0.16)
        pen.box(x, y, span, span * 0.14, WHITE)
        pen.area([[x + span * 0.1, y], [x - span * 0.12, y - span / 2], [x - span * 0.12, y + span / 2]], WHITE)


def storage_tanks(pen: Pen) -> None:
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
        pen.boxes(at, rims * 0.93, [pen.colour(*GROUNDS["dry"], *GROUNDS["concrete"])] * len(at))
    for _ in range(pen.count(1, 4)):
        (x, y), colour = pen.scatter(1)[0], pen.colour((186, 184, 178), (96, 92, 88))
        pen.path([[x, -0.8], [x, y], [0.8, y]], 0.009, colour)
    paint = pen.colours(((236, 236, 232), (218, 218, 214), (232, 228, 214), (170, 150, 136), (204, 208, 204)), 2, 6)
    pen.discs(at, radii, [(112, 112, 110)] * len(at), shade=pen.between(1.2, 2.4))
    tops = pen.colours(paint, len(at), 5)
    pen.discs(at, radii * 0.94, tops)
    if pen.chance(0.5):  # floating roofs: the wall shades a crescent of the lid
        lids = [(red * 5 // 6, green * 5 // 6, blue * 5 // 6) for red, green, blue in tops]
        pen.discs(at, radii * 0.8, lids)
        pen.discs(at + 0.14 * radii[:, None] * (pen.sun / np.hypot(*pen.sun)) @ pen.turn.T, radii * 0.64, tops)
    else:
        pen.discs(at, radii * 0.12, [(150, 150, 148)] * len(at))


def dense_residential(pen: Pen) -> None:
    pen.ground("city", "grass", "soil", "concrete")
    lot, depth = pen.between(0.1, 0.16), pen.between(0.12, 0.18)
    street, road = pen.between(0.05, 0.08), pen.colour(*ROADS)
    y, trees = -0.8 + pen.between(0.0, depth), []
    while y < 0.8:
        pen.path([[-0.8, y], [0.8, y]], street, road)
        for row in (y + street / 2 + depth / 2, y + street / 2 + depth * 1.5):
            x = np.arange(-0.75 + pen.between(0.0, lot), 0.75, lot)
            x = x[pen.rng.random(len(x)) < 0.95]
            at = column(x, row) + pen.rng.normal(0, 0.008, (len(x), 2))
            sizes = np.array([lot, depth]) * pen.rng.uniform(0.58, 0.86, (len(x), 2))
            pen.houses(at, sizes)
            trees.append(at[pen.rng.random(len(at)) < 0.3] + [lot / 2, depth * 0.4])
        y += street + 2 * depth
    if pen.chance(0.5):
        x = pen.between(-0.3, 0.3)
        pen.path([[x, -0.8], [x, 0.8]], street, road)
    pen.trees(np.vstack(trees), 0.012, 0.022)


def sparse_residential(pen: Pen) -> None:
    pen.ground("grass", "meadow", "grass", "dry")
    if pen.chance(0.3):
        pen.area(blob(pen, pen.scatter(1, 0.6)[0], 0.3), pen.colour(*CROPS))
    y = wave(pen, ACROSS, pen.between(0.03, 0.2))
    pen.road(column(ACROSS, y), pen.between(0.03, 0.05))
    number = pen.count(2, 7)
    x = np.linspace(-0.5, 0.5, number) + pen.rng.uniform(-0.06, 0.06, number)
    side = np.where(np.arange(number) % 2, 1, -1) * pen.rng.uniform(0.12, 0.3, number)
    at = column(x, np.interp(x, ACROSS, y) + side)
    drive = pen.colour(*GROUNDS["concrete"])
    for home in at:
        pen.path([home, [home[0], np.interp(home[0], ACROSS, y)]], 0.018, drive)
    pen.trees(pen.scatter(pen.count(12, 60)), 0.015, 0.034)
    sizes = pen.rng.uniform(0.08, 0.15, (number, 2))
    pen.houses(at, sizes, pen.between(-0.4, 0.4))
    if pen.chance(0.5):
        pen.houses(at[:2] + sizes[:2] * [0.9, 0.5], sizes[:2] * 0.6)
    if pen.chance(0.25):
        pen.disc(at[0, 0], at[0, 1] + 0.1, 0.025, (92, 176, 196))


def parking_lot(pen: Pen) -> None:
    pen.ground("asphalt", "city", "asphalt")
    stall, length = pen.between(0.036, 0.056), pen.between(0.07, 0.1)
    aisle, full = length * pen.between(0.6, 0.95), pen.between(0.35, 1.0)
    y, grid = -0.75 + pen.between(0.0, 0.2), np.arange(-0.75, 0.75, stall)
    while y < 0.75:
        for row in (y - length / 2, y + length / 2):
            marks = column(grid, row)
            pen.boxes(marks, np.broadcast_to([0.007, length], marks.shape), [(196, 196, 190)] * len(marks))
            taken = grid[pen.rng.random(len(grid)) < full] + stall / 2
            at = column(taken, row) + pen.rng.normal(0, 0.003, (len(taken), 2))
            pen.boxes(at, np.broadcast_to([stall * 0.62, length * 0.8], at.shape), pen.colours(CARS, len(at)))
        if pen.chance(0.3):
            pen.box(0.0, y, 1.6, 0.02, pen.colour(*GROUNDS["grass"]))
            pen.trees(column(pen.rng.uniform(-0.7, 0.7, 8), y))
        y += 2 * length + aisle
    if pen.chance(0.4):
        edge = pen.between(0.25, 0.5)
        pen.area(
            [[-0.8, edge], [0.8, edge], [0.8, 0.8], [-0.8, 0.8]],
            pen.colour(*GROUNDS["grass"], *GROUNDS["city"]),
        )
        if pen.chance(0.6):
            pen.box(pen.between(-0.3, 0.3), edge + 0.2, 0.7, 0.3, pen.colour(*ROOFS), shade=1.5)
        else:
            pen.trees(column(pen.rng.uniform(-0.7, 0.7, 16), edge + pen.rng.uniform(0.04, 0.3, 16)))


def freeway(pen: Pen) -> None:
    pen.ground("grass", "meadow", "dry", "city", "soil")
    pen.clutter(0.5)
    bend = pen.between(-0.35, 0.35) if pen.chance(0.5) else 0.0
    curve = bend * (ACROSS**2 - 0.2) + pen.between(-0.12, 0.12)
    lanes, lane, median = pen.count(2, 4), pen.between(0.034, 0.046), pen.between(0.012, 0.09)
    road, half = pen.colour(*ROADS), lanes * lane
    if pen.chance(0.3):
        offset = median / 2 + half + 0.05
        pen.path(column(ACROSS, curve + offset + 0.5 * np.maximum(0, ACROSS)), 0.045, road)
    barrier = pen.colour(*GROUNDS["grass"], *GROUNDS["dry"], (176, 174, 168))
    pen.path(column(ACROSS, curve), median + 2 * half, barrier)
    for side in (-1, 1):
        centre = curve + side * (median + half) / 2
        pen.path(column(ACROSS, centre), half + 0.014, road)
        for edge in (-half / 2, half / 2):
            pen.path(column(ACROSS, centre + edge), 0.007, (214, 212, 200))
        for mark in range(1, lanes):
            line = centre - half / 2 + mark * lane
            for k in range(0, len(ACROSS) - 1, 2):
                pen.path(column(ACROSS, line)[k : k + 2], 0.006, (206, 206, 202))
        x = pen.rng.uniform(-0.7, 0.7, pen.count(3, 12))
        which = pen.rng.integers(lanes, size=len(x))
        at = column(x, np.interp(x, ACROSS, centre) - half / 2 + (which + 0.5) * lane)
        slope = np.interp(x, ACROSS, 2 * bend * ACROSS)
        for car, lean in zip(at, slope, strict=True):
            pen.cars(car[None], float(np.arctan(lean)), 0.075 if pen.chance(0.15) else 0.04)
    if pen.chance(0.25):  # a bridge over it
        x, lean = pen.between(-0.3, 0.3), pen.between(-0.25, 0.25)
        pen.path(np.array([[x - lean, -0.8], [x + lean, 0.8]]) + pen.sun @ pen.turn.T, 0.09, (54, 54, 56))
        pen.road([[x - lean, -0.8], [x + lean, 0.8]], 0.085)


def baseball_diamond(pen: Pen) -> None:
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
        pen.path([[x, y], end], 0.008, WHITE)
    bases = np.array([[x, y], [x + base, y], [x, y + base], [x + base, y + base]])
    pen.discs(bases, np.full(4, 0.011), [WHITE] * 4)
    if pen.chance(0.6):
        stands = pen.colour(*ROOFS)
        pen.box(x - base * 0.42, y + base * 0.3, 0.05, base * 0.8, stands, shade=1.0)
        pen.box(x + base * 0.3, y - base * 0.42, base * 0.8, 0.05, stands, shade=1.0)
    angle = pen.rng.uniform(0, np.pi / 2, pen.count(0, 18))
    at = np.stack([x + (reach + 0.07) * np.cos(angle), y + (reach + 0.07) * np.sin(angle)], 1)
    pen.trees(at, 0.02, 0.036)


def roundabout(pen: Pen) -> None:
    pen.ground("city", "grass", "meadow", "concrete", "soil")
    pen.clutter(0.35)
    x, y = pen.scatter(1, 0.1)[0]
    radius, width, road = pen.between(0.13, 0.27), pen.between(0.075, 0.12), pen.colour(*ROADS[:3])
    arms = pen.count(3, 5)
    angles = np.arange(arms) * 2 * np.pi / arms + pen.rng.uniform(-0.25, 0.25, arms)
    verge = pen.colour(*GROUNDS["grass"], *GROUNDS["concrete"])
    towards = np.stack([np.cos(angles), np.sin(angles)], 1)
    for arm in towards:
        pen.path([[x, y], [x, y] + 1.3 * arm], width + 0.03, verge)
    pen.disc(x, y, radius + width + 0.015, verge)
    for arm in towards:
        pen.path([[x, y], [x, y] + 1.3 * arm], width, road)
        pen.path([[x, y] + (radius + width) * arm, [x, y] + 1.3 * arm], 0.012, WHITE)
    pen.disc(x, y, radius + width, road)
    pen.disc(x, y, radius + 0.008, WHITE)
    pen.disc(x, y, radius, pen.colour(*GROUNDS["grass"], *GROUNDS["meadow"], *GROUNDS["concrete"]))
    if pen.chance(0.6):
        pen.disc(
            x,
            y,
            radius * pen.between(0.25, 0.6),
            pen.colour(*TREES, *GROUNDS["soil"], *GROUNDS["concrete"]),
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
