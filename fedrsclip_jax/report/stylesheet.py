"""The style of a report's page: light and dark as the reader's system is, and light in print.

On a screen of at most 40rem a table has a block for each row, with the name of its column beside each figure.
"""

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f7f9; --ink: #16191d; --muted: #5c6570; --grid: #dde1e6;
  --blue: #0072b2; --orange: #c04f00; --green: #00805f; --purple: #8e3a83; --gold: #8a6500; --sky: #2f87ba; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --ink: #e8eaed;
  --muted: #a0a9b3; --grid: #363c44; --blue: #5ab1e8; --orange: #f08a3c; --green: #3cc79c; --purple: #d18bc9;
  --gold: #d9b23a; --sky: #8fcdf2; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem;
  color: var(--ink); background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .5rem; } p { margin: .25rem 0 1rem; } .quiet, figcaption { color: var(--muted); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.figures div { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span { display: block; font-size: .85rem; color: var(--muted); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 2rem 2.5rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; } figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; } figcaption { font-size: .85rem; margin-top: .4rem; }
.scroll { overflow-x: auto; } figure.wide svg { min-width: 44rem; max-width: 60rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; min-width: 9rem; font-weight: 600; }
thead th { color: var(--muted); font-weight: 400; vertical-align: bottom; }
.long { white-space: normal; overflow-wrap: anywhere; }
.wrong { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: 1rem; padding: 0; margin: 0; }
.wrong li { list-style: none; font-size: .8rem; line-height: 1.35; } .wrong img { width: 100%; border-radius: .35rem; }
pre { overflow-x: auto; font-size: .8rem; background: var(--card); padding: 1rem; border-radius: .5rem; }
summary { cursor: pointer; margin: 1rem 0; } a { color: var(--blue); }
dl { font-size: .9rem; margin: 0; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--muted); }
@media screen and (max-width: 40rem) {
  table, tbody, tr, tbody th, td { display: block; } thead { display: none; }
  table { width: 100%; } tr { border-bottom: 1px solid var(--grid); padding: .5rem 0; }
  th, th:first-child, td { border: 0; padding: .1rem 0; white-space: normal; }
  td { display: flex; justify-content: space-between; gap: 1rem; } td:empty { display: none; }
  td::before { content: attr(data-column); color: var(--muted); text-align: left; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } .charts { grid-template-columns: 1fr 1fr; } figure.wide svg { min-width: 0; } }
"""
