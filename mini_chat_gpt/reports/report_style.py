"""How report.html looks, beyond what all pages share, and its script: it filters the replies and sorts the tables."""

from __future__ import annotations

STYLE = """
:root { --m0: #98a0aa; --m1: #0072b2; --m2: #e69f00; --m3: #00694f; --wrong: #b42318; --right: #dcf3e3; --need: #fff0a8; }
@media screen and (prefers-color-scheme: dark) { :root { --m0: #87909b; --m1: #56b4e9; --m2: #e69f00; --m3: #4fe0ba;
  --wrong: #ff9c8f; --right: #123d24; --need: #5a4d06; } }
header p { margin-top: -.5rem; } section { scroll-margin-top: 1rem; }
.models { list-style: none; padding: 0; margin: .8rem 0 0; }
.key { font-style: normal; } .k0 { color: var(--m0); } .k1 { color: var(--m1); } .k2 { color: var(--m2); } .k3 { color: var(--m3); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin-top: 1.1rem; font-size: .92rem; }
a { color: inherit; text-underline-offset: 3px; text-decoration-color: var(--dim); }
h3 b { color: var(--text); font-size: 1rem; font-weight: 600; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .88rem; margin-bottom: .3rem; }
.task .groups { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem 2.2rem; }
.task figure { display: grid; align-content: start; }
.bars { display: grid; align-items: center; column-gap: .7rem;
  grid-template-columns: minmax(3.6rem, max-content) 1fr max-content; }
.bars .name { max-width: 9rem; overflow-wrap: anywhere; font-size: .9rem; line-height: 1.2; }
.val { text-align: right; font-size: .9rem; line-height: 1.15; font-variant-numeric: tabular-nums; min-width: 5.8rem; }
.val b { display: block; font-weight: 600; } .val.dim b { font-weight: 400; }
small { color: var(--dim); font-size: .78rem; white-space: nowrap; }
svg { display: block; width: 100%; } svg { overflow: visible; }
svg text { font-size: 11px; fill: var(--dim); text-anchor: middle; }
svg.losses text { font-size: 13px; } svg [text-anchor=start] { text-anchor: start; } svg [text-anchor=end] { text-anchor: end; }
rect.m0 { fill: var(--m0); } rect.m1 { fill: var(--m1); } rect.m2 { fill: var(--m2); } rect.m3 { fill: var(--m3); }
.grid { stroke: var(--edge); } .axis { stroke: var(--dim); fill: none; }
.halo { stroke: var(--card); stroke-width: 4.5; } .whisker { stroke: var(--text); stroke-width: 1.5; }
.trivial { stroke: var(--mark); stroke-width: 2; stroke-dasharray: 4 3; } .hit { stroke: transparent; stroke-width: 14; }
.notes { list-style: none; padding: 0; margin: .5rem 0 0; font-size: .88rem; } .notes li { margin: .15rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.plots.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); margin-bottom: 1.4rem; }
.plots figure { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: .7rem .8rem; max-width: 34rem; }
.plots p { font-size: .85rem; } path { fill: none; stroke-linejoin: round; }
path.m0 { stroke: var(--m0); } path.m1 { stroke: var(--m1); } path.m2 { stroke: var(--m2); } path.m3 { stroke: var(--m3); }
.thin { stroke-width: .8; opacity: .4; } .thick { stroke-width: 2.4; }
path.held { stroke: var(--text); stroke-width: 1.3; stroke-dasharray: 5 4; }
circle.held { fill: var(--card); stroke: var(--text); stroke-width: 1.5; }
.outline { stroke: var(--text); stroke-width: 1.6; } line.median { stroke: var(--mark); stroke-dasharray: 3 3; }
text.median { fill: var(--mark); }
.filter { display: grid; gap: .4rem; } .filter div { display: flex; flex-wrap: wrap; gap: .4rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.prompt { border-left: 3px solid var(--edge); padding-left: .8rem; margin-bottom: .6rem; overflow-wrap: anywhere; }
summary { cursor: pointer; } .more { color: var(--dim); text-decoration: underline dotted; text-underline-offset: 3px; }
.prompt > summary { list-style: none; } .prompt > summary::-webkit-details-marker { display: none; }
.prompt[open] > summary { color: var(--dim); margin-bottom: .5rem; }
.rest > summary { color: var(--dim); font-size: .85rem; } .wanted { margin: 0 0 .6rem; }
.wanted .said { display: inline; }
.replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .7rem 1.6rem; }
.reply { border-top: 1px solid var(--edge); padding-top: .5rem; min-width: 0; }
h4 { margin: 0 0 .3rem; font-size: .88rem; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
h4 span { font-weight: 400; color: var(--dim); }
.right { background: var(--right); border-radius: 3px; box-shadow: 0 0 0 1px var(--right); }
.wrong { color: var(--wrong); } .wrong::before { content: "["; } .wrong::after { content: "]"; }
.required { background: var(--need); border-radius: 3px; font-weight: 600; text-decoration: underline; text-underline-offset: 3px; }
.note { color: var(--dim); font-size: .85rem; } .checks { list-style: none; padding: 0; font-size: .88rem; }
.met span { color: var(--m1); font-weight: 700; } .unmet span { color: var(--wrong); font-weight: 700; }
details.printed { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: .6rem 1rem; margin: .7rem 0; }
details.printed > summary { font-weight: 500; } details.printed table { margin-top: .5rem; font-size: .9rem; }
td { vertical-align: top; } .sort th, .sort td { white-space: nowrap; } .sort td { text-align: left; }
.sort td[data-v] { text-align: right; }
.sort th { text-align: left; } .sort th:nth-child(n+4) { text-align: right; } td small { display: block; }
th button { border: 0; padding: 0; background: none; color: inherit; } th[aria-sort] { color: var(--text); }
th[aria-sort=ascending]::after { content: " ↑"; } th[aria-sort=descending]::after { content: " ↓"; }
.counted td + td { white-space: nowrap; } .counted th:first-child, .counted td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .4rem 0; } dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { .bars .name { max-width: 6.2rem; } .bar text:nth-child(even) { display: none; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } .filter { position: static; } }
@media print { nav { display: none; } main { max-width: none; padding: 0; } body { background: #fff; font-size: 12px; }
  figure { break-inside: avoid; } h2, h3, h4, h2 + p { break-after: avoid; } .filter { display: none; }
  .wide { overflow: visible; } .sort small { font-size: inherit; }
  .sort th, .sort td { white-space: normal; font-size: 10px; padding: .15rem .3rem; } }
"""

