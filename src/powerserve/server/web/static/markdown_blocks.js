// Markdown's blocks: first the lines are divided, then each block becomes a DOM node.

import { copyButton, element } from "./elements.js";
import { appendInline } from "./markdown_inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^\s`]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/;
const MAX_DEPTH = 8;

/** The blocks of a text, each with its `lines` and `render(depth)`. */
export function splitBlocks(lines) {
  const blocks = [];
  let next = 0;
  while (next < lines.length) {
    const block = blockAt(lines, next);
    if (block) blocks.push(block);
    next += block ? block.lines.length : 1;
  }
  return blocks;
}

/** Append the blocks of `lines` to `parent`. */
export function appendBlocks(parent, lines, depth) {
  if (depth > MAX_DEPTH) return parent.append(lines.join("\n"));
  for (const block of splitBlocks(lines)) parent.append(block.render(depth));
}

function blockAt(lines, start) {
  const line = lines[start];
  if (line.trim() === "") return null;
  if (FENCE.test(line)) return block(fenceLines(lines, start), renderCode);
  if (HEADING.test(line)) return block([line], renderHeading);
  if (RULE.test(line)) return block([line], () => element("hr"));
  if (QUOTE.test(line)) return block(leading(lines, start, QUOTE), renderQuote);
  if (ITEM.test(line)) return block(listLines(lines, start), renderList);
  if (beginsTable(lines, start)) return block(tableLines(lines, start), renderTable);
  return block(paragraphLines(lines, start), renderParagraph);
}

function block(lines, render) {
  return { lines, render: (depth) => render(lines, depth) };
}

function fenceLines(lines, start) {
  const fence = FENCE.exec(lines[start])[1];
  let end = start + 1;
  while (end < lines.length && !closesFence(lines[end], fence)) end++;
  return lines.slice(start, end + 1);
}

function closesFence(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

function renderCode(lines) {
  const [, fence, language] = FENCE.exec(lines[0]);
  const isClosed = lines.length > 1 && closesFence(lines.at(-1), fence);
  const text = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  const bar = element("div", { className: "bar" }, element("span", {}, language), copyButton(() => text));
  const code = element("pre", { tabIndex: 0 }, element("code", { textContent: text }));
  return element("div", { className: "code" }, bar, code);
}

function renderHeading([line], depth) {
  const [, marks, text] = HEADING.exec(line);
  // The page's own title is the first level.
  const node = element(`h${Math.min(6, marks.length + 1)}`);
  appendInline(node, text.trim().replace(/ #+$/, ""), depth);
  return node;
}

function leading(lines, start, pattern) {
  let end = start;
  while (end < lines.length && pattern.test(lines[end])) end++;
  return lines.slice(start, end);
}

function renderQuote(lines, depth) {
  const node = element("blockquote");
  appendBlocks(node, lines.map((line) => line.replace(QUOTE, "")), depth + 1);
  return node;
}

function listLines(lines, start) {
  let end = start + 1;
  while (end < lines.length && belongsToList(lines, start, end)) end++;
  while (lines[end - 1].trim() === "") end--;
  return lines.slice(start, end);
}

function belongsToList(lines, start, index) {
  const line = lines[index];
  if (line.trim() === "" || /^(?: {2}|\t)/.test(line)) return true;
  const item = RULE.test(line) ? null : ITEM.exec(line);
  if (item) return isOrdered(item) === isOrdered(ITEM.exec(lines[start]));
  return lines[index - 1].trim() !== "" && !interruptsParagraph(lines, index);
}

function isOrdered(item) {
  return /\d/.test(item[2]);
}

function renderList(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const node = element(isOrdered(first) ? "ol" : "ul");
  if (isOrdered(first)) node.start = parseInt(first[2], 10);
  for (const item of splitItems(lines)) node.append(renderItem(item, depth + 1));
  return node;
}

/** The lines of each item, without marker and indentation. */
function splitItems(lines) {
  const level = ITEM.exec(lines[0])[1].length;
  const items = [];
  let indent = 0;
  for (const line of lines) {
    const marker = ITEM.exec(line);
    if (marker && marker[1].length < level + 2) {
      indent = marker[0].length;
      items.push([line.slice(indent)]);
    } else {
      items.at(-1).push(line.slice(Math.min(indent, line.length - line.trimStart().length)));
    }
  }
  return items;
}

function renderItem(lines, depth) {
  const node = element("li");
  appendBlocks(node, lines, depth);
  const isTight = lines.every((line) => line.trim() !== "");
  const [first] = node.children;
  if (isTight && first?.tagName === "P") unwrap(first);
  return node;
}

function unwrap(node) {
  while (node.firstChild) node.before(node.firstChild);
  node.remove();
}

function beginsTable(lines, start) {
  const [head, rule] = [lines[start], lines[start + 1]];
  if (!head.includes("|") || !rule?.includes("-")) return false;
  const cells = splitRow(rule);
  return cells.every((cell) => /^:?-+:?$/.test(cell)) && cells.length === splitRow(head).length;
}

function tableLines(lines, start) {
  return [...lines.slice(start, start + 2), ...leading(lines, start + 2, /\|/)];
}

function splitRow(line) {
  const row = line.trim().replace(/^\|/, "").replace(/([^\\]|^)\|$/, "$1");
  const cells = row.match(/(?:\\.|[^|\\])+|(?<=\||^)(?=\||$)/g) ?? [];
  return cells.map((cell) => cell.replaceAll("\\|", "|").trim());
}

function renderTable([head, rule, ...rows], depth) {
  const sides = splitRow(rule).map(alignment);
  const top = element("thead", {}, renderRow("th", head, sides, depth));
  const body = element("tbody");
  for (const row of rows) body.append(renderRow("td", row, sides, depth));
  return element("div", { className: "table", tabIndex: 0 }, element("table", {}, top, body));
}

function alignment(cell) {
  if (!cell.endsWith(":")) return "";
  return cell.startsWith(":") ? "centre" : "right";
}

function renderRow(tag, line, sides, depth) {
  const cells = splitRow(line);
  const row = element("tr");
  for (const [column, side] of sides.entries()) {
    const cell = element(tag, { className: side });
    appendInline(cell, cells[column] ?? "", depth);
    row.append(cell);
  }
  return row;
}

function paragraphLines(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() !== "" && !interruptsParagraph(lines, end)) end++;
  return lines.slice(start, end);
}

function interruptsParagraph(lines, index) {
  const line = lines[index];
  if ([FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line))) return true;
  // A number at the beginning of a line is a list only if it is the first one.
  return /^ {0,3}(?:[-*+]|1[.)]) +\S/.test(line) || beginsTable(lines, index);
}

function renderParagraph(lines, depth) {
  const node = element("p");
  appendInline(node, lines.map((line) => line.trim()).join("\n"), depth);
  return node;
}
