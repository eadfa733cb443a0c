"""Pictures of a scene's answers: GeoJSON for a geographic information system, PNG for the eye."""

import io
import json
from collections.abc import Sequence

import numpy as np

from fedrsclip_jax.predict.classify import Guess
from fedrsclip_jax.predict.scene import Scene, Tile

_STRENGTH = 0.5  # of the colours over the scene
_LEGEND = 24  # classes named, the most frequent

Answer = tuple[Tile, Guess, float]  # and the share of the tile's pixels that hold data


def as_geojson(scene: Scene, answers: Sequence[Answer]) -> str:
    """A feature a tile, in the scene's own coordinate system.

    RFC 7946 prescribes WGS84, which would move what was measured in another system; so this is GeoJSON of 2008, with
    a `crs` member that names the EPSG code, as GDAL writes and reads it. A scene without coordinate system has none,
    and its coordinates are what its own transform gives: without one, pixels (column, row).
    """
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": guess.class_name,
                "probability": round(guess.probability, 6),
                "top": ", ".join(f"{name} {probability:.4f}" for name, probability in guess.top),
                "valid": round(share, 4),
                "column": tile.column,
                "row": tile.row,
            },
            "geometry": {"type": "Polygon", "coordinates": [scene.polygon(tile)]},
        }
        for tile, guess, share in answers
    ]
    crs = {} if scene.name is None else {"crs": {"type": "name", "properties": {"name": scene.name}}}
    return json.dumps({"type": "FeatureCollection", **crs, "features": features}, ensure_ascii=False) + "\n"


def as_png(scene: Scene, answers: Sequence[Answer]) -> bytes:
    """The scene, at most 1024 pixels a side, with tiles coloured by class; where tiles overlap, the surest shows."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no window, no global state
    from matplotlib.patches import Patch

    picture = scene.overview().astype(np.float32) / 255
    found, counts = np.unique([guess.class_name for _, guess, _ in answers], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(len(found))
    hues = colormaps["tab20"](ranks) if len(found) <= 20 else colormaps["hsv"](ranks / len(found))
    names = [str(found[c]) for c in order]
    colours = {name: np.asarray(hues[rank, :3], np.float32) for rank, name in enumerate(names)}
    down, across = picture.shape[0] / scene.height, picture.shape[1] / scene.width
    plain = picture.copy()
    for tile, guess, _ in sorted(answers, key=lambda answer: answer[1].probability):
        top, left = round(tile.row * down), round(tile.column * across)
        place = (
            slice(top, max(round((tile.row + tile.height) * down), top + 1)),
            slice(left, max(round((tile.column + tile.width) * across), left + 1)),
        )
        picture[place] = (1 - _STRENGTH) * plain[place] + _STRENGTH * colours[guess.class_name]

    height, width = picture.shape[:2]
    long = max(height, width)
    figure = Figure(figsize=(8 * width / long + 3.2, max(8 * height / long, 3) + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(scene.path.name, fontsize=10, parse_math=False)
    legend = [
        Patch(color=tuple(colours[str(found[c])].tolist()), label=f"{found[c]} ({counts[c]})") for c in order[:_LEGEND]
    ]
    if len(order) > _LEGEND:
        legend.append(Patch(color="none", label=f"and {len(order) - _LEGEND} more"))
    shown = figure.legend(handles=legend, title="class (tiles)", loc="outside right upper", frameon=False)
    for text in shown.get_texts():
        text.set_parse_math(False)  # a class name may hold a dollar
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()