SCRIPT = """
const wanted = { kind: '', group: '' }, filter = document.querySelector('.filter');
for (const what of Object.keys(wanted)) {
  const buttons = [...document.querySelectorAll(`.filter button[data-${what}]`)];
  for (const button of buttons) button.addEventListener('click', () => {
    wanted[what] = button.dataset[what];
    for (const each of buttons) each.setAttribute('aria-pressed', each === button);
    for (const example of document.querySelectorAll('.example'))
      example.hidden = Object.entries(wanted).some(([key, value]) => value && example.dataset[key] !== value);
  });
}
for (const table of document.querySelectorAll('table.sort')) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      for (const each of heads) each.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const of = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compared = (a, b) => of(a).localeCompare(of(b), 'en', { numeric: false });
      const numbers = rows.some(row => row.cells[column].dataset.v !== undefined);
      const sorted = [...rows].sort((a, b) => (numbers ? (parseFloat(of(a)) || 0) - (parseFloat(of(b)) || 0) : compared(a, b)));
      table.tBodies[0].append(...(down ? sorted.reverse() : sorted));
    });
  });
}
if (filter) {  // one kind at a time: there are many
  filter.hidden = false;
  (filter.querySelectorAll('[data-kind]')[1]).click();
}
addEventListener('beforeprint', () => { for (const each of document.querySelectorAll('details.printed')) each.open = true; });
"""
