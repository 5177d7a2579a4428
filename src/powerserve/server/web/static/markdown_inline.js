// Markdown within a paragraph, as DOM nodes. HTML in the text stays text.

import { element } from "./elements.js";

const SPECIAL = /\\[!-/:-@[-`{-~]|`+|\*\*|__|~~|\*|_|!?\[|https?:\/\/|\n/g;
const LINK = /!?\[((?:[^[\]\\]|\\.)*)\]\(\s*<?((?:[^\s<>()]|\([^\s<>()]*\))*)>?(?:\s+"[^"]*")?\s*\)/y;
const BARE_URL = /https?:\/\/[^\s<>"`]+/y;
const AFTER_URL = ".,;:!?'*_~]";
const EMPHASIS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };
const MAX_DEPTH = 8;

/** Append `text` to `parent`. */
export function appendInline(parent, text, depth = 0) {
  if (depth > MAX_DEPTH) return parent.append(text);
  // An opening mark without a closing one need not be searched for again: time stays linear.
  const unclosed = new Set();
  let position = 0;
  while (position < text.length) {
    SPECIAL.lastIndex = position;
    const found = SPECIAL.exec(text);
    if (!found) break;
    parent.append(text.slice(position, found.index));
    position = appendSpecial(parent, text, found, unclosed, depth);
  }
  parent.append(text.slice(position));
}

/** Append what begins at the mark that was found; returns where it ends. */
function appendSpecial(parent, text, { 0: mark, index }, unclosed, depth) {
  const built = construct(text, mark, index, unclosed, depth);
  parent.append(built ? built.node : mark);
  return built ? built.end : index + mark.length;
}

function construct(text, mark, index, unclosed, depth) {
  if (mark === "\n") return { node: element("br"), end: index + 1 };
  if (mark[0] === "\\") return { node: mark[1], end: index + 2 };
  if (mark[0] === "`") return code(text, mark, index);
  if (mark.endsWith("[")) return link(text, index, depth);
  if (mark.startsWith("http")) return bareLink(text, index);
  return emphasis(text, mark, index, unclosed, depth);
}

function code(text, mark, index) {
  const start = index + mark.length;
  const close = closingTicks(text, mark.length, start);
  if (close < 0) return null;
  const content = text.slice(start, close).replaceAll("\n", " ");
  const padded = content.startsWith(" ") && content.endsWith(" ") && content.trim() !== "";
  const node = element("code", { textContent: padded ? content.slice(1, -1) : content });
  return { node, end: close + mark.length };
}

function closingTicks(text, count, start) {
  const ticks = /`+/g;
  ticks.lastIndex = start;
  for (let run = ticks.exec(text); run; run = ticks.exec(text)) {
    if (run[0].length === count) return run.index;
  }
  return -1;
}

function link(text, index, depth) {
  LINK.lastIndex = index;
  const [whole, label, target] = LINK.exec(text) ?? [];
  if (whole === undefined || !isWebAddress(target)) return null;
  const node = anchor(target);
  if (label) appendInline(node, label, depth + 1);
  else node.append(target);
  return { node, end: index + whole.length };
}

function bareLink(text, index) {
  BARE_URL.lastIndex = index;
  let url = BARE_URL.exec(text)?.[0] ?? "";
  while (AFTER_URL.includes(url.at(-1)) || (url.endsWith(")") && !url.includes("("))) {
    url = url.slice(0, -1);
  }
  if (!isWebAddress(url)) return null;
  const node = anchor(url);
  node.append(url);
  return { node, end: index + url.length };
}

function anchor(href) {
  return element("a", { href, target: "_blank", rel: "noopener noreferrer" });
}

/** Only these: `javascript:` and its like would run in this page. */
function isWebAddress(text) {
  return /^https?:\/\//i.test(text) && URL.canParse(text);
}

function emphasis(text, mark, index, unclosed, depth) {
  const start = index + mark.length;
  if (unclosed.has(mark) || !opens(text, mark, index)) return null;
  const close = closingMark(text, mark, start + 1);
  if (close < 0) {
    unclosed.add(mark);
    return null;
  }
  const node = element(EMPHASIS[mark]);
  appendInline(node, text.slice(start, close), depth + 1);
  return { node, end: close + mark.length };
}

function opens(text, mark, index) {
  const before = text[index - 1] ?? " ";
  const after = text[index + mark.length] ?? " ";
  return /\S/.test(after) && !(mark[0] === "_" && isWord(before));
}

function closingMark(text, mark, start) {
  let close = text.indexOf(mark, start);
  while (close >= 0 && !closes(text, mark, close)) close = text.indexOf(mark, close + 1);
  // Of `***` the last two are ours: the first one closes what is inside.
  if (mark === "**" && close >= 0 && text[close + 2] === "*") close++;
  return close;
}

function closes(text, mark, index) {
  const before = text[index - 1];
  const after = text[index + mark.length] ?? " ";
  if (/\s/.test(before) || before === "\\") return false;
  if (mark === "*" && (before === "*" || after === "*")) return false;
  return !(mark[0] === "_" && isWord(after));
}

function isWord(character) {
  return /[\p{L}\p{N}_]/u.test(character);
}
