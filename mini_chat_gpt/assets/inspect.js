const buttons = [...document.querySelectorAll('.filter button')];
for (const button of buttons) button.addEventListener('click', () => {
  const kind = button.dataset.kind;
  for (const each of buttons) each.setAttribute('aria-pressed', each === button);
  for (const article of document.querySelectorAll('article')) article.hidden = kind !== undefined && article.dataset.kind !== kind;
});
