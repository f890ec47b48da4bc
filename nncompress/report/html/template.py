"""What every page has: its outline, its looks, and the script that sorts and filters tables. Nothing is fetched."""

from string import Template

STYLE = """\
:root { color-scheme: light dark; --page: #fff; --text: #1c2430; --dim: #5a6675; --line: #d8dee6; --head: #f1f4f8;
  --row: #f8fafc; --link: #0b5cad; --good: #0a6b46; --bad: #b3261e; --odd: #8a5300; --box: #fdf1f0; }
@media (prefers-color-scheme: dark) { :root { --page: #14181e; --text: #e3e8ef; --dim: #9aa7b6; --line: #333c48;
  --head: #1f2630; --row: #191f26; --link: #7db7f5; --good: #5fd3a2; --bad: #ff8a80; --odd: #f2b35e; --box: #2b1a1a; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 96rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0; padding: .5rem 0;
  border: solid var(--line); border-width: 1px 0; }
.dim, .notes { color: var(--dim); }
.status { font-weight: 600; color: var(--odd); white-space: nowrap; }
.done { color: var(--good); }
.failed, .killed, .diverged { color: var(--bad); }
.counts { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.wrong { margin: .8rem 0; padding: .6rem .9rem; background: var(--box); border-left: 4px solid var(--bad); }
.wrong code { display: block; margin-top: .3rem; white-space: pre-wrap; overflow-wrap: anywhere; }
code, td.code { font: .92em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.scroll { overflow: auto; max-height: 40rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--head); padding: 0; text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--line); }
th button { all: unset; box-sizing: border-box; width: 100%; padding: .4rem .6rem; cursor: pointer; font-weight: 600;
  line-height: 1.3; min-width: 3.4rem; }
th button:hover { text-decoration: underline; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: -3px; }
th button::after { content: "\\2195"; color: var(--dim); opacity: .6; margin-left: .2em; font-size: .8em;
  font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: var(--text); opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; color: var(--text); opacity: 1; }
td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
tbody tr:nth-child(even) { background: var(--row); }
tbody tr:hover { background: var(--head); }
.n { text-align: right; }
td.long { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 18rem; }
.notes { margin: .5rem 0 0; padding-left: 1.2rem; font-size: .88rem; max-width: 64rem; overflow-wrap: anywhere; }
.tools { display: flex; gap: .8rem; align-items: center; margin: 0 0 .5rem; }
.tools input { font: inherit; padding: .25rem .5rem; width: 18rem; max-width: 60vw; color: inherit;
  background: var(--page); border: 1px solid var(--dim); border-radius: 4px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 1rem;
  align-items: start; grid-auto-flow: dense; }
figure { margin: 0; padding: .6rem; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figure.wide { grid-column: 1 / -1; } figure.wide img { max-height: 25rem; }
figure img { display: block; width: 100%; height: auto; max-height: 34rem; object-fit: contain; }
summary { cursor: pointer; } summary h2 { display: inline-block; margin: 1.6rem 0 .6rem; }
[hidden] { display: none !important; }
@media print {
  :root { --page: #fff; --text: #000; --dim: #444; --line: #bbb; --head: #eee; --row: #fff; --link: #000; --good: #000;
    --bad: #000; --odd: #000; --box: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .tools, th button::after { display: none; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  table { font-size: 7.5pt; } thead { display: table-header-group; } th { position: static; }
  tr { break-inside: avoid; } th button { min-width: 0; padding: .15rem .25rem; }
  td { white-space: normal; padding: .12rem .25rem; } td.long { min-width: 0; } h2 { break-after: avoid; }
  .plots { display: block; } figure { break-inside: avoid; margin-bottom: 1rem; border: 0; }
}
"""

SCRIPT = """\
"use strict";
const order = new Intl.Collator("en", {numeric: true}).compare;

function sort(head) {  // ascending, then descending; what is empty comes last
  const table = head.closest("table"), down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const isNumber = head.classList.contains("n"), sign = down ? -1 : 1;
  const keyed = [...table.tBodies[0].rows].map(row => {
    const cell = row.cells[head.cellIndex], value = cell.dataset.v ?? cell.textContent;
    return {row, value: value === "" ? null : isNumber ? Number(value) : value};
  });
  keyed.sort(({value: a}, {value: b}) => a === null || b === null
    ? (a === null) - (b === null) : sign * (isNumber ? a - b : order(a, b)));
  table.tBodies[0].append(...keyed.map(({row}) => row));
}

function filter(tools) {  // rows that hold every word
  const words = tools.querySelector("input").value.toLowerCase().split(/\\s+/);
  const rows = tools.parentNode.querySelector("tbody").rows;
  let shown = 0;
  for (const row of rows) {
    const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  tools.querySelector("output").textContent = shown + " of " + rows.length + " rows";
}

for (const head of document.querySelectorAll("th"))
  head.querySelector("button").addEventListener("click", () => sort(head));
for (const tools of document.querySelectorAll(".tools")) {
  tools.hidden = false;
  tools.querySelector("input").addEventListener("input", () => filter(tools));
}
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const part of closed) part.open = true;
});
addEventListener("afterprint", () => { for (const part of closed) part.open = false; });
"""

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src '$script_hash'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="nncompress">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
</header>
<nav aria-label="Parts of this page">$links</nav>
<main>
$sections
</main>
<script>$script</script>
</body>
</html>
""")
