// A growing Markdown text on the page.

import { splitBlocks } from "./markdown_blocks.js";

/** Shows a text that is given again and again, each time longer. */
export class MarkdownView {
  #shown = []; // source and node of each block

  constructor(node) {
    this.node = node;
  }

  /** Show `text`. Blocks that have not changed stay, so that they can be selected meanwhile. */
  update(text) {
    const blocks = splitBlocks(text.split("\n"));
    const sources = blocks.map((block) => block.lines.join("\n"));
    let same = 0;
    while (same < sources.length && this.#shown[same]?.source === sources[same]) same++;
    for (const { node } of this.#shown.splice(same)) node.remove();
    for (let index = same; index < blocks.length; index++) {
      const node = blocks[index].render(0);
      this.node.append(node);
      this.#shown.push({ source: sources[index], node });
    }
  }
}
