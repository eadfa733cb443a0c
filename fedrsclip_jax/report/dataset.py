"""What a data set holds and what each client would own of it: tables, and a picture of clients and classes."""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax import remarks
from fedrsclip_jax.clip.templates import TEMPLATE, sentence
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import SPLITS, Clients
from fedrsclip_jax.data.joined import Joined
from fedrsclip_jax.data.published import published
from fedrsclip_jax.data.sources import ImageSource, of_folders, remarks_of, split_spec
from fedrsclip_jax.data.split import given_sides
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.report.terminal import print_table

LOOKED_AT = 256  # pictures opened for their sizes, evenly spread
IN_TABLE, IN_PICTURE = 40, 100  # clients at most


@dataclass(frozen=True, eq=False)
class Description:
    """A data set and its clients, in numbers.

    Attributes:
      title: the source as a configuration names it.
      class_names, class_images: classes, and images of each.
      origins: of several sources, what each class is called in each: see `Joined`; else None.
      domain_names, domain_images: sensors or sources, and images of each.
      doubles: images that are byte for byte another one.
      kept_together: whether these are on the same side of the split, as they are where it is drawn.
      sizes: (width, height) in pixels -> pictures, of up to `LOOKED_AT` that were opened.
      unreadable: of those, pictures that cannot be read.
      num_clients: all of them, 0 where the images cannot be divided; the rest is of the first `IN_PICTURE`.
      images: training and test images by split, [clients, classes].
      client_domains: whose images a client has, where clients are dealt out by it.
      remarks: sentences about what is not as published, how folders were understood, and what is left out.
      sentences: what zero-shot CLIP reads, by class; further templates are averaged with these.
      templates: how many there are.
      names_file: whether `classnames.txt` could give other names.
    """

    title: str
    class_names: tuple[str, ...]
    class_images: list[int]
    origins: list[list[str | None]] | None
    domain_names: tuple[str, ...]
    domain_images: list[int]
    doubles: int
    kept_together: bool
    sizes: Counter[tuple[int, int]]
    unreadable: int
    num_clients: int
    images: dict[str, Int64[np.ndarray, "clients classes"]]
    client_domains: list[str] | None
    remarks: list[str]
    sentences: list[str]
    templates: int
    names_file: bool


def describe(config: Config, source: ImageSource, clients: Clients | None, domains: list[str] | None) -> Description:
    """Counts images and opens some of them.

    Args:
      clients: None where the images cannot be divided.
      domains: see `task.client_domains`.

    Raises:
      InputError: one of the pictures cannot be read, unless `data.skip_unreadable`.
    """
    classes = len(source.class_names)
    opened = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    sizes, unreadable = Counter(), 0
    for i in opened:
        try:
            height, width, _ = source.image(int(i)).shape
            sizes[width, height] += 1
        except InputError:
            if not config.data.skip_unreadable:
                raise
            unreadable += 1
    first = np.arange(min(clients.num_clients, IN_PICTURE) if clients is not None else 0)
    images = {split: np.zeros((0, classes), np.int64) for split in SPLITS}
    if clients is not None:
        images = {split: _counts(clients, first, split, source.labels, classes) for split in SPLITS}
    said = remarks.of_images(config, source) if clients is not None else remarks_of(source)
    return Description(
        config.data.source,
        source.class_names,
        np.bincount(source.labels, minlength=classes).tolist(),
        source.origins if isinstance(source, Joined) else None,
        source.domain_names,
        np.bincount(source.domains, minlength=len(source.domain_names)).tolist(),
        len(source) - len(set(source.digests)),
        clients is not None and given_sides(config.data.split, source) is None,
        sizes,
        unreadable,
        clients.num_clients if clients is not None else 0,
        images,
        domains,
        [*said, *_remarks(config, source)],
        [sentence((*config.backbone_templates, TEMPLATE)[0], name) for name in source.class_names],
        max(len(config.backbone_templates), 1),
        of_folders(config.data.source),
    )


def _counts(
    clients: Clients, ids: np.ndarray, split: str, labels: np.ndarray, classes: int
) -> Int64[np.ndarray, "clients classes"]:
    """Images of each client and class on one side of the split."""
    table, counts = clients.padded(ids, split)
    owned = labels[table[np.arange(table.shape[1]) < counts[:, None]]]
    return np.bincount(np.repeat(ids, counts) * classes + owned, minlength=len(ids) * classes).reshape(-1, classes)


