// The page of `mini-chat-gpt serve`. It holds the state: the models of the server, the conversation on display, and the replies that
// are being written. serve_store.js keeps conversations, serve_api.js talks to the server, serve_messages.js shows messages.

import { fetchModels, isAlive, Problem, streamReply } from './serve_api.js';
import { Composer, isTouch } from './serve_composer.js';
import { make } from './serve_markdown.js';
import { button, MessageView } from './serve_messages.js';
import { Settings } from './serve_settings.js';
import { addMessage, newConversation, newestLeaf, pathTo, requestMessages, siblings, Store, titleOf } from './serve_store.js';
import { Sidebar } from './serve_sidebar.js';
import { firstSteps, problemBox } from './serve_start.js';

const ALIVE_EVERY = 3000, SAVE_EVERY = 1000, NEAR_END = 80, SPOKEN = 600;  // milliseconds, milliseconds, pixels, characters
const $ = id => document.getElementById(id);
const scroller = $('scroller'), messageList = $('messages'), notice = $('notice');
const store = new Store();
const open = new Map();  // id -> conversation, those in use by this tab
const runs = new Map();  // "message/lane" -> {abort, conversation, message}
let models = [], modelProblem = null, current = newConversation([null, null]), views = new Map(), drawing = 0, waitingForServer = 0;

const settings = new Settings(store, systemChanged => {
  if (systemChanged && current.messages.size) save(() => store.save(current));
  showControls();
}, () => current, () => modelNamed(current.models[0]));
const composer = new Composer(send, notify, () => (current.messages.size ? current.id : 'new'));
const sidebar = new Sidebar(store, () => current, id => [...runs.values()].some(run => run.conversation.id === id), {
  renamed(title) {
    current.title = title;
    save(() => store.save(current));
    showTitle();
  },
  deleted() {
    const name = titleOf(current), { id } = current;
    for (const run of runsOf(current)) run.abort.abort();
    const entries = store.remove(id);
    open.delete(id);
    location.hash = '';
    notify(`“${name}” is deleted.`, 'Undo', () => {
      store.restore(entries);
      location.hash = id;
    });
  },
});

const modelNamed = name => models.find(model => model.id === name) || null;
const runsOf = conversation => [...runs.values()].filter(run => run.conversation === conversation);
const isRunning = (message, lane) => runs.has(`${message.id}/${lane}`);

/** Read a sentence to users of screen readers. */
function say(text) {
  $('status').textContent = '';
  setTimeout(() => { $('status').textContent = text; }, 50);
}

/** Show a sentence above the message box, with a button for what can be done about it. */
function notify(text, action = '', act = null) {
  notice.replaceChildren(make('span', text));
  if (action) notice.append(button(action, () => { notice.hidden = true; act(); }, 'main'));
  const close = button('✕', () => { notice.hidden = true; });
  close.setAttribute('aria-label', 'Close this notice');
  notice.append(close);
  notice.hidden = !text;
}

function save(write) {
  const kept = write();
  if (!kept && store.problem) notify(store.problem);
}

// Sending and receiving

/** Send a message. Returns whether it was taken: the text then stands in the conversation, whatever happens to the request. */
function send(text) {
  if (runsOf(current).length) {
    notify('A reply is being written. Wait for its end or stop it; your text stays here.');
    return false;
  }
  if (!models.length) {
    loadModels().then(() => { if (modelProblem) notify(modelProblem.message); });
    return false;
  }
  notice.hidden = true;
  const isNew = !current.messages.size, message = addMessage(current, current.leaf, { role: 'user', content: text });
  save(() => store.saveMessage(current, message));
  if (isNew) {
    composer.moveDraft('new');
    open.set(current.id, current);
    current.title = titleOf(current);
    history.pushState(null, '', `#${current.id}`);
  }
  answer(message.id);
  scroller.scrollTop = scroller.scrollHeight;
  return true;
}

