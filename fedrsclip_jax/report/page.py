"""`report.html` of a run: headline figures, accuracy by round, accuracy by client, seconds, the configuration."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrsclip_jax.files import write_text

_STYLE = """
:root { color-scheme: light dark; --bar: #2a6fb0; --mark: #c4521a; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th { text-align: left; } td { text-align: right; font-variant-numeric: tabular-nums; }
.bar { position: relative; width: 20rem; height: 1rem;
       background: color-mix(in srgb, currentColor 8%, transparent); }
.bar span { position: absolute; inset: 0 auto 0 0; background: var(--bar); }
.bar i { position: absolute; top: -2px; bottom: -2px; width: 2px; background: var(--mark); }
pre { overflow-x: auto; }
"""


def _client(summary: dict[str, Any], k: int) -> str:
    """A client's number, with its source or sensor where clients are dealt out by it."""
    domains = summary.get("client_domains")
    return f"{k} ({html.escape(domains[k])})" if domains else str(k)


def write_report(workdir: Path) -> Path:
    """Writes `report.html` from the other files of a run's folder; returns its path."""
    summary = json.loads((workdir / "summary.json").read_text())
    rounds = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    title = f"{summary['method']} on {summary['dataset']}, seed {summary['seed']}"
    federation, zero = summary["personalised"], summary["zero_shot"]
    ids = federation.get("clients", range(summary["num_clients"]))
    scored = f" ({len(ids)} of them scored)" if "clients" in federation else ""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{summary['num_clients']:,} clients{scored}, {summary['num_classes']} classes, {summary['rounds']} rounds, "
        f"backbone {html.escape(summary['backbone'])}. Each client sends "
        f"{summary['uplink_params_per_client_round']:,} numbers a round; {summary['bytes_sent']:,} bytes in all.</p>",
        "<h2>Accuracy</h2>",
        _table(
            ("", "clients' own test images", "worst tenth of clients", "pooled test images"),
            [
                (
                    "zero-shot",
                    *_percents(zero["on_clients"]["mean"], zero["on_clients"]["worst_decile"], zero["accuracy"]),
                ),
                (
                    "global model",
                    *_percents(
                        *(summary["global_on_clients"][k] for k in ("mean", "worst_decile")),
                        summary["global"]["accuracy"],
                    ),
                ),
                (
                    "personal models",
                    *_percents(federation["mean"], federation["worst_decile"], summary["personal_on_pooled"]["mean"]),
                ),
            ],
        ),
        "<h2>By client</h2>",
        "<p>Accuracy of each client's personal model on its own test images; the mark is zero-shot.</p>",
        _table(
            ("client", "%", ""),
            [
                (_client(summary, k), *_percents(own), "" if own is None else _bar(own, before))
                for k, own, before in zip(
                    ids[:200], federation["per_client"][:200], zero["on_clients"]["per_client"][:200], strict=True
                )
            ],
        ),
        "<h2>By round</h2>",
        _table(
            ("round", "loss", "global, pooled %", "personal, own %", "worst tenth %", "bytes sent"),
            [
                (
                    str(line["round"]),
                    "-" if line["loss"] is None else f"{line['loss']:.3f}",
                    *_percents(
                        line["global"]["accuracy"], line["personalised"]["mean"], line["personalised"]["worst_decile"]
                    ),
                    f"{line['bytes_sent']:,}",
                )
                for line in rounds
            ],
        ),
        "<h2>Seconds</h2>",
        _table(("phase", "s"), [(name, f"{spent:.1f}") for name, spent in summary["seconds"].items()]),
        "<details><summary>Configuration</summary><pre>",
        html.escape((workdir / "config.json").read_text()),
        "</pre></details>",
    ]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n"
    )
    path = workdir / "report.html"
    write_text(path, page)
    return path


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _bar(value: float, mark: float) -> str:
    return (
        f'<div class="bar" role="img" aria-label="{100 * value:.0f} %, zero-shot {100 * mark:.0f} %">'
        f'<span style="width:{100 * value:.1f}%"></span><i style="left:{100 * mark:.1f}%"></i></div>'
    )


def _percents(*values: float | None) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{100 * value:.1f}" for value in values)