def show(found: Description, console: Console) -> None:
    """Prints all of it but the picture."""
    sizes = ", ".join(f"{width} x {height} ({count})" for (width, height), count in found.sizes.most_common(4))
    more = f" and {len(found.sizes) - 4} other sizes" if len(found.sizes) > 4 else ""
    total = sum(found.class_images)
    lines = [f"{found.title}: {total:,} images of {len(found.class_names)} classes"]
    looked_at = found.sizes.total() + found.unreadable
    lines.append(f"width x height in pixels, of {looked_at} images looked at: {sizes}{more}")
    if found.unreadable:
        lines.append(f"of these cannot be read, and are left out: {found.unreadable}")
    if found.doubles:
        side = ", which stay on its side of the split" if found.kept_together else ""
        lines.append(f"copies of another image{side}: {found.doubles}")
    if len(found.domain_names) > 1:
        each = ", ".join(f"{n} {i:,}" for n, i in zip(found.domain_names, found.domain_images, strict=True))
        lines.append(f"images by {'source' if found.origins else 'sensor'}: {each}")
    for line in [*lines, *found.remarks]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print_table(_classes(found), console)
    said = "zero-shot CLIP reads, of each class:"
    if found.templates > 1:
        said = f"zero-shot CLIP reads, of each class, and {found.templates - 1} more templates averaged with it:"
    for line in (said, *(f"  {read}" for read in found.sentences)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if found.names_file:
        names = "other words for a class go into classnames.txt in the folder, a line a class: folder = words"
        console.print(names, highlight=False, markup=False, soft_wrap=True)
    if not found.num_clients:
        return
    print_table(_clients(found), console)
    if (rest := found.num_clients - IN_TABLE) > 0:
        console.print(f"and {rest:,} more clients", highlight=False)


def picture(found: Description) -> bytes:
    """A PNG: a bubble for each client and class, with an area in proportion to its training images."""
    from matplotlib.figure import Figure  # no window, no global state

    train = found.images["train"]
    clients, classes = train.shape
    figure = Figure(figsize=(2.5 + 0.32 * max(clients, 8), 1.5 + 0.24 * max(classes, 8)), layout="constrained")
    axes = figure.subplots()
    k, c = np.nonzero(train)
    areas = 160 * train[k, c] / max(int(train.max()), 1)
    domains = found.client_domains or [""] * clients
    for name in dict.fromkeys(domains):
        of_domain = np.array([domains[client] == name for client in k], bool)
        axes.scatter(k[of_domain], c[of_domain], areas[of_domain], alpha=0.75, label=name or None)
    axes.set_yticks(range(classes), found.class_names)
    axes.set_xticks(range(0, clients, 1 if clients <= 20 else 10))
    axes.set_xlim(-0.7, clients - 0.3)
    axes.set_ylim(classes - 0.3, -0.7)
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    of = f"first {clients} of {found.num_clients:,} clients" if clients < found.num_clients else "client"
    axes.set_xlabel(f"{of} (largest bubble: {train.max()} training images)")
    axes.set_title(found.title if len(found.title) < 60 else f"{', '.join(found.domain_names)}", fontsize="medium")
    if found.client_domains:
        figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _classes(found: Description) -> Table:
    """Images of each class, and what each of several sources calls it: `=` where the same, `-` where it has none."""
    table = _table("class", "images")
    for name in found.domain_names if found.origins else ():
        table.add_column(name)
    for number, (name, images) in enumerate(zip(found.class_names, found.class_images, strict=True)):
        called = found.origins[number] if found.origins else []
        own = ("-" if other is None else "=" if other == name else other for other in called)
        table.add_row(name, f"{images:,}", *own)
    return table


def _clients(found: Description) -> Table:
    table = _table("client", "training", "test", "classes")
    table.add_column("most of")
    if found.client_domains:
        table.add_column("source" if found.origins else "sensor")
    train, test = (found.images[split][:IN_TABLE] for split in SPLITS)
    for client, (own, scored) in enumerate(zip(train, test, strict=True)):
        most = int(own.argmax())
        cells: list[Any] = [client, f"{own.sum():,}", f"{scored.sum():,}", np.count_nonzero(own)]
        cells.append(f"{found.class_names[most]} ({100 * own[most] / max(own.sum(), 1):.0f} %)")
        if found.client_domains:
            cells.append(found.client_domains[client])
        table.add_row(*map(str, cells))
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _remarks(config: Config, source: ImageSource) -> list[str]:
    """Where a known set is not as large as it was published."""
    remarks = []
    specs = split_spec(config.data.source)
    for number, spec in enumerate(specs):
        known = published(spec.removeprefix("tfds:")) if spec.startswith("tfds:") else None
        images = int(np.sum(source.domains == number)) if len(specs) > 1 else len(source)
        complete = config.data.half == "all" and config.data.classes == "union"
        if known and complete and images != known.images:
            remarks.append(f"{spec} was published with {known.images:,} images and has {images:,} here")
    return remarks
