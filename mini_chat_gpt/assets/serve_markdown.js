// Markdown as DOM nodes. Nothing that a model writes is run: there is no innerHTML, HTML in the text stays text, images are never
// loaded, and only http, https and mailto links open. Time and memory are linear in the length of the text, the tree has a bounded
// depth (MAX_DEPTH), and a text that would need more than MAX_ELEMENTS elements continues as plain text.

const MAX_DEPTH = 8, MAX_EMPHASIS = 8, MAX_ELEMENTS = 20000, MAX_CELLS = 5000, MAX_URL = 2000;
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/, HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/, QUOTE = /^ {0,3}>/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: (.*))?$/;
const SPECIAL = /[\\`*_~[!<]|https?:\/\//g, PUNCTUATION = /[!-/:-@[-`{-~]/, LETTER = /[\p{L}\p{N}]/u;
const TAGS = { '*': 'em', '_': 'em', '**': 'strong', '__': 'strong', '~~': 's' };

/** A text that is rendered again while it grows: blocks that have not changed keep their elements. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.sources = [];
  }

  update(text) {
    const lines = text.replace(/\r\n?/g, '\n').split('\n'), blocks = splitBlocks(lines, 0), budget = { left: MAX_ELEMENTS };
    const rest = blocks.splice(MAX_ELEMENTS / 2);
    if (rest.length) blocks.push({ kind: 'plain', source: rest.map(block => block.source).join('\n\n') });
    let same = 0;
    while (same < this.sources.length && same < blocks.length && this.sources[same] === blocks[same].source) same++;
    // What kept blocks used of the budget is known to their elements.
    for (let i = 0; i < same; i++) budget.left -= 1 + this.container.children[i].getElementsByTagName('*').length;
    while (this.container.childNodes.length > same) this.container.lastChild.remove();
    for (const block of blocks.slice(same)) this.container.append(blockElement(block, budget, 0));
    this.sources = blocks.map(block => block.source);
  }
}

/** Split lines into blocks; every block has its `source`, and the lines of nested blocks for `blockElement`. */
function splitBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) { at++; continue; }
    const [block, end] = takeBlock(lines, at, depth);
    block.source = lines.slice(at, end).join('\n');
    blocks.push(block);
    at = end;
  }
  return blocks;
}

function takeBlock(lines, at, depth) {
  const line = lines[at], fence = fenceOf(line), heading = HEADING.exec(line), nested = depth < MAX_DEPTH;
  if (fence) return takeCode(lines, at, fence);
  if (heading) return [{ kind: 'heading', level: heading[1].length, text: headingText(heading[2] || '') }, at + 1];
  if (isRule(line)) return [{ kind: 'rule' }, at + 1];
  if (nested && QUOTE.test(line)) return takeQuote(lines, at);
  if (nested && ITEM.test(line)) return takeList(lines, at);
  if (beginsTable(lines, at)) return takeTable(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, nested)) end++;
  return [{ kind: 'paragraph', text: lines.slice(at, end).join('\n').trimEnd() }, end];
}

/** Whether a line ends the paragraph above it. Of numbered lists only one that begins with 1 does: a year may begin a line. */
function interrupts(lines, at, nested) {
  const line = lines[at], item = nested && ITEM.exec(line);
  return fenceOf(line) || HEADING.test(line) || isRule(line) || (nested && QUOTE.test(line)) ||
    (item && item[3] && (/^[-*+]|^1[.)]/.test(item[2]))) || beginsTable(lines, at);
}

function fenceOf(line) {
  const match = FENCE.exec(line);
  return match && !(match[1][0] === '`' && match[2].includes('`')) ? match : null;
}

function isRule(line) {
  return /^ {0,3}[-*_]/.test(line) && /^(-{3,}|\*{3,}|_{3,})$/.test(line.replace(/[ \t]+/g, ''));
}