/** Ask the chosen model, or both of them, for a reply after the message `parent`. */
function answer(parent) {
  const seed = settings.values.seed ?? Math.floor(Math.random() * 2 ** 31);
  const replies = current.models.filter(Boolean).map(model => (
    { model, seed, content: '', thoughts: '', tokens: [], finish: null, usage: null, seconds: 0, problem: null }));
  const message = addMessage(current, parent, { role: 'assistant', replies });
  current.leaf = message.id;
  save(() => store.save(current));
  replies.forEach((_, lane) => run(current, message, lane));
  showConversation();
  return message;
}

async function run(conversation, message, lane) {
  const reply = message.replies[lane], abort = new AbortController(), key = `${message.id}/${lane}`;
  let begun = 0, saved = Date.now();
  runs.set(key, { abort, conversation, message });
  Object.assign(reply, { problem: null, finish: null });
  const body = {
    model: reply.model, messages: requestMessages(conversation, message, lane), stream: true, stream_options: { include_usage: true },
    logprobs: true, top_logprobs: 5, ...settings.forRequest(), seed: reply.seed,
  };
  try {
    await streamReply(body, settings.values.key, abort.signal, piece => {
      if (!begun) Object.assign(reply, { content: '', thoughts: '', tokens: [] });  // what an earlier attempt wrote
      begun = begun || Date.now();
      reply.content += piece.text;
      reply.thoughts += piece.thoughts;
      reply.tokens.push(...piece.tokens);
      reply.finish = piece.finish || reply.finish;
      reply.usage = piece.usage || reply.usage;
      reply.seconds = (Date.now() - begun) / 1000;
      if (Date.now() - saved > SAVE_EVERY) {
        saved = Date.now();
        store.saveMessage(conversation, message);
      }
      draw();
    });
    reply.finish = reply.finish || 'stop';
  } catch (error) {
    if (abort.signal.aborted) reply.finish = 'stopped';
    else reply.problem = { kind: error instanceof Problem ? error.kind : 'server', text: error.message };
    if (error.kind === 'offline' || error.kind === 'interrupted') waitForServer();
    if (error.kind === 'model') loadModels();
  }
  runs.delete(key);
  if (open.has(conversation.id)) save(() => store.saveMessage(conversation, message));
  if (conversation === current) sayReply(reply);
  showConversation();
}

/** A screen reader reads a reply once, when it is complete, instead of every piece. */
function sayReply(reply) {
  const text = reply.problem ? reply.problem.text : reply.content;
  say(text.length <= SPOKEN ? `${reply.model}: ${text}` : `${reply.model}: ${text.slice(0, SPOKEN)} … The reply continues.`);
}

/** After a lost connection: say when the server answers again. */
function waitForServer() {
  if (waitingForServer) return;
  waitingForServer = setInterval(async () => {
    if (!(await isAlive())) return;
    clearInterval(waitingForServer);
    waitingForServer = 0;
    await loadModels();
    notify('The server answers again.');
  }, ALIVE_EVERY);
}

async function loadModels() {
  try {
    models = await fetchModels(settings.values.key);
    modelProblem = null;
  } catch (error) {
    modelProblem = error instanceof Problem ? error : new Problem('server', 'The server’s list of models cannot be read.');
    if (modelProblem.kind === 'offline') waitForServer();
    else notice.hidden = true;
  }
  showConversation();
  if (modelProblem) scroller.scrollTop = 0;  // where it is shown
}

