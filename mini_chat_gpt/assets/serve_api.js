// Requests to the server, and its errors as plain sentences.

/** How long a reply may be silent, in milliseconds. The server sends a comment every few seconds while it has nothing else. */
export const limits = { silence: 90000 };

/** What went wrong. `kind` is offline, busy, key, context, model, request, server or interrupted. */
export class Problem extends Error {
  constructor(kind, sentence, code = null) {
    super(sentence);
    this.kind = kind;
    this.code = code;  // of the server's error object
  }
}

const OFFLINE = 'The server cannot be reached. It may be restarting, or “mini-chat-gpt serve” is no longer running. Nothing you wrote is lost.';

async function request(path, key, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem('offline', OFFLINE);
  }
  if (response.ok) return response;
  let error = null;
  try { ({ error } = await response.json()); } catch { /* not an error object: the status has to do */ }
  throw problemOf(response.status, error || {}, response.headers.get('Retry-After'));
}

/** The problem of an OpenAI error object. */
function problemOf(status, error, retryAfter) {
  const said = typeof error.message === 'string' && error.message ? error.message : `status ${status}`;
  if (status === 401) return new Problem('key', 'The server asks for an API key, and this page has none or a wrong one.');
  if (status === 429 || status === 503) {
    const seconds = parseInt(retryAfter, 10);
    const when = seconds > 0 ? `It asks to try again in ${seconds} ${seconds === 1 ? 'second' : 'seconds'}.` : 'Try again in a moment.';
    return new Problem('busy', `The server is busy. ${when}`);
  }
  if (error.code === 'context_length_exceeded') {
    return new Problem('context', 'This conversation is longer than the model can read. Start a new conversation, or edit an earlier message ' +
      `and make it shorter. (${said})`);
  }
  if (status === 404) return new Problem('model', `The server does not have this model now: choose another one above. (${said})`);
  if (status === 413) return new Problem('request', `The message is too long for the server. (${said})`);
  if (status >= 500) return new Problem('server', `The server failed: ${said}`);
  return new Problem('request', `The server did not accept the request: ${said}`, error.code);
}

/** The models that the server has, as objects of its /v1/models. */
export async function fetchModels(key) {
  const response = await request('v1/models', key);
  const { data } = await response.json();
  if (!Array.isArray(data) || !data.length) throw new Problem('server', 'The server has no model.');
  return data;
}

/** Whether the server answers. */
export async function isAlive() {
  try { return (await fetch('health')).ok; } catch { return false; }
}

const BASE_TOKENS = 200;  // of a continuation, if the settings have no limit: text has no end of its own
const baseModels = new Set();  // models that have no chat format

/** Stream a reply to the messages of `body`; of a base model, which does not chat, the continuation of the last one. */
export async function streamReply(body, key, signal, onPiece) {
  if (!baseModels.has(body.model)) {
    try { return await stream('v1/chat/completions', body, key, signal, onPiece); } catch (error) {
      if (error.code !== 'no_chat_format') throw error;
      baseModels.add(body.model);
    }
  }
  const { messages, logprobs, top_logprobs, ...rest } = body;
  const prompt = messages[messages.length - 1].content;
  return stream('v1/completions', { max_tokens: BASE_TOKENS, ...rest, prompt, logprobs: top_logprobs }, key, signal, onPiece);
}

/**
 * Stream a reply. `onPiece` gets {text, thoughts, tokens, finish, usage} as they arrive. Rejects with a Problem, or with an AbortError after
 * `signal` was aborted.
 */
async function stream(path, body, key, signal, onPiece) {
  const own = new AbortController(), stop = () => own.abort();
  signal.addEventListener('abort', stop);
  let timer = 0, complete = false;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(stop, limits.silence);
  };
  alive();
  try {
    const headers = { 'Content-Type': 'application/json' };
    const response = await request(path, key, { method: 'POST', headers, body: JSON.stringify(body), signal: own.signal });
    await readEvents(response.body, alive, data => {
      if (data === '[DONE]') { complete = true; return; }
      const event = JSON.parse(data);
      if (event.error) throw problemOf(event.error.status || 500, event.error, null);
      const choice = (event.choices || [])[0] || {}, delta = choice.delta || {};
      complete = complete || Boolean(choice.finish_reason);
      onPiece({
        text: delta.content || choice.text || '', thoughts: delta.reasoning_content || '', finish: choice.finish_reason || null, usage: event.usage || null,
        tokens: tokensOf(choice.logprobs || {}),
      });
    });
  } catch (error) {
    if (error instanceof Problem || signal.aborted) throw error;
    if (own.signal.aborted) throw new Problem('interrupted', `The server has sent nothing for ${limits.silence / 1000} seconds.`);
    if (!complete) throw new Problem('interrupted', 'The connection ended in the middle of the reply.');
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', stop);
  }
  if (!complete) throw new Problem('interrupted', 'The connection ended in the middle of the reply.');
}

/** Server-sent events: `onData` gets the data of each, `alive` is called for everything that arrives, comments included. */
async function readEvents(body, alive, onData) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = '', data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith('data:')) data.push(line.slice(line[5] === ' ' ? 6 : 5));
        else if (!line && data.length) {
          onData(data.join('\n'));
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** [text, log-probability, [[text, log-probability] of the alternatives]] of each token, from the form of chats or of completions. */
function tokensOf({ content, tokens, token_logprobs: logprobs, top_logprobs: others }) {
  const rounded = logprob => Math.round(logprob * 1e4) / 1e4, pair = ({ token, bytes, logprob }) => [shownToken(token, bytes), rounded(logprob)];
  if (content) return content.map(entry => [...pair(entry), (entry.top_logprobs || []).map(pair)]);
  const alternatives = at => Object.entries((others && others[at]) || {}).map(([token, logprob]) => [token, rounded(logprob)]);
  return (tokens || []).map((token, at) => [token, rounded(logprobs[at]), alternatives(at)]);
}

/** The text of a token; its bytes in hexadecimal if it is only a part of a character. */
function shownToken(token, bytes) {
  if (!Array.isArray(bytes)) return token;
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes));
  } catch {
    return `⟨${bytes.map(byte => byte.toString(16).toUpperCase().padStart(2, '0')).join(' ')}⟩`;
  }
}
