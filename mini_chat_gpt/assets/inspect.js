// Buttons that show the examples of one kind.
const articles = [...document.querySelectorAll('article')];
const filter = document.querySelector('.filter');
const count = kind => articles.filter(article => kind === undefined || article.dataset.kind === kind).length;
for (const kind of [undefined, ...new Set(articles.map(article => article.dataset.kind))]) {
  const button = document.createElement('button');
  button.textContent = `${kind ?? 'all'} ${count(kind)}`;
  button.setAttribute('aria-pressed', kind === undefined);
  button.addEventListener('click', () => {
    for (const each of filter.children) each.setAttribute('aria-pressed', each === button);
    for (const article of articles) article.hidden = kind !== undefined && article.dataset.kind !== kind;
  });
  filter.append(button);
}
