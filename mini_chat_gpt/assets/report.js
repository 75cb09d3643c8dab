const selected = { kind: '', group: '' }, filter = document.querySelector('.filter');
for (const field of Object.keys(selected)) {
  const buttons = [...document.querySelectorAll(`.filter button[data-${field}]`)];
  for (const button of buttons) button.addEventListener('click', () => {
    selected[field] = button.dataset[field];
    for (const each of buttons) each.setAttribute('aria-pressed', each === button);
    for (const example of document.querySelectorAll('.example'))
      example.hidden = Object.entries(selected).some(([field, value]) => value && example.dataset[field] !== value);
  });
}
for (const table of document.querySelectorAll('table.sort')) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const descending = head.getAttribute('aria-sort') === 'ascending';
      for (const each of heads) each.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const byText = (a, b) => key(a).localeCompare(key(b), 'en', { numeric: false });
      const numeric = rows.some(row => row.cells[column].dataset.v !== undefined);
      const sorted = [...rows].sort((a, b) => (numeric ? (parseFloat(key(a)) || 0) - (parseFloat(key(b)) || 0) : byText(a, b)));
      table.tBodies[0].append(...(descending ? sorted.reverse() : sorted));
    });
  });
}
if (filter) {  // begin with one kind, because there are many examples
  filter.hidden = false;
  (filter.querySelectorAll('[data-kind]')[1]).click();
}
addEventListener('beforeprint', () => { for (const each of document.querySelectorAll('details.printed')) each.open = true; });
