"""The style sheet of all pages: calm, light and dark, for phones and for print."""

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #ffffff; --text: #1f2328; --muted: #5b6470;
  --line: #dfe3e8; --accent: #0072b2; --right: #00805d; --wrong: #c2410c; --ground: #eceff2; }
@media (prefers-color-scheme: dark) { :root { --page: #121519; --card: #1b1f24; --text: #e6e8eb;
  --muted: #98a1ac; --line: #30363d; --accent: #56b4e9; --right: #3fd0a0; --wrong: #f5845b; --ground: #262c33; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header { max-width: 70rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2.2rem; }
h1 { font-size: clamp(1.35rem, 5vw, 2.1rem); line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; scroll-margin-top: .8rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .2rem 0 .8rem; color: var(--muted); max-width: 46rem; overflow-wrap: anywhere; }
p.note { color: var(--text); background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  border-left: 4px solid var(--wrong); padding: .5rem .8rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .9rem; padding: .2rem 0; }
nav a { text-decoration: none; padding: .2rem 0; }
nav a:hover { text-decoration: underline; }
.card, figure.chart { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; }
.card { padding: .4rem 1rem; overflow-x: auto; margin-bottom: .9rem; }
figure { margin: 0; }
figure.chart { padding: .7rem; }
figcaption { color: var(--muted); font-size: .875rem; padding: .2rem .3rem 0; }
.panels { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
img { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
tr:last-child > * { border-bottom: 0; }
thead tr:last-child > * { border-bottom: 1px solid var(--line); }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: .875rem; }
td.number { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
small { display: block; color: var(--muted); font-size: .85rem; font-weight: 400; line-height: 1.4; }
.headline { max-width: 46rem; }
.headline td.number { font-size: 1.35rem; color: var(--accent); line-height: 1.2; }
.headline td.number small { font-size: .85rem; padding-top: .15rem; }
.pairs .shots { width: 7.2rem; }
.best { color: var(--accent); }
details { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .7rem 1rem;
  margin-bottom: .9rem; }
summary { cursor: pointer; font-weight: 600; }
code, pre { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: .4rem 0; white-space: pre-wrap; }
.finding { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: .8rem;
  margin-bottom: .9rem; display: grid; gap: .8rem; grid-template-columns: 7rem 1fr; align-items: start; }
.finding > p { grid-column: 1 / -1; margin: 0; color: var(--text); }
.query { grid-template-areas: "asked found" "said found"; grid-template-rows: auto 1fr; row-gap: .3rem;
  grid-template-columns: 9rem 1fr; }
.query > .shot { grid-area: asked; max-width: 6.5rem; } .query > .found { grid-area: found; }
.finding.query > p { grid-area: said; font-size: .875rem; line-height: 1.35; }
.finding.batch { grid-template-columns: 1fr; }
.notices th:first-child { width: 4.5rem; }
.finding > p code, .finding > p small { color: var(--muted); }
.found { display: grid; gap: .5rem; grid-template-columns: repeat(6, minmax(0, 1fr)); }
.found.few { grid-template-columns: repeat(auto-fill, 7rem); }
.shot { font-size: .75rem; line-height: 1.3; min-width: 0; }
.shot img { aspect-ratio: 1; object-fit: contain; background: var(--ground); border: 2px solid var(--line);
  border-radius: .35rem; }
.shot.right img { border-color: var(--right); }
.shot.wrong img { border-color: var(--wrong); border-style: dashed; }
.shot figcaption { font-size: inherit; padding: .2rem 0 0; overflow-wrap: anywhere; display: -webkit-box;
  -webkit-box-orient: vertical; -webkit-line-clamp: 3; line-clamp: 3; overflow: hidden; }
.shot b { font-weight: 700; }
.shot.right b { color: var(--right); }
.shot.wrong b { color: var(--wrong); }
.shots { display: grid; grid-template-columns: 1fr 1fr; gap: .35rem; min-width: 5.6rem; }
.small { image-rendering: pixelated; }
.key { white-space: nowrap; font-weight: 700; }
.key::before { content: ""; display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .45rem; background: var(--light); }
@media (prefers-color-scheme: dark) { .key::before { background: var(--dark); } }
.wide th { position: sticky; left: 0; background: var(--card); }
.wide tbody th { min-width: 8rem; max-width: 11rem; }
.wide td { min-width: 6.5rem; overflow-wrap: break-word; }
footer { padding: 2rem 0 3rem; color: var(--muted); font-size: .875rem; }
@media (max-width: 40rem) { .finding { grid-template-columns: 5rem 1fr; padding: .7rem; }
  .query .found { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .query { grid-template: "asked said" auto "found found" auto / 5rem 1fr; row-gap: .7rem; }
  .finding.query > p { font-size: 1rem; align-self: center; }
  .pairs thead { display: none; } .pairs tr { display: grid; gap: .3rem .8rem; padding: .6rem 0;
    grid-template-columns: 7.2rem 1fr 1fr; border-bottom: 1px solid var(--line); }
  .pairs tr > * { border: 0; padding: 0; } .pairs th { grid-column: 1 / -1; }
  .found.few { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .card { padding: .3rem .8rem; } td, th { padding-right: .6rem; } }
@media print { body { background: #fff; } figure, .card, details, .finding { break-inside: avoid; }
  nav { display: none; } }
"""
