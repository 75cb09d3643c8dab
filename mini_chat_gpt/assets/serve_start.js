// The first screen: what the model was trained to do, and three prompts to try; or why the server has no models.

import { make } from './serve_markdown.js';
import { button, keyForm } from './serve_messages.js';

/** Elements that introduce a model of the server (null: none yet). A prompt is sent when it is chosen. */
export function firstSteps(model, send) {
  if (!model) return [];
  const shown = [make('h2', 'What this model was trained to do'), make('p', model.description || 'The server does not say.')];
  if (model.context_length) {
    const limit = model.context_length.toLocaleString('en');
    shown.push(make('p', `It can read ${limit} tokens: a conversation and the next reply together.`, 'dim'));
  }
  const list = make('ul', '', 'examples');
  for (const text of model.examples || []) {
    const item = make('li'), example = button('', () => send(text), 'example');
    example.append(make('span', text));
    item.append(example);
    list.append(item);
  }
  return list.firstChild ? [...shown, make('h2', 'Try one of these'), list] : shown;
}

/** What is wrong, with a button or a form that can help. */
export function problemBox(problem, { load, saveKey }) {
  const box = make('div', '', 'problem');
  box.append(make('p', problem.message), problem.kind === 'key' ? keyForm(saveKey, load) : button('Try again', load, 'main'));
  return box;
}