function headingText(text) {
  const shown = text.trimEnd();
  let end = shown.length;
  while (end && shown[end - 1] === '#') end--;
  return end === 0 || shown[end - 1] === ' ' ? shown.slice(0, end).trim() : shown.trim();  // "# Title #", but not "# C#"
}

/** A fenced block. One that is not closed yet reaches to the end: that is how it looks while it is streamed. */
function takeCode(lines, at, fence) {
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], fence[1])) end++;
  const language = fence[2].trim().split(/\s/)[0].slice(0, 40);
  return [{ kind: 'code', language, text: lines.slice(at + 1, end).join('\n') }, Math.min(end + 1, lines.length)];
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text.startsWith(fence) && text === fence[0].repeat(text.length);
}

function takeQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  return [{ kind: 'quote', lines: lines.slice(at, end).map(line => line.replace(/^ {0,3}> ?/, '')) }, end];
}

const indentOf = line => line.length - line.trimStart().length;

/** A list of one kind. Lines that are indented by two or more belong to the item above them, other text continues its paragraph. */
function takeList(lines, at) {
  const [, indent, marker] = ITEM.exec(lines[at]), ordered = /\d/.test(marker), items = [];
  const width = indent.length + marker.length + 1;
  const itemHere = line => {
    const match = ITEM.exec(line);
    return match && match[1].length < indent.length + 2 && /\d/.test(match[2]) === ordered && !isRule(line) ? match : null;
  };
  let end = at, blank = 0;
  for (; end < lines.length; end++) {
    const line = lines[end], item = itemHere(line);
    if (!line.trim()) { blank++; continue; }
    if (item) items.push([item[3] || '']);
    else if (indentOf(line) >= indent.length + 2) {
      if (blank) items[items.length - 1].push('');
      items[items.length - 1].push(line.slice(Math.min(indentOf(line), width)));
    } else if (!blank && !interrupts(lines, end, true)) items[items.length - 1].push(line.trim());
    else break;
    blank = 0;
  }
  return [{ kind: 'list', ordered, start: parseInt(marker, 10), items }, end - blank];
}

/** The cells of a line of a table: "\|" is a bar that does not separate. */
function cellsOf(line) {
  let text = line.trim();
  if (text.startsWith('|')) text = text.slice(1);
  if (text.endsWith('|') && !text.endsWith('\\|')) text = text.slice(0, -1);
  return text.split(/(?<!\\)\|/).map(cell => cell.trim().replace(/\\\|/g, '|'));
}

function beginsTable(lines, at) {
  const below = (lines[at + 1] || '').trim();
  if (!lines[at].includes('|') || !/^[|:-]/.test(below) || !below.includes('-')) return false;
  const marks = cellsOf(below);
  return marks.every(mark => /^:?-+:?$/.test(mark)) && cellsOf(lines[at]).length === marks.length;
}

function takeTable(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes('|')) end++;
  const align = cellsOf(lines[at + 1]).map(mark => (mark.endsWith(':') ? (mark.startsWith(':') ? 'center' : 'right') : ''));
  return [{ kind: 'table', align, rows: [lines[at], ...lines.slice(at + 2, end)] }, end];
}

