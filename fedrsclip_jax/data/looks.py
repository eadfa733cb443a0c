"""How a picture looks: haze, light, colour cast, season, sharpness, noise and ground resolution.

A `Look` is both words and pixels: `alter` applies it to any image, `caption` says it beside the class name.
A small CLIP trained on such pairs has a text tower that a learned context can steer. A `Domain` is a sensor:
the range of looks its pictures have. The federation's domains combine properties that pretraining only sees
one or two at a time, so that they are new, but can be described with known words.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter

from fedrsclip_jax.errors import InputError

# One knob for how far the federation's domains are from pretraining: 1 is as written below, 0 leaves only the
# seasons. At 1 a small network that is right on 0.93 of clear scenes is right on 0.42 here (chance is 0.06).
FEDERATION_STRENGTH = 1.0

CASTS = {  # the colour of a white surface under a cast of strength 1, red green blue
    "none": (1.0, 1.0, 1.0),
    "blue": (0.45, 0.70, 1.25),
    "yellow": (1.20, 1.00, 0.35),
    "red": (1.30, 0.60, 0.55),
    "green": (0.55, 1.15, 0.55),
    "purple": (1.00, 0.50, 1.15),
}
SEASONS = ("summer", "autumn", "winter", "dry")


def known(value: str, allowed: Iterable[str], what: str) -> str:
    """`value` itself if it is allowed; otherwise an InputError that names the nearest allowed one."""
    allowed = tuple(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
    raise InputError(f"unknown {what} {value!r}; did you mean {near[0]!r}? allowed: {', '.join(allowed)}")


@dataclass(frozen=True)
class Look:
    """How one picture looks; the default is neutral.

    Attributes:
      haze: 0 clear to 1, where a tenth of the contrast is left.
      light: -1 dark (a third of the light) to 1 bright (three times the light, clipped), 0 unchanged.
      cast: name of a colour in CASTS.
      cast_strength: 0 to 1.
      season: one of SEASONS; "winter" is snow. Summer leaves the picture as it is.
      blur: standard deviation of the blur as a fraction of the shorter side (0.02 is 1.3 pixels of 64).
      noise: standard deviation of the sensor's noise, where 1 is the range from black to white.
      resolution: ground resolution, 1 native; 0.25 samples every fourth pixel.
    """

    haze: float = 0.0
    light: float = 0.0
    cast: str = "none"
    cast_strength: float = 0.0
    season: str = "summer"
    blur: float = 0.0
    noise: float = 0.0
    resolution: float = 1.0

    def __post_init__(self):
        known(self.cast, CASTS, "colour cast")
        known(self.season, SEASONS, "season")
        limits = {
            "haze": (0, 1),
            "light": (-1, 1),
            "cast_strength": (0, 1),
            "blur": (0, 1),
            "noise": (0, 1),
            "resolution": (0.01, 1),
        }
        for field, (low, high) in limits.items():
            if not low <= getattr(self, field) <= high:
                raise InputError(f"{field} of a look is {getattr(self, field)}; allowed: {low} to {high}")


Range = tuple[float, float]


@dataclass(frozen=True)
class Domain:
    """A named sensor domain: the ranges and choices, field by field, from which a Look is drawn."""

    name: str
    haze: Range = (0.0, 0.1)
    light: Range = (-0.15, 0.15)
    casts: tuple[str, ...] = ("none",)
    cast_strength: Range = (0.0, 0.0)
    seasons: tuple[str, ...] = ("summer",)
    blur: Range = (0.0, 0.004)
    noise: Range = (0.0, 0.01)
    resolution: Range = (1.0, 1.0)

    def sample(self, rng: np.random.Generator) -> Look:
        """A look, uniform in every range and choice."""
        u = rng.random(8).tolist()

        def within(span: Range) -> float:
            return span[0] + u.pop() * (span[1] - span[0])

        cast = self.casts[int(u.pop() * len(self.casts))]
        season = self.seasons[int(u.pop() * len(self.seasons))]
        strength = within(self.cast_strength)
        return Look(
            within(self.haze),
            within(self.light),
            cast,
            0.0 if cast == "none" else strength,
            season,
            within(self.blur),
            within(self.noise),
            within(self.resolution),
        )

    def overlaps(self, other: "Domain") -> bool:
        """Whether some look could be drawn from both."""
        colours = set(self.casts) & set(other.casts)
        same_cast = "none" in colours or (colours and _meet(self.cast_strength, other.cast_strength))
        spans = ("haze", "light", "blur", "noise", "resolution")
        return bool(
            same_cast
            and set(self.seasons) & set(other.seasons)
            and all(_meet(getattr(self, field), getattr(other, field)) for field in spans)
        )


def _meet(a: Range, b: Range) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _scaled(domain: Domain, strength: float) -> Domain:
    """The domain with every departure from neutral multiplied by `strength`, within what a Look allows."""

    def times(span: Range, top: float = 1.0) -> Range:
        low, high = (max(-top, min(top, strength * value)) for value in span)
        return low, high

    finest, coarsest = times((1.0 - domain.resolution[1], 1.0 - domain.resolution[0]), 0.95)
    return replace(
        domain,
        haze=times(domain.haze),
        light=times(domain.light),
        blur=times(domain.blur),
        cast_strength=times(domain.cast_strength),
        noise=times(domain.noise),
        resolution=(1.0 - coarsest, 1.0 - finest),
    )


_COLOURS = tuple(cast for cast in CASTS if cast != "none")

# Pretraining sees every property over its whole range, but alone or with one other.
_PRETRAINING = (
    Domain("clear"),
    Domain("haze", haze=(0.1, 0.85)),
    Domain("light", light=(-0.85, 0.85)),
    Domain("tint", casts=_COLOURS, cast_strength=(0.15, 0.9)),
    Domain("season", seasons=("autumn", "winter", "dry")),
    Domain("blur", blur=(0.005, 0.04)),
    Domain("noise", noise=(0.02, 0.22)),
    Domain("coarse", resolution=(0.22, 0.7)),
    Domain("mist", haze=(0.1, 0.6), blur=(0.005, 0.025)),
    Domain("film", casts=_COLOURS, cast_strength=(0.1, 0.5), noise=(0.02, 0.12)),
    Domain("evening", light=(-0.6, -0.2), resolution=(0.4, 0.8)),
    Domain("fall", seasons=("autumn", "winter", "dry"), light=(-0.5, 0.5)),
)

# The federation sees three or four properties at once, each at a strength that pretraining has words for.
_FEDERATION = (
    Domain(
        "dust",
        haze=(0.3, 0.5),
        casts=("yellow",),
        cast_strength=(0.4, 0.6),
        seasons=("dry",),
        noise=(0.015, 0.03),
    ),
    Domain("frost", seasons=("winter",), noise=(0.05, 0.08), resolution=(0.42, 0.55)),
    Domain("dusk", light=(-0.6, -0.35), casts=("blue",), cast_strength=(0.4, 0.7), noise=(0.025, 0.045)),
    Domain("marsh", casts=("green",), cast_strength=(0.4, 0.7), seasons=("autumn",), blur=(0.018, 0.028)),
    Domain("glare", light=(0.35, 0.6), casts=("purple",), cast_strength=(0.4, 0.7), resolution=(0.35, 0.5)),
    Domain(
        "smoke",
        haze=(0.25, 0.4),
        light=(-0.4, -0.2),
        casts=("red",),
        cast_strength=(0.4, 0.6),
        blur=(0.008, 0.014),
    ),
)

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in _PRETRAINING}
DOMAINS |= {domain.name: _scaled(domain, FEDERATION_STRENGTH) for domain in _FEDERATION}
PRETRAINING: tuple[str, ...] = tuple(domain.name for domain in _PRETRAINING)
FEDERATION: tuple[str, ...] = tuple(domain.name for domain in _FEDERATION)


# ------------------------------------------------------------------------------------------ pixels


def alter(
    image: UInt8[np.ndarray, "height width 3"], look: Look, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with this look, in the order of the world: ground, air, light, lens, sensor. A pure function.

    A neutral look returns the same pixels. `rng` is for the noise, and for how much snow or wilting there is.
    """
    pixels = image.astype(np.float32) / 255
    if look.season != "summer":
        pixels = _with_season(pixels, look.season, float(rng.uniform(0.75, 1.0)))
    if look.haze > 0:
        pixels += 0.9 * look.haze * (np.array([0.80, 0.82, 0.85], np.float32) - pixels)
    if look.light != 0:
        pixels *= 2.0 ** (1.6 * look.light)
    if look.cast_strength > 0:
        # Hue alone: the light axis is for brightness.
        tint = 1 + look.cast_strength * (np.array(CASTS[look.cast], np.float32) - 1)
        pixels *= tint.astype(np.float32)
    if look.blur > 0 or look.resolution < 1:
        height, width = image.shape[:2]
        picture = Image.fromarray(_bytes(pixels))
        if look.blur > 0:
            picture = picture.filter(ImageFilter.GaussianBlur(look.blur * min(height, width)))
        if look.resolution < 1:
            coarse = max(1, round(width * look.resolution)), max(1, round(height * look.resolution))
            picture = picture.resize(coarse, Image.Resampling.BOX)
        pixels = np.asarray(picture, np.float32) / 255
    if look.noise > 0:  # of the sensor's own pixels, which may be coarser than the picture's
        pixels = pixels + look.noise * rng.standard_normal(pixels.shape, np.float32)
    altered = _bytes(pixels)
    if altered.shape != image.shape:
        size = image.shape[1], image.shape[0]
        altered = np.array(Image.fromarray(altered).resize(size, Image.Resampling.NEAREST))
    return altered