const actions = {
  isRunning, say, isTouch,
  startNew: () => $('new').click(),
  regenerate(message) {
    if (runsOf(current).length) return;
    const made = answer(message.parent);
    focusMessage(made.id);
  },
  retry(message, lane) {
    if (isRunning(message, lane)) return;
    run(current, message, lane);
    showConversation();
    focusMessage(message.id);
  },
  showVersion(message, id, name) {
    current.leaf = newestLeaf(current, id);
    save(() => store.save(current));
    showConversation();
    const view = views.get(id), buttons = view ? [...view.element.querySelectorAll('.versions button')] : [];
    const target = buttons.find(made => made.getAttribute('aria-label') === name && !made.disabled) || buttons.find(made => !made.disabled);
    if (target) target.focus();
  },
  mayEdit() {
    const running = runsOf(current).length > 0;
    if (running) notify('A reply is being written. Wait for its end or stop it.');
    return !running;
  },
  /** A new version of a message: of the user's, which is answered, or of a reply. */
  edited(message, lane, text) {
    const replies = message.replies && message.replies.map((reply, at) => (
      at === lane ? { ...reply, content: text, tokens: [], usage: null, seconds: 0, finish: 'edited', problem: null } : { ...reply }));
    const fields = message.role === 'user' ? { role: 'user', content: text } : { role: 'assistant', replies };
    const made = addMessage(current, message.parent, fields);
    save(() => store.saveMessage(current, made));
    if (message.role === 'user') answer(made.id);
    else {
      current.leaf = made.id;
      save(() => store.save(current));
      showConversation();
    }
    focusMessage(made.id);
  },
  saveKey(key) {
    settings.saveKey(key);
    loadModels();
  },
};

// Showing

/** Draw what has been received: once per frame, and more rarely when drawing takes long. */
function draw() {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    const begin = performance.now(), atEnd = isAtEnd();
    for (const { conversation, message } of runs.values()) {
      const view = conversation === current && views.get(message.id);
      if (view) view.update();
    }
    if (atEnd) scroller.scrollTop = scroller.scrollHeight;
    const pause = 4 * (performance.now() - begin);
    if (pause < 16) drawing = 0;
    else setTimeout(() => { drawing = 0; draw(); }, pause);
  });
}

const isAtEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;

function focusMessage(id) {
  const card = views.has(id) && views.get(id).element.querySelector('article');
  if (card) card.focus({ preventScroll: true });
}

