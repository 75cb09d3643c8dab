// The settings: how replies are chosen (for all conversations), the system message (for one), and the key of the server.

import { make } from './serve_markdown.js';

const FIELDS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2,
    help: 'How freely the model chooses its words. 0 always takes the most probable token; higher values give the others more of a chance.' },
  { name: 'top_p', label: 'Top p', min: 0, max: 1,
    help: 'Only the most probable tokens that together have this probability can be chosen. 1 allows all.' },
  { name: 'top_k', label: 'Top k', min: 0, max: 100000, step: 1, help: 'Only this many of the most probable tokens can be chosen. 0 allows all.' },
  { name: 'min_p', label: 'Min p', min: 0, max: 1,
    help: 'Tokens that are less probable than this share of the most probable one are left out. 0 allows all.' },
  { name: 'max_tokens', label: 'Longest reply', min: 1, max: 1000000, step: 1,
    help: 'In tokens, the pieces of words that the model reads and writes.' },
  { name: 'seed', label: 'Seed', placeholder: 'another one each time', min: 0, max: 4294967295, step: 1,
    help: 'Where the random numbers begin. The same seed, settings and messages give the same reply again. Empty: another one each time.' },
];

/** The dialog. `changed` is called after every change; `conversation()` gives the one whose system message is edited. */
export class Settings {
  constructor(store, changed, conversation, model) {
    Object.assign(this, { store, changed, conversation, model });
    this.dialog = document.getElementById('settings');
    this.values = store.settings();
    this.inputs = new Map();
    const fields = document.getElementById('fields');
    for (const field of FIELDS) fields.append(this.fieldElement(field));
    this.system = document.getElementById('system');
    this.key = document.getElementById('key');
    this.system.addEventListener('input', () => {
      this.conversation().system = this.system.value;
      this.changed(true);
    });
    this.key.addEventListener('change', () => this.saveKey(this.key.value.trim()));
    document.getElementById('settings-form').addEventListener('submit', event => {
      event.preventDefault();
      this.dialog.close();
    });
    document.getElementById('settings-reset').addEventListener('click', () => this.reset());
    // A click on the area outside of the dialog closes it.
    this.dialog.addEventListener('click', event => { if (event.target === this.dialog) this.dialog.close(); });
  }

  fieldElement({ name, label, help, ...limits }) {
    const row = make('div', '', 'field'), title = make('label', label), input = make('input'), about = make('p', help, 'dim');
    Object.assign(input, { type: 'number', id: `setting-${name}`, placeholder: 'default', inputMode: 'decimal', step: 'any', ...limits });
    title.htmlFor = input.id;
    about.id = `${input.id}-help`;
    input.setAttribute('aria-describedby', about.id);
    input.addEventListener('input', () => this.read(name, input, about, help));
    row.append(title, input, about);
    this.inputs.set(name, input);
    return row;
  }

  /** Take over a value that is valid; say what is allowed otherwise. */
  read(name, input, about, help) {
    const valid = input.validity.valid;
    input.setAttribute('aria-invalid', !valid);
    about.textContent = valid ? help : `Not used: ${input.validationMessage || 'not a number'}`;
    about.classList.toggle('wrong', !valid);
    if (!valid || input.value === '') delete this.values[name];
    else this.values[name] = Number(input.value);
    this.keep();
  }

  keep() {
    this.store.saveSettings(this.values);
    this.changed(false);
  }

  saveKey(key) {
    if (key) this.values.key = key;
    else delete this.values.key;
    this.keep();
  }

  reset() {
    const { key } = this.values;
    this.values = key ? { key } : {};
    this.conversation().system = '';
    this.keep();
    this.changed(true);
    this.show();
  }

  open() {
    this.show();
    this.dialog.showModal();
  }

  show() {
    for (const [name, input] of this.inputs) input.value = this.values[name] ?? '';
    const own = this.model() && this.model().system_message;
    this.system.value = this.conversation().system;
    this.system.placeholder = own || 'none';
    this.key.value = this.values.key || '';
  }

  /** Another tab has changed the settings. */
  reload() {
    this.values = this.store.settings();
    if (this.dialog.open) this.show();
  }

  /** The fields of a request. */
  forRequest() {
    const { key, ...values } = this.values;
    return values;
  }

  /** How many settings differ from the defaults. */
  count() {
    return Object.keys(this.forRequest()).length + Boolean(this.conversation().system);
  }
}
