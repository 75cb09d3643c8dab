// The list of conversations, and the title of the current one, which can be renamed and deleted.

import { make } from './serve_markdown.js';
import { titleOf } from './serve_store.js';

const $ = id => document.getElementById(id);

export class Sidebar {
  /** `current()` is the conversation on display, `isBusy(id)` says whether a reply is being written; `acts` has renamed and deleted. */
  constructor(store, current, isBusy, acts) {
    Object.assign(this, { store, current, isBusy, acts });
    $('menu').addEventListener('click', () => this.toggle(!document.body.classList.contains('menu-open')));
    $('new').addEventListener('click', event => {
      event.preventDefault();
      location.hash = '';
      this.close();
      $('input').focus();
    });
    $('rename').addEventListener('click', () => this.rename());
    $('delete').addEventListener('click', () => acts.deleted());
  }

  /** On a narrow screen the list covers the page while it is open. */
  toggle(open) {
    document.body.classList.toggle('menu-open', open);
    $('menu').setAttribute('aria-expanded', open);
    if (open) $('new').focus();
  }

  /** Returns whether it was open. */
  close() {
    const open = document.body.classList.contains('menu-open');
    if (open) {
      this.toggle(false);
      $('menu').focus();
    }
    return open;
  }

  show() {
    const { id, messages } = this.current();
    const items = this.store.list().map(entry => {
      const item = make('li'), link = make('a', entry.title || 'Conversation');
      link.href = `#${entry.id}`;
      link.dir = 'auto';
      if (entry.id === id) link.setAttribute('aria-current', 'page');
      if (this.isBusy(entry.id)) link.append(make('span', ' … writing', 'dim'));
      item.append(link);
      return item;
    });
    // Elements that look the same stay, and with them the focus.
    const shown = [...$('list').children];
    if (items.length !== shown.length || items.some((item, at) => !item.isEqualNode(shown[at]))) $('list').replaceChildren(...items);
    $('rename').hidden = $('delete').hidden = !messages.size;
  }

  rename() {
    const form = make('form', '', 'rename'), input = make('input'), title = $('title');
    input.value = titleOf(this.current());
    input.maxLength = 120;
    input.setAttribute('aria-label', 'Name of the conversation');
    form.append(input, make('button', 'Save', 'main'));
    let done = false;
    const end = keep => {
      if (done) return;
      done = true;
      form.remove();
      title.classList.remove('hidden');
      if (keep && input.value.trim()) this.acts.renamed(input.value.trim());
      $('rename').focus();
    };
    form.addEventListener('submit', event => { event.preventDefault(); end(true); });
    form.addEventListener('keydown', event => { if (event.key === 'Escape') { event.stopPropagation(); end(false); } });
    title.after(form);
    title.classList.add('hidden');  // it stays the heading of the page
    input.select();
  }
}