/** Show the current conversation. Messages that are on display already keep their elements. */
function showConversation() {
  const atEnd = isAtEnd(), before = views, path = pathTo(current, current.leaf);
  views = new Map();
  for (const message of path) {
    const versions = siblings(current, message.parent).map(({ id }) => id), old = before.get(message.id);
    const same = old && old.message === message && (old.isEdited || old.versions.join() === versions.join());
    views.set(message.id, same ? old : new MessageView(message, versions, actions));
  }
  const elements = [...views.values()].map(view => view.element);
  if (elements.length !== messageList.children.length || elements.some((element, at) => element !== messageList.children[at])) {
    messageList.replaceChildren(...elements);
  }
  for (const view of views.values()) view.update();
  showControls();
  showStart();
  showTitle();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

function showTitle() {
  const title = titleOf(current);
  $('title').textContent = title;
  document.title = current.messages.size ? `${title} – mini-chat-gpt` : 'mini-chat-gpt';
  sidebar.show();
}

function fillSelect(select, names, value) {
  select.replaceChildren(...names.map(([name, label]) => {
    const option = make('option', label);
    option.value = name;
    return option;
  }));
  select.value = value || '';
}

function showControls() {
  const ids = models.map(model => model.id), running = runsOf(current).length > 0, changed = settings.count();
  if (ids.length && !ids.includes(current.models[0])) current.models[0] = ids[0];
  if (ids.length && !ids.includes(current.models[1])) current.models[1] = null;
  fillSelect($('model'), ids.map(id => [id, id]), current.models[0]);
  fillSelect($('beside'), [['', 'not compared'], ...ids.map(id => [id, `beside ${id}`])], current.models[1]);
  $('beside-label').hidden = ids.length < 2;
  $('model').disabled = $('beside').disabled = running;
  $('open-settings').textContent = changed ? `Settings (${changed} changed)` : 'Settings';
  $('stop').hidden = !running;
  $('send').hidden = running;
  showMeter();
}

/** How much of what the model can read is used. */
function showMeter() {
  const last = pathTo(current, current.leaf).pop(), replies = (last && last.replies) || [];
  const used = Math.max(0, ...replies.map(({ usage }) => (usage ? usage.prompt_tokens + usage.completion_tokens : 0)));
  const limit = replies.length && modelNamed(replies[0].model) ? modelNamed(replies[0].model).context_length : 0;
  $('meter').textContent = used && limit ? `${used.toLocaleString('en')} of ${limit.toLocaleString('en')} tokens used` : '';
  $('meter').classList.toggle('full', used > 0.9 * limit);
}

function showStart() {
  $('start').hidden = current.messages.size > 0 && !modelProblem;
  if ($('start').hidden) { $('start').replaceChildren(); return; }
  const again = { load: loadModels, saveKey: key => settings.saveKey(key) };
  $('start').replaceChildren(...(modelProblem ? [problemBox(modelProblem, again)] : []),
    ...(current.messages.size ? [] : firstSteps(modelNamed(current.models[0]), send)));
}

/** Show the conversation that the address names, or a new one. */
function openFromAddress() {
  const id = location.hash.slice(1), found = id && (open.get(id) || store.load(id));
  if (found && found === current) return;
  if (id && !found) history.replaceState(null, '', '#');
  messageList.replaceChildren();
  views = new Map();
  current = found || newConversation(current.models);
  if (found) open.set(found.id, found);
  if (!pathTo(current, current.leaf).length) current.leaf = newestLeaf(current, null);
  sidebar.close();
  composer.restore();
  showConversation();
  scroller.scrollTop = scroller.scrollHeight;
}

/** Another tab has changed something: take over its messages, but none that this tab is writing. */
function changedElsewhere(id, deleted) {
  const conversation = open.get(id);
  if (id === null) settings.reload();
  if (conversation && deleted) {
    const keepIt = () => {
      save(() => store.save(conversation));
      for (const message of conversation.messages.values()) store.saveMessage(conversation, message);
      sidebar.show();
    };
    if (conversation === current) notify('This conversation was deleted in another tab.', 'Keep it', keepIt);
    else if (!runsOf(conversation).length) open.delete(id);
  } else if (conversation) {
    const busy = new Set(runsOf(conversation).map(run => run.message.id)), kept = store.load(id);
    for (const [key, message] of kept ? kept.messages : []) {
      const known = conversation.messages.get(key);
      if (!busy.has(key) && JSON.stringify(known) !== JSON.stringify(message)) conversation.messages.set(key, message);
    }
    if (kept) Object.assign(conversation, { title: kept.title, system: kept.system });
  }
  showConversation();
}

$('stop').addEventListener('click', () => {
  for (const run of runsOf(current)) run.abort.abort();
  composer.input.focus();
});
$('model').addEventListener('change', () => { current.models[0] = $('model').value; modelsChosen(); });
$('beside').addEventListener('change', () => { current.models[1] = $('beside').value || null; modelsChosen(); });
function modelsChosen() {
  if (current.messages.size) save(() => store.save(current));
  showConversation();
}
$('open-settings').addEventListener('click', () => settings.open());
$('skip').addEventListener('click', event => { event.preventDefault(); composer.input.focus(); });
document.addEventListener('keydown', event => {
  if (event.key !== 'Escape' || event.defaultPrevented || document.querySelector('dialog[open]')) return;
  if (!sidebar.close()) for (const run of runsOf(current)) run.abort.abort();
});
window.addEventListener('hashchange', openFromAddress);
window.addEventListener('popstate', openFromAddress);
window.addEventListener('pagehide', () => { for (const { conversation, message } of runs.values()) store.saveMessage(conversation, message); });
store.watch(changedElsewhere);
openFromAddress();
if (store.problem) notify(store.problem);
if (!isTouch()) composer.input.focus();
loadModels();
