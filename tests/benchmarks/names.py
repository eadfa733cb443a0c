"""Class names of three aerial data sets, as tokens of OpenAI's tokenizer where it is at hand."""

from pathlib import Path

from fedrsclip_jax.clip.attention import EVEN_TOKENS, has_fused_attention
from fedrsclip_jax.clip.suffixes import Suffixes, pack

TOKENIZER = Path(__file__).resolve().parents[3] / "shared" / "clip-tokenizer"
SOS, EOS, STOP = 49406, 49407, 269

UCMERCED = (
    "agricultural, airplane, baseball diamond, beach, buildings, chaparral, dense residential, forest, freeway, "
    "golf course, harbor, intersection, medium residential, mobile home park, overpass, parking lot, river, runway, "
    "sparse residential, storage tanks, tennis court"
)
OPTIMAL31 = (
    "airplane, airport, baseball diamond, basketball court, beach, bridge, bushes, business district, church, "
    "crossroads, dense houses, desert, factory, forest, freeway, golf course, harbor, island, lake, meadow, "
    "medium houses, mobile house area, mountain, overpass, parking lot, playground, railway, round farmland, "
    "roundabout, runway, square farmland"
)
RESISC45 = (
    "airplane, airport, baseball diamond, basketball court, beach, bridge, chaparral, church, circular farmland, "
    "cloud, commercial area, dense residential, desert, forest, freeway, golf course, ground track field, harbor, "
    "industrial area, intersection, island, lake, meadow, medium residential, mobile home park, mountain, overpass, "
    "palace, parking lot, railway, railway station, rectangular farmland, river, roundabout, runway, sea ice, ship, "
    "snowberg, sparse residential, stadium, storage tank, tennis court, terrace, thermal power station, wetland"
)
BY_CLASSES = {len(names): names for names in (text.split(", ") for text in (UCMERCED, OPTIMAL31, RESISC45))}


def suffixes(names: list[str], context: int) -> Suffixes:
    """`name . [EOS]` of each class; without OpenAI's tokenizer a word is one token, as most of these are there too."""
    filled = {"before": 1 + context, "multiple_of": EVEN_TOKENS if has_fused_attention() else 1}
    if TOKENIZER.is_dir():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        return pack([[*tokenizer(f"{name}.", add_special_tokens=False).input_ids, EOS] for name in names], **filled)
    numbers = {word: 1000 + number for number, word in enumerate(sorted({w for name in names for w in name.split()}))}
    return pack([[*(numbers[word] for word in name.split()), STOP, EOS] for name in names], **filled)


def tokenizer_line() -> str:
    return "OpenAI's tokenizer" if TOKENIZER.is_dir() else "one token a word (no ../shared/clip-tokenizer)"