/** An element with a text; `kind` is its class. */
export function make(tag, text = '', kind = '') {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function blockElement(block, budget, depth) {
  budget.left--;
  if (budget.left <= 0 || block.kind === 'plain') return make('p', block.source);
  if (block.kind === 'heading') return withText(make('h3', '', `level${block.level}`), block.text, budget);
  if (block.kind === 'rule') return make('hr');
  if (block.kind === 'code') return codeElement(block.text, block.language);
  if (block.kind === 'table') return tableElement(block, budget);
  if (block.kind === 'quote') return withBlocks(make('blockquote'), block.lines, budget, depth + 1);
  if (block.kind !== 'list') return withText(make('p'), block.text, budget);
  const list = make(block.ordered ? 'ol' : 'ul');
  if (block.ordered && block.start !== 1) list.start = block.start;
  if (2 * block.items.length > budget.left) return make('p', block.source);
  for (const item of block.items) list.append(withBlocks(make('li'), item, budget, depth + 1));
  return list;
}

function withBlocks(element, lines, budget, depth) {
  budget.left--;
  for (const block of splitBlocks(lines, depth)) element.append(blockElement(block, budget, depth));
  return element;
}

/** Something that is scrolled sideways can be reached by keyboard. */
function codeElement(text, language) {
  const element = make('pre');
  element.tabIndex = 0;
  if (language) element.dataset.language = language;
  element.append(make('code', text));
  return element;
}

function tableElement(block, budget) {
  const rows = block.rows.map(cellsOf), columns = block.align.length;
  const size = rows.reduce((sum, cells) => sum + Math.max(columns, cells.length), 0);
  if (size > Math.min(MAX_CELLS, budget.left)) return codeElement(block.source, '');
  const frame = make('div', '', 'wide'), table = make('table'), body = make('tbody');
  frame.tabIndex = 0;
  rows.forEach((cells, number) => {
    const row = make('tr');
    for (let column = 0; column < Math.max(columns, cells.length); column++) {
      const cell = make(number ? 'td' : 'th', '', block.align[column] || '');
      if (!number) cell.scope = 'col';
      row.append(withText(cell, cells[column] || '', budget));
    }
    budget.left -= row.children.length;
    if (number) return body.append(row);
    table.append(make('thead'));
    return table.firstChild.append(row);
  });
  table.append(body);
  frame.append(table);
  return frame;
}

/** Append a text with its emphasis, code and links. In the text of a link (`inLink`) there are no further links. */
function withText(element, text, budget, inLink = false) {
  const stack = [element], pieces = resolveEmphasis(inlinePieces(text, budget, inLink));
  for (const piece of pieces) {
    const top = stack[stack.length - 1];
    if (piece.open) {
      if (stack.length > MAX_EMPHASIS || budget.left-- <= 0) { stack.push(top); continue; }
      const opened = make(TAGS[piece.open]);
      top.append(opened);
      stack.push(opened);
    } else if (piece.close) stack.pop();
    else top.append(piece.node || piece.text);
  }
  return element;
}

/** Pieces of a text: {text}, {node}, or a run of emphasis marks {mark, size, opens, closes}. */
function inlinePieces(text, budget, inLink) {
  const pieces = [], partner = matchBrackets(text), codeEnd = codeEnds(text);
  let at = 0, plain = 0, gt = -1, paren = -1;  // gt, paren: the next ">" and ")", looked for once
  const after = (sign, cached, from) => (cached >= from ? cached : (cached = text.indexOf(sign, from)) < 0 ? Infinity : cached);
  const put = (end, piece, next) => {
    if (end > plain) pieces.push({ text: text.slice(plain, end) });
    if (piece) pieces.push(piece);
    at = plain = next;
  };
  const link = (label, url, next, start) => {
    if (inLink || !/^(https?:\/\/|mailto:)\S*$/i.test(url) || budget.left-- <= 0) return false;
    put(start, { node: linkElement(label, url, budget) }, next);
    return true;
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const match = SPECIAL.exec(text);
    if (!match) break;
    at = match.index;
    const sign = match[0];
    if (sign === '\\' && PUNCTUATION.test(text[at + 1] || '')) { put(at, { text: text[at + 1] }, at + 2); continue; }
    if (sign === '`') {
      const [length, end] = codeEnd(at);
      if (end < 0 || budget.left-- <= 0) at += length;
      else put(at, { node: make('code', codeText(text.slice(at + length, end))) }, end + length);
      continue;
    }
    if (sign === '<') {
      gt = after('>', gt, at);
      if (gt - at < MAX_URL && link(null, text.slice(at + 1, gt), gt + 1, at)) continue;
    }
    if (sign === '[' || (sign === '!' && text[at + 1] === '[')) {
      const start = at, open = sign === '!' ? at + 1 : at, close = partner[open];
      if (close && text[close + 1] === '(') {
        paren = after(')', paren, close);
        const url = paren - close < MAX_URL ? text.slice(close + 2, paren).trim().split(/\s/, 1)[0] : '';
        if (link(text.slice(open + 1, close), url, paren + 1, start)) continue;
      }
    }
    if (sign.startsWith('http') && !inLink && budget.left > 0) {
      const url = bareUrl(text, at);
      if (!link(null, url, at + url.length, at)) at += sign.length;
      continue;
    }
    if ('*_~'.includes(sign)) {
      let end = at;
      while (text[end] === sign) end++;
      put(at, markOf(text, at, end), end);
      continue;
    }
    at += sign.length;
  }
  put(text.length, null, text.length);
  return pieces;
}

/** Index of the "]" of every "[", in one pass. */
function matchBrackets(text) {
  const partner = {}, open = [];
  if (!text.includes('](')) return partner;
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '\\') at++;
    else if (text[at] === '[') open.push(at);
    else if (text[at] === ']' && open.length) partner[open.pop()] = at;
  }
  return partner;
}

