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
