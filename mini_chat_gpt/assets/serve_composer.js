// The box in which a message is written: drafts, text files, and growing with its text.

const MAX_FILE = 1 << 20;  // bytes
const DRAFT = 'mini-chat-gpt-draft/';

export const isTouch = () => window.matchMedia('(pointer: coarse)').matches;

/** The text of a file: UTF-8, or UTF-16 with its mark. Throws an Error with a sentence for anything else. */
async function textOf(file) {
  if (file.size > MAX_FILE) throw new Error(`${file.name} is larger than 1 MB: too long for a message.`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  const encoding = bytes[0] === 0xff && bytes[1] === 0xfe ? 'utf-16le' : bytes[0] === 0xfe && bytes[1] === 0xff ? 'utf-16be' : 'utf-8';
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (!text.includes('\0')) return text.replace(/\r\n?/g, '\n').trim();
  } catch { /* said below */ }
  throw new Error(`${file.name} is not a text file. Only plain text (UTF-8) can be added.`);
}

export class Composer {
  /** `send(text)` returns whether the message was taken; `notify` shows a sentence; `draftName()` names the conversation. */
  constructor(send, notify, draftName) {
    Object.assign(this, { send, notify, draftName });
    this.form = document.getElementById('composer');
    this.input = document.getElementById('input');
    const file = document.getElementById('file');
    this.form.addEventListener('submit', event => { event.preventDefault(); this.submit(); });
    this.input.addEventListener('input', () => this.changed());
    this.input.addEventListener('keydown', event => {
      // Enter also ends the composition of Chinese or Japanese words, and there is no Shift key on a phone.
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing || isTouch()) return;
      event.preventDefault();
      this.submit();
    });
    this.input.addEventListener('paste', event => {
      if (event.clipboardData.files.length && !event.clipboardData.getData('text')) this.addFiles(event.clipboardData.files);
    });
    file.addEventListener('change', async () => {
      await this.addFiles(file.files);
      file.value = '';
    });
    this.acceptDrops(document.getElementById('drop'));
  }

  submit() {
    const text = this.input.value.trim();
    if (!text || !this.send(text)) return this.input.focus();
    return this.set('');
  }

  set(text) {
    this.input.value = text;
    this.changed();
  }

  /** The conversation with this draft has another name now. */
  moveDraft(before) {
    try { sessionStorage.removeItem(DRAFT + before); } catch { /* there are no drafts */ }
    this.changed();
  }

  changed() {
    try { sessionStorage.setItem(DRAFT + this.draftName(), this.input.value); } catch { /* the text stays in the box */ }
    this.fit();
  }

  /** The box is as high as its text, up to the limit that its style sets. */
  fit() {
    this.input.style.height = 'auto';
    this.input.style.height = `${this.input.scrollHeight + 2}px`;
  }

  /** The draft of the conversation that is shown now. */
  restore() {
    try { this.input.value = sessionStorage.getItem(DRAFT + this.draftName()) || ''; } catch { this.input.value = ''; }
    this.fit();
  }

  async addFiles(files) {
    for (const file of files) {
      try {
        const text = await textOf(file);
        this.set(this.input.value.trim() ? `${this.input.value.trimEnd()}\n\n${text}` : text);
        this.notify(`${file.name} was added to your message.`);
      } catch (error) {
        this.notify(error.message);
      }
    }
    this.input.focus();
  }

  acceptDrops(sign) {
    let inside = 0;  // dragenter and dragleave also come for every element below the pointer
    const hasFiles = event => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
    const on = (name, act) => document.addEventListener(name, event => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      act(event);
      sign.hidden = inside <= 0;
    });
    on('dragenter', () => { inside++; });
    on('dragleave', () => { inside--; });
    on('dragover', () => {});
    on('drop', event => {
      inside = 0;
      this.addFiles(event.dataTransfer.files);
    });
  }
}
