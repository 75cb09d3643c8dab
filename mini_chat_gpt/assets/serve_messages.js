// The messages of a conversation as elements. What a button does is decided by serve.js, which passes `actions`.

import { make, MarkdownView } from './serve_markdown.js';
import { WhyView } from './serve_why.js';

const LONG_TEXT = 700, LONG_LINES = 12;  // texts beyond are shown folded

export const button = (text, pressed, kind = '') => {
  const made = make('button', text, kind);
  made.type = 'button';
  made.addEventListener('click', pressed);
  return made;
};

const count = (n, thing) => `${n.toLocaleString('en')} ${thing}${n === 1 ? '' : 's'}`;
const rate = n => n.toLocaleString('en', { maximumSignificantDigits: 2 });
const words = text => text.split(/\s+/).filter(Boolean).length;

/** One message: a card of the user, or one or two replies side by side. `versions` are the ids of this message and its siblings. */
export class MessageView {
  constructor(message, versions, actions) {
    this.message = message;
    this.versions = versions;
    this.actions = actions;
    this.isEdited = false;  // a form with the text is open
    this.element = make('li', '', `message ${message.role}`);
    if (message.role === 'user') {
      this.card = this.article('You');
      this.element.append(this.card);
      this.showText();
      return;
    }
    this.replies = message.replies.map((_, lane) => new ReplyView(this, lane));
    const lanes = make('div', '', 'lanes');
    lanes.append(...this.replies.map(view => view.card));
    this.tools = make('div', '', 'tools');
    this.element.append(lanes, this.tools);
    this.update();
  }

  article(name) {
    const card = make('article'), title = make('h2', name);
    card.tabIndex = -1;
    card.setAttribute('aria-label', name);
    card.append(title);
    return card;
  }

  /** Show what has changed in the replies. */
  update() {
    if (!this.replies) return;
    for (const view of this.replies) view.update();
    const idle = this.message.replies.every((_, lane) => !this.actions.isRunning(this.message, lane));
    this.tools.hidden = !idle || this.replies.length < 2;
    if (idle && !this.tools.hidden && !this.tools.firstChild) this.tools.append(...this.messageButtons('Regenerate both'));
  }

  /** Buttons for all replies of the message. */
  messageButtons(label) {
    return [button(label, () => this.actions.regenerate(this.message)), ...this.versionButtons()];
  }

  showText() {
    const { content } = this.message, text = make('div', content, 'text');
    text.dir = 'auto';
    const tools = make('div', '', 'tools'), title = this.card.firstChild;
    tools.append(button('Edit', () => this.edit(content, 'Send', 0)), ...this.versionButtons());
    this.card.replaceChildren(title, text, ...this.fold(text, content), tools);
  }

  /** A button that unfolds a long text. */
  fold(text, content) {
    if (content.length <= LONG_TEXT && content.split('\n').length <= LONG_LINES) return [];
    const label = open => (open ? 'Show less' : `Show all ${count(words(content), 'word')}`);
    const unfold = button(label(false), () => {
      const open = !text.classList.toggle('folded');
      unfold.setAttribute('aria-expanded', open);
      unfold.textContent = label(open);
    }, 'unfold');
    text.classList.add('folded');
    unfold.setAttribute('aria-expanded', false);
    return [unfold];
  }

  versionButtons() {
    const { versions, message } = this, at = versions.indexOf(message.id);
    if (versions.length < 2) return [];
    const step = (sign, name, by) => {
      const made = button(sign, () => this.actions.showVersion(message, versions[at + by], name));
      made.setAttribute('aria-label', name);
      made.disabled = !versions[at + by];
      return made;
    };
    const group = make('span', '', 'versions');
    group.append(step('‹', 'Previous version', -1), make('span', `${at + 1} of ${versions.length}`), step('›', 'Next version', 1));
    return [group];
  }

  /** Replace the text by a form. What is sent or kept becomes a new version of the message. */
  edit(content, action, lane) {
    const card = this.replies ? this.replies[lane].card : this.card, before = [...card.childNodes];
    const form = make('form', '', 'edit'), input = make('textarea'), row = make('div', '', 'tools');
    const close = () => {
      this.isEdited = false;
      card.replaceChildren(...before);
      card.focus();
    };
    this.isEdited = true;
    input.value = content;
    input.rows = Math.min(14, content.split('\n').length + 1 + Math.floor(content.length / 90));
    input.setAttribute('aria-label', 'Edit the message');
    const submit = make('button', action, 'main');
    row.append(submit, button('Cancel', close), make('span', 'The old version is kept.', 'dim'));
    form.append(input, row);
    form.addEventListener('submit', event => {
      event.preventDefault();
      if (!input.value.trim() || !this.actions.mayEdit()) return;
      close();
      this.actions.edited(this.message, lane, input.value.trim());
    });
    form.addEventListener('keydown', event => {
      if (event.key === 'Escape') { event.stopPropagation(); close(); }
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && action === 'Send' && !this.actions.isTouch()) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    card.replaceChildren(before[0], form);
    input.focus();
  }
}

/** One reply of a message. */
class ReplyView {
  constructor(message, lane) {
    this.message = message;
    this.lane = lane;
    this.actions = message.actions;
    this.card = message.article(this.reply.model);
    this.body = make('div', '', 'body');
    this.body.dir = 'auto';
    this.markdown = new MarkdownView(this.body);
    this.foot = make('div');
    this.thoughts = make('details');
    this.thoughts.append(make('summary', 'Thoughts'), make('div', '', 'thoughts dim'));
    this.why = null;
    this.card.append(this.thoughts, this.body, this.foot);
  }

