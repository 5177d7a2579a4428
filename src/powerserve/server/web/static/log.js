// The conversation on the page: a view for each message, and the place one has scrolled to.

const NEAR_PX = 80;

/** Shows a conversation inside `node`, which `scroller` scrolls. */
export class Log {
  #views = [];

  constructor(node, scroller, makeView) {
    this.node = node;
    this.scroller = scroller;
    this.makeView = makeView;
  }

  /** Show exactly these messages. */
  show(messages) {
    const kept = this.#views.filter((view) => messages.includes(view.message));
    const missing = messages.filter((message) => !kept.some((view) => view.message === message));
    this.#views = [...kept, ...missing.map((message) => this.makeView(message))];
    this.node.replaceChildren(...this.#views.map((view) => view.node));
  }

  viewOf(message) {
    return this.#views.find((view) => view.message === message);
  }

  scrollDown() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Change something; who is reading at the end stays there, who has scrolled up is left alone. */
  keepingEnd(change) {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    change();
    if (isAtEnd) this.scrollDown();
  }
}
