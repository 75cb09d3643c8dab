const review = document.getElementById('review'), notice = document.getElementById('notice');
const origins = JSON.parse(review.dataset.origins), points = JSON.parse(review.dataset.points);
const articles = [...review.querySelectorAll('article')], key = 'review-' + review.dataset.page;
const boxes = articles.map(article => [...article.querySelectorAll('input')]);  // the last one is "none of these"
const isJudged = index => boxes[index].some(box => box.checked);
const ticked = index => points.filter((_, at) => boxes[index][at].checked);

// 95 % interval of a share (Wilson 1927)
function wilson(hits, n) {
  const z = 1.959964, share = hits / n, middle = (share + z * z / (2 * n)) / (1 + z * z / n);
  const half = z / (1 + z * z / n) * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  return [hits ? middle - half : 0, hits < n ? middle + half : 1];
}

function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

// Number of the reply -> ticked points, for the replies that have been judged
function state() {
  return Object.fromEntries(articles.map((_, index) => index).filter(isJudged).map(index => [index + 1, ticked(index)]));
}

function restore(ticks) {
  for (const [index, ofReply] of boxes.entries()) {
    const found = ticks[index + 1];
    ofReply.forEach((box, at) => { box.checked = Array.isArray(found) && (at < points.length ? found.includes(points[at]) : !found.length); });
  }
}

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state())); }
  catch { say('This browser does not keep the ticks; export them before you leave the page.'); }
}

function cell(tag, text, small) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (small) element.append(Object.assign(document.createElement('small'), { textContent: small }));
  return element;
}

function sum() {
  const names = [...new Set(origins)].sort(), head = document.createElement('tr'), rows = [];
  head.append(cell('td', ''), ...names.map(name => cell('th', name)));
  for (const th of head.querySelectorAll('th')) th.scope = 'col';
  const ofOrigin = names.map(name => articles.map((_, index) => index).filter(index => origins[index] === name && isJudged(index)));
  const add = (label, test) => {
    const row = document.createElement('tr'), title = cell('th', label);
    title.scope = 'row';
    row.append(title, ...ofOrigin.map(indices => {
      const n = indices.length, hits = indices.filter(test).length;
      if (!n) return cell('td', '–');
      const [low, high] = wilson(hits, n).map(share => Math.round(100 * share));
      return cell('td', `${hits} of ${n}`, `${Math.round(100 * hits / n)} % (${low} to ${high})`);
    }));
    rows.push(row);
  };
  points.forEach((point, at) => add(point, index => boxes[index][at].checked));
  if (points.length > 1) add('all of these', index => ticked(index).length === points.length);
  document.querySelector('#sums thead').replaceChildren(head);
  document.querySelector('#sums tbody').replaceChildren(...rows);
}

function show() {
  const judged = articles.filter((_, index) => isJudged(index)).length;
  document.getElementById('count').textContent = `${judged} of ${articles.length} judged`;
  articles.forEach((article, index) => article.classList.toggle('judged', isJudged(index)));
  sum();
}

function goTo(index) {
  if (!articles[index]) return;
  articles[index].focus({ preventScroll: true });
  articles[index].scrollIntoView({ block: 'start' });
}

function current() {
  return articles.findIndex(article => article.contains(document.activeElement));
}

function tick(index, at) {
  const ofReply = boxes[index], box = ofReply[at], none = ofReply[points.length];
  if (box.checked) for (const other of box === none ? ofReply.slice(0, -1) : [none]) other.checked = false;
  keep();
  show();
}

boxes.forEach((ofReply, index) => ofReply.forEach((box, at) => box.addEventListener('change', () => tick(index, at))));
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const index = current(), at = event.key === '0' ? points.length : Number(event.key) - 1;
  if (event.key === 'n') goTo(index + 1);
  else if (event.key === 'p') goTo(index - 1);
  else if (index >= 0 && /^[0-9]$/.test(event.key) && boxes[index][at]) {
    boxes[index][at].checked = !boxes[index][at].checked;
    tick(index, at);
  } else return;
  event.preventDefault();
});
document.getElementById('next').addEventListener('click', () => {
  const left = articles.map((_, index) => index).filter(index => !isJudged(index));
  left.length ? goTo(left[0]) : say('All replies are judged.');
});
document.getElementById('reveal').addEventListener('click', event => {
  const sums = document.getElementById('sums'), shown = sums.hidden;
  sums.hidden = !shown;
  event.target.setAttribute('aria-expanded', shown);
  event.target.textContent = shown ? 'Hide origins and sums' : 'Show origins and sums';
  articles.forEach((article, index) => {
    const origin = article.querySelector('.origin');
    origin.textContent = shown ? origins[index] : '';
    origin.hidden = !shown;
  });
  if (shown) { sums.focus({ preventScroll: true }); scrollTo(0, 0); }
});
document.getElementById('export').addEventListener('click', () => {
  const content = { page: review.dataset.page, points, origins, ticks: state() };
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: 'application/json' }));
  link.download = `review-${review.dataset.page}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});
document.getElementById('import').addEventListener('change', async event => {
  const [file] = event.target.files;
  event.target.value = '';
  if (!file) return;
  try {
    const content = JSON.parse(await file.text());
    if (content.page !== review.dataset.page) throw new Error('it belongs to another page');
    restore(content.ticks);
    say('');
  } catch (error) { say(`${file.name} can't be imported: ${error.message}.`); }
  keep();
  show();
});
try { restore(JSON.parse(localStorage.getItem(key)) ?? {}); } catch { restore({}); }
show();