  get reply() { return this.message.message.replies[this.lane]; }

  update() {
    const { reply } = this, running = this.actions.isRunning(this.message.message, this.lane);
    this.card.setAttribute('aria-busy', running);
    this.thoughts.hidden = !reply.thoughts;
    if (reply.thoughts) this.thoughts.lastChild.textContent = reply.thoughts;
    this.markdown.update(reply.content);
    const state = JSON.stringify([running, reply.problem, reply.finish, running && !reply.content]);
    if (state === this.state) return;
    this.state = state;
    this.foot.replaceChildren(...(running ? this.waiting() : this.finished()));
  }

  waiting() {
    return this.reply.content ? [] : [make('p', 'The model is reading …', 'dim waiting')];
  }

  finished() {
    const { reply } = this, shown = [], tools = make('div', '', 'tools');
    const problem = reply.problem || (reply.finish ? null : { kind: 'interrupted', text: 'This reply is incomplete: another tab is writing it, or the page was closed.' });
    if (problem) shown.push(this.problemElement(problem));
    else if (!reply.content) shown.push(make('p', 'The model ended its reply at once, without a word.', 'dim'));
    if (reply.tokens.length) tools.append(this.whyButton());
    if (reply.content) {
      if (navigator.clipboard) tools.append(this.copyButton());
      tools.append(button('Edit', () => this.message.edit(reply.content, 'Keep', this.lane)));
    }
    if (this.message.replies.length < 2) tools.append(...(problem ? this.message.versionButtons() : this.message.messageButtons('Regenerate')));
    tools.append(make('span', this.facts(), 'facts dim'));
    return [...shown, tools];
  }

  facts() {
    const { reply } = this, parts = [], tokens = reply.usage ? reply.usage.completion_tokens : reply.tokens.length;
    if (reply.finish === 'length') parts.push('cut off: the limit of its length is reached');
    if (reply.finish === 'stopped') parts.push('stopped by you');
    if (tokens) parts.push(count(tokens, 'token'));
    if (tokens > 1 && reply.seconds > 0) parts.push(`${rate(tokens / reply.seconds)} per second`);
    if (reply.content) parts.push(`seed ${reply.seed}`);
    return parts.join(' · ');
  }

  problemElement({ kind, text }) {
    const box = make('div', '', 'problem'), again = () => this.actions.retry(this.message.message, this.lane);
    box.append(make('p', text));
    if (kind === 'key') box.append(keyForm(this.actions.saveKey, again));
    else {
      if (kind === 'context') box.append(button('New conversation', this.actions.startNew), ' ');
      box.append(button(kind === 'interrupted' ? 'Regenerate this reply' : 'Try again', again, 'main'));
    }
    return box;
  }

  whyButton() {
    const toggle = button('Why did it say that?', () => {
      const open = !this.why;
      if (open) {
        this.why = new WhyView(this.reply.tokens, this.actions.say);
        this.body.after(this.why.element);
      } else {
        this.why.element.remove();
        this.why = null;
      }
      this.body.hidden = open;
      toggle.setAttribute('aria-expanded', open);
    });
    toggle.setAttribute('aria-expanded', Boolean(this.why));
    return toggle;
  }

  copyButton() {
    const copy = button('Copy', async () => {
      try {
        await navigator.clipboard.writeText(this.reply.content);
        this.actions.say('Copied.');
        copy.textContent = 'Copied';
      } catch { this.actions.say('The browser did not allow to copy.'); }
    });
    return copy;
  }
}

/** A field for the server's API key. */
export function keyForm(save, again) {
  const form = make('form', '', 'key'), label = make('label', 'API key '), input = make('input');
  input.type = 'password';
  input.autocomplete = 'off';
  label.append(input);
  form.append(label, make('button', 'Use this key', 'main'));
  form.addEventListener('submit', event => {
    event.preventDefault();
    save(input.value.trim());
    again();
  });
  return form;
}
