const data = JSON.parse(document.getElementById('data').textContent), panel = document.getElementById('panel');
const tokens = [...document.querySelectorAll('.reply b')];
let chosen = null;
function add(parent, tag, text, kind) {
  const made = parent.appendChild(document.createElement(tag));
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function show(n) {
  const [it, rank, ...others] = data.tokens[n];
  panel.hidden = false;
  panel.replaceChildren();
  const bars = data.greedy ? '' : '; upper bar and first number: the model, lower and second: with the sampling settings';
  add(panel, 'p', `Token ${n + 1} of ${tokens.length}, rank ${rank}${bars}`, 'dim');
  for (const row of [it, ...others].sort((a, b) => b[1] - a[1])) {
    const line = add(panel, 'div', '', row === it ? 'row it' : 'row');
    add(line, 'code', row[0]);
    const bars = add(line, 'div', '', 'bars');
    add(bars, 'i').style.width = `${100 * row[1]}%`;
    if (!data.greedy) add(bars, 'i').style.width = `${100 * row[3]}%`;
    add(line, 'span', row[2]);
    add(line, 'span', data.greedy ? '' : row[4], 'dim');
  }
  tokens.forEach((token, place) => token.classList.toggle('on', place === n));
}
tokens.forEach((token, n) => {
  token.removeAttribute('title');
  token.setAttribute('role', 'button');
  token.addEventListener('mouseenter', () => show(n));
  token.addEventListener('focus', () => show(n));
  token.addEventListener('click', () => { chosen = n; show(n); });
  token.addEventListener('mouseleave', () => { if (chosen !== null) show(chosen); });
});
chosen = data.least;
show(chosen);
