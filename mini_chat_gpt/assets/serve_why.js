// "Why did it say that?": a reply token by token, with the probability of each token and of its alternatives.

import { make } from './serve_markdown.js';

const STEPS = [0.05, 0.2, 0.5, 0.9], STEP_NAMES = ['below 5%', '5–20%', '20–50%', '50–90%', '90% and more'];
const VISIBLE = { ' ': '·', '\n': '↵', '\t': '→' };

/** A probability with its significant digits. */
export function percent(p) {
  if (p === 0 || p === 1) return `${100 * p}%`;
  if (p > 0.999) return '>99.9%';
  if (p < 1e-5) return '<0.001%';
  return p >= 0.01 ? `${(100 * p).toFixed(1)}%` : `${Number((100 * p).toPrecision(2))}%`;
}

const shown = text => text.replace(/[ \n\t]/g, sign => VISIBLE[sign]) || '(nothing)';
const step = p => STEPS.filter(limit => p >= limit).length;

export class WhyView {
  /** `tokens` as of serve_api.js; `say` reads a sentence to users of screen readers. */
  constructor(tokens, say) {
    this.tokens = tokens;
    this.say = say;
    this.chosen = tokens.reduce((least, token, at) => (token[1] < tokens[least][1] ? at : least), 0);
    this.element = make('div', '', 'why');
    const legend = make('p', '', 'legend dim');
    STEP_NAMES.forEach((name, at) => legend.append(make('span', name, `s${at}`), ' '));
    const help = make('p', 'Each token has the color of the probability that the model gave it. Point at one, tap it, or move with the ' +
      'arrow keys, to see what else the model could have written.', 'dim');
    this.list = make('div', '', 'tokens');
    this.list.setAttribute('role', 'listbox');
    this.list.setAttribute('aria-label', 'Tokens of the reply');
    this.list.setAttribute('aria-orientation', 'horizontal');
    this.options = tokens.map((token, at) => this.option(token, at));
    this.list.append(...this.options);
    this.panel = make('div', '', 'panel');
    this.element.append(help, legend, this.list, this.panel);
    this.listen();
    this.choose(this.chosen);
  }

  option([text, logprob], at) {
    const p = Math.exp(logprob), option = make('span', text.includes('\n') ? text.replace('\n', '↵\n') : text, `s${step(p)}`);
    option.setAttribute('role', 'option');
    option.setAttribute('aria-label', `${text.trim() || shown(text)}, ${percent(p)}`);
    option.dataset.at = at;
    return option;
  }

  listen() {
    const at = event => (event.target.dataset.at === undefined ? null : Number(event.target.dataset.at));
    this.list.addEventListener('mouseover', event => { if (at(event) !== null) this.show(at(event)); });
    this.list.addEventListener('mouseleave', () => this.show(this.chosen));
    this.list.addEventListener('click', event => { if (at(event) !== null) this.choose(at(event)); });
    this.list.addEventListener('focusin', event => { if (at(event) !== null) this.show(at(event)); });
    this.list.addEventListener('keydown', event => {
      const last = this.options.length - 1, steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      const target = { Home: 0, End: last }[event.key] ?? (steps[event.key] ? this.chosen + steps[event.key] : null);
      if (target === null || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      this.choose(Math.max(0, Math.min(last, target)));
      this.options[this.chosen].focus();
      this.say(`Alternatives: ${this.others(this.chosen).map(([text, p]) => `${shown(text)} ${percent(p)}`).join(', ')}`);
    });
  }

  /** One token at a time can be reached with the Tab key; the arrow keys move on from it. */
  choose(at) {
    this.options.forEach((option, place) => {
      option.tabIndex = place === at ? 0 : -1;
      option.setAttribute('aria-selected', place === at);
    });
    this.chosen = at;
    this.show(at);
  }

  others(at) {
    const [text, , alternatives] = this.tokens[at];
    return alternatives.filter(([other]) => other !== text).map(([other, logprob]) => [other, Math.exp(logprob)]);
  }

  show(at) {
    const [text, logprob] = this.tokens[at], rows = [[text, Math.exp(logprob), true], ...this.others(at)];
    this.options.forEach((option, place) => option.classList.toggle('on', place === at));
    this.panel.replaceChildren(make('p', `Token ${at + 1} of ${this.tokens.length}. The model’s probabilities here:`, 'dim'));
    for (const [other, p, isIt] of rows.sort((a, b) => b[1] - a[1])) {
      const row = make('div', '', isIt ? 'row it' : 'row'), track = make('span', '', 'track'), bar = make('span', '', 'fill');
      bar.style.width = `${100 * p}%`;
      track.append(bar);
      row.append(make('code', shown(other)), track, make('span', percent(p), 'number'), make('span', isIt ? 'written' : '', 'dim'));
      this.panel.append(row);
    }
  }
}