/** A function that finds, for a run of backticks, [its length, the next run of that length or -1]. All runs are found in one pass. */
function codeEnds(text) {
  const runs = new Map(), lengthAt = new Map(), used = new Map();
  for (const match of text.matchAll(/`+/g)) {
    const length = match[0].length;
    lengthAt.set(match.index, length);
    if (!runs.has(length)) runs.set(length, []);
    runs.get(length).push(match.index);
  }
  return at => {
    const length = lengthAt.get(at) || 1, places = runs.get(length) || [];  // escaped backticks split a run
    let next = used.get(length) || 0;
    while (next < places.length && places[next] <= at) next++;
    used.set(length, next);
    return [length, next < places.length ? places[next] : -1];
  };
}

function codeText(text) {
  return text.length > 2 && text[0] === ' ' && text[text.length - 1] === ' ' && text.trim() ? text.slice(1, -1) : text;
}

function bareUrl(text, at) {
  const [found] = /^[^\s<>"`]*/.exec(text.slice(at, at + MAX_URL));
  let end = found.length;
  while (end && '.,;:!?)]}*_~\'’”'.includes(found[end - 1])) end--;
  return found.slice(0, end);
}

function linkElement(label, url, budget) {
  const link = make('a');
  link.href = url;
  link.rel = 'noopener noreferrer nofollow';
  link.target = '_blank';
  if (label === null || !label.trim()) link.textContent = url;
  else {
    link.title = url;  // where it leads, whatever its text says
    withText(link, label, budget, true);
  }
  return link;
}

function markOf(text, start, end) {
  const mark = text[start], before = text[start - 1] || ' ', next = text[end] || ' ';
  const inWord = mark === '_' && LETTER.test(before) && LETTER.test(next);
  if (mark === '~' && end - start !== 2) return { text: text.slice(start, end) };
  return { mark, size: end - start, opens: !inWord && next.trim() !== '', closes: !inWord && before.trim() !== '' };
}

/** Pair the marks: every opener is pushed and popped once. Marks without a partner become text. */
function resolveEmphasis(pieces) {
  const done = [], openers = [], waiting = { '*': 0, '_': 0, '~': 0 };
  const drop = opener => { waiting[opener.mark]--; };
  for (const piece of pieces) {
    if (!piece.mark) { done.push(piece); continue; }
    let size = piece.size;
    while (piece.closes && size && waiting[piece.mark]) {
      while (openers[openers.length - 1].mark !== piece.mark) drop(openers.pop());
      const opener = openers[openers.length - 1], length = opener.text.length;
      if (length > size) break;
      openers.pop();
      drop(opener);
      opener.open = opener.text;
      done.push({ close: true });
      size -= length;
    }
    while (size) {
      const length = piece.mark === '~' ? 2 : Math.min(2, size), opener = { mark: piece.mark, text: piece.mark.repeat(length) };
      done.push(opener);
      if (piece.opens) { openers.push(opener); waiting[piece.mark]++; }
      size -= length;
    }
  }
  return done;
}