def _bytes(pixels: Float32[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _with_season(pixels: Float32[np.ndarray, "height width 3"], season: str, amount: float) -> np.ndarray:
    """Snow on the ground, or leaves that turned; water and roofs are told apart by colour only."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    light = pixels.mean(-1, keepdims=True)
    # Leaves and grass: more green than blue, and not much more red than green.
    plants = (np.clip(8 * (green - blue), 0, 1) * np.clip(1 - 6 * (red - green), 0, 1))[..., None]
    if season == "winter":
        # Dark blue surfaces are open water, which stays dark.
        ground = np.clip(1 - 8 * (blue - red), 0, 1)[..., None]
        cover = ground * (0.45 + 0.45 * plants)
        target = np.array([0.90, 0.93, 0.97], np.float32) * (0.76 + 0.35 * light)
    elif season == "autumn":
        cover = plants
        target = np.array([1.50, 0.92, 0.40], np.float32) * light + np.array([0.06, 0.02, 0.0], np.float32)
    else:
        cover = plants
        target = np.array([1.15, 1.00, 0.70], np.float32) * light + np.array([0.16, 0.13, 0.06], np.float32)
    return pixels + amount * cover * (target - pixels)


# ------------------------------------------------------------------------------------------ words

_WORDS = {  # property: (words when slight, when moderate, when strong)
    "haze": (("slightly hazy", "slightly misty"), ("hazy", "misty"), ("very hazy", "foggy")),
    "dark": (("slightly dark", "slightly dim"), ("dark", "dim"), ("very dark", "very dim")),
    "bright": (("slightly bright",), ("bright",), ("very bright", "overexposed")),
    "blur": (("slightly blurry", "slightly blurred"), ("blurry", "blurred"), ("very blurry", "out of focus")),
    "noise": (("slightly noisy", "slightly grainy"), ("noisy", "grainy"), ("very noisy", "very grainy")),
    "coarse": (("slightly coarse",), ("coarse", "low resolution"), ("very coarse", "very low resolution")),
    "autumn": (("autumn",),) * 3,
    "winter": (("winter", "snowy"),) * 3,
    "dry": (("dry", "dry season"),) * 3,
    "blue": (("slightly bluish",), ("bluish", "blue tinted"), ("very bluish", "blue")),
    "yellow": (("slightly yellowish",), ("yellowish", "yellow tinted"), ("very yellowish", "yellow")),
    "red": (("slightly reddish",), ("reddish", "red tinted"), ("very reddish", "red")),
    "green": (("slightly greenish",), ("greenish", "green tinted"), ("very greenish", "green")),
    "purple": (("slightly purplish",), ("purplish", "purple tinted"), ("very purplish", "purple")),
}
_PLAIN = ("clear", "sharp", "clean", "summer", "clear summer", "sharp summer", "daylight")
_NOUNS = (
    "satellite photo",
    "satellite photo",
    "satellite image",
    "aerial photo",
    "aerial image",
    "overhead picture",
)
_BARE = "a satellite photo of a {name}."
_BARE_SHARE = 0.25
_SPOKEN = 4  # properties in one caption at most: longer ones would not fit a short context

# {words} go before the name in most, as a learned context does; {first} and {rest} share the words out.
_TEMPLATES = (
    ("{a} {words} {noun} of a {name}.", 0.40),
    ("{words} {noun} of {name}.", 0.15),
    ("{words} {noun} of a {name}.", 0.15),
    ("{first} {noun}, {rest}, of a {name}.", 0.10),
    ("{noun}, {words}, of a {name}.", 0.10),
    ("{a} {noun} of a {name}, {words}.", 0.07),
    ("a {name}, {words}.", 0.03),
)
_TEMPLATE_STEPS = np.cumsum([weight for _, weight in _TEMPLATES])


def strengths(look: Look) -> dict[str, float]:
    """Property -> how far it is from neutral, 0 to about 1; only those that can be seen."""
    found = {
        "haze": look.haze,
        "dark" if look.light < 0 else "bright": abs(look.light),
        "blur": look.blur / 0.04,
        "noise": look.noise / 0.2,
        "coarse": (1 - look.resolution) / 0.8,
    }
    if look.season != "summer":
        found[look.season] = 0.7
    if look.cast != "none":
        found[look.cast] = look.cast_strength
    return {name: value for name, value in found.items() if value >= 0.1}


def caption(class_name: str, look: Look, rng: np.random.Generator) -> str:
    """An English sentence about a picture of this class with this look; lower case, at most about 20 words.

    A quarter are the bare zero-shot template. In the others every strong property is said, the weaker ones
    now and then; the words grow with the strength.
    """
    name = class_name.lower()
    if rng.random() < _BARE_SHARE:
        return _BARE.format(name=name)
    seen = sorted(strengths(look).items(), key=lambda item: -item[1])[:_SPOKEN]
    said = [
        item
        for place, item in enumerate(seen)
        if place == 0 or item[1] >= 0.6 or rng.random() < (0.8 if item[1] >= 0.3 else 0.4)
    ]
    phrases = [_one(_WORDS[key][(value >= 0.3) + (value >= 0.6)], rng) for key, value in said]
    rng.shuffle(phrases)
    phrases = phrases or [_one(_PLAIN, rng)]

    place = int(np.searchsorted(_TEMPLATE_STEPS, rng.random() * _TEMPLATE_STEPS[-1], side="right"))
    template = _TEMPLATES[min(place, len(_TEMPLATES) - 1)][0]
    if len(phrases) < 2 and "{rest}" in template:
        template = _TEMPLATES[0][0]
    joint = _one((", ", " "), rng)
    words, noun = joint.join(phrases), _one(_NOUNS, rng)
    after_article = words if template.startswith("{a} {words}") else noun
    article = "an" if after_article[0] in "aeiou" else "a"
    rest = ", ".join(phrases[1:])
    return template.format(a=article, words=words, first=phrases[0], rest=rest, noun=noun, name=name)


def _one(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
