// Conversations, kept in this browser. A conversation is a tree of messages: an edited message or a new reply is a sibling of the
// old one, so nothing is overwritten. Every message has its own entry in the storage, so two tabs can't overwrite each other's.
//
//   conversation: {id, title, system, models: [name, name or null], leaf, updated, messages: Map}
//   message:      {id, parent, made, role: 'user', content} or {…, role: 'assistant', replies: [reply, reply?]}
//   reply:        {model, seed, content, thoughts, tokens, finish, usage, seconds, problem}

const PREFIX = 'mini-chat-gpt/', SETTINGS = 'mini-chat-gpt-settings', TITLE_LENGTH = 60;

export const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 8);

export function newConversation(models) {
  return { id: newId(), title: '', system: '', models: [...models], leaf: null, updated: 0, messages: new Map() };
}

export function addMessage(conversation, parent, fields) {
  const message = { id: newId(), parent, made: Date.now(), ...fields };
  conversation.messages.set(message.id, message);
  return message;
}

/** The messages from the first one to this one. */
export function pathTo(conversation, id) {
  const path = [], seen = new Set();
  for (let at = conversation.messages.get(id); at && !seen.has(at.id); at = conversation.messages.get(at.parent)) {
    seen.add(at.id);
    path.unshift(at);
  }
  return path;
}

/** The versions of a message, oldest first. */
export function siblings(conversation, parent) {
  const found = [...conversation.messages.values()].filter(message => message.parent === parent);
  return found.sort((a, b) => a.made - b.made || (a.id < b.id ? -1 : 1));
}

/** The newest message that continues from this one (null: from the beginning); itself if there is none. */
export function newestLeaf(conversation, id) {
  const seen = new Set();
  for (let at = id; ;) {
    const next = siblings(conversation, at).pop();
    if (!next || seen.has(next.id)) return at;
    seen.add(next.id);
    at = next.id;
  }
}

/** What the model reads. Each of two models reads its own replies; messages without a reply between them are sent as one. */
export function requestMessages(conversation, message, lane) {
  const sent = conversation.system ? [{ role: 'system', content: conversation.system }] : [];
  for (const { role, content, replies } of pathTo(conversation, message.parent)) {
    const text = role === 'user' ? content : (replies[lane] || replies[0]).content;
    const last = sent[sent.length - 1];
    if (last && last.role === role) last.content += `\n\n${text}`;
    else if (text) sent.push({ role, content: text });
  }
  return sent;
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = [...conversation.messages.values()].find(message => message.role === 'user' && message.parent === null);
  const line = first ? first.content.trim().split('\n', 1)[0] : '';
  return [...line].length > TITLE_LENGTH ? [...line].slice(0, TITLE_LENGTH).join('') + '…' : line || 'New conversation';
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

/** Stands in for localStorage where the browser has none: nothing is kept after the page is closed. */
function temporaryStorage() {
  const entries = new Map();
  return {
    get length() { return entries.size; },
    key: at => [...entries.keys()][at],
    getItem: key => (entries.has(key) ? entries.get(key) : null),
    setItem: (key, text) => entries.set(key, text),
    removeItem: key => entries.delete(key),
  };
}

export class Store {
  constructor() {
    this.problem = '';  // a sentence when something could not be kept
    try {
      this.storage = window.localStorage;
      this.storage.getItem(SETTINGS);
    } catch {
      this.storage = temporaryStorage();
      this.problem = 'This browser does not let the page keep anything: conversations end with this tab.';
    }
  }

  keys(prefix) {
    return Array.from({ length: this.storage.length }, (_, at) => this.storage.key(at)).filter(key => key && key.startsWith(prefix));
  }

  /** {id, title, updated} of all conversations, newest first. */
  list() {
    const found = this.keys(PREFIX).filter(key => !key.slice(PREFIX.length).includes('/'));
    const entries = found.map(key => parsed(this.storage.getItem(key))).filter(entry => entry && typeof entry.id === 'string');
    return entries.sort((a, b) => (b.updated || 0) - (a.updated || 0));
  }

  load(id) {
    const entry = parsed(this.storage.getItem(PREFIX + id));
    if (!entry || entry.id !== id) return null;
    const models = Array.isArray(entry.models) ? entry.models : [null, null];
    return { ...newConversation(models), ...entry, models, messages: this.messages(id) };
  }

  messages(id) {
    const messages = new Map();
    for (const key of this.keys(`${PREFIX}${id}/`).filter(key => !key.endsWith('/why'))) {
      const message = parsed(this.storage.getItem(key));
      const valid = message && (message.role === 'user' ? typeof message.content === 'string' : Array.isArray(message.replies));
      if (!valid || typeof message.id !== 'string') continue;
      if (message.replies) {
        const why = parsed(this.storage.getItem(`${key}/why`)) || [];
        message.replies.forEach((reply, lane) => { reply.tokens = why[lane] || []; });
      }
      messages.set(message.id, message);
    }
    return messages;
  }

  save(conversation) {
    const { messages, ...entry } = conversation;
    conversation.updated = entry.updated = Date.now();
    return this.write(PREFIX + conversation.id, { ...entry, title: titleOf(conversation) });
  }

  /** The probabilities of the tokens have an entry of their own, which is given up first when the storage is full. */
  saveMessage(conversation, message) {
    const key = `${PREFIX}${conversation.id}/${message.id}`;
    if (!message.replies) return this.write(key, message);
    const kept = this.write(key, { ...message, replies: message.replies.map(({ tokens, ...reply }) => reply) });
    if (message.replies.some(reply => reply.finish === null && !reply.problem)) return kept;  // not before the reply is complete
    return this.write(`${key}/why`, message.replies.map(reply => reply.tokens)) && kept;
  }

  write(key, value) {
    const text = JSON.stringify(value);
    for (;;) {
      try {
        this.storage.setItem(key, text);
        return true;
      } catch {
        if (key.endsWith('/why') || !this.forgetProbabilities()) {
          this.problem = key.endsWith('/why') ? this.problem :
            'The storage of this browser is full: this message is not kept. Delete conversations that you no longer need.';
          return key.endsWith('/why');
        }
      }
    }
  }

  /** Give up the token probabilities of the conversation that was used least recently. */
  forgetProbabilities() {
    const kept = this.list().reverse().map(entry => this.keys(`${PREFIX}${entry.id}/`).filter(key => key.endsWith('/why')));
    const oldest = kept.find(keys => keys.length) || [];
    for (const key of oldest) this.storage.removeItem(key);
    return oldest.length > 0;
  }

  /** Delete a conversation. Returns its entries for `restore`. */
  remove(id) {
    const keys = [PREFIX + id, ...this.keys(`${PREFIX}${id}/`)];
    const entries = keys.map(key => [key, this.storage.getItem(key)]);
    for (const key of keys) this.storage.removeItem(key);
    return entries;
  }

  restore(entries) {
    for (const [key, text] of entries) if (text !== null) this.write(key, JSON.parse(text));
  }

  settings() {
    return parsed(this.storage.getItem(SETTINGS)) || {};
  }

  saveSettings(settings) {
    return this.write(SETTINGS, settings);
  }

  /** Call `changed(id, deleted)` when another tab changes a conversation. */
  watch(changed) {
    window.addEventListener('storage', event => {
      if (event.key === null || event.key === SETTINGS) return changed(null, false);
      if (!event.key.startsWith(PREFIX)) return undefined;
      const [id, ...rest] = event.key.slice(PREFIX.length).split('/');
      return changed(id, !rest.length && event.newValue === null);
    });
  }
}
