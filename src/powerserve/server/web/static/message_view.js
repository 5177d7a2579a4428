// One message on the page.

import { copyButton, element, textButton } from "./elements.js";
import { MarkdownView } from "./markdown.js";

/** A message of the user: plain text that can be edited. */
export class QuestionView {
  /** `onEdit(text)` is called when the message has been changed. */
  constructor(message, onEdit) {
    this.message = message;
    this.onEdit = onEdit;
    this.body = element("div", { className: "text" });
    this.node = element("article", { className: "user", ariaLabel: "You" }, this.body);
    this.#show();
  }

  #show() {
    const edit = textButton("Edit", () => this.#edit());
    const actions = element("div", { className: "actions" }, edit, copyButton(() => this.message.content));
    this.body.textContent = this.message.content;
    this.node.replaceChildren(this.body, actions);
  }

  #edit() {
    const field = element("textarea", { value: this.message.content, ariaLabel: "Edit the message", rows: 3 });
    const send = textButton("Send", () => field.value.trim() && this.onEdit(field.value));
    const cancel = textButton("Cancel", () => this.#show());
    field.onkeydown = (event) => {
      if (event.key === "Escape") cancel.click();
      if (isSendKey(event)) {
        event.preventDefault();
        send.click();
      }
    };
    this.node.replaceChildren(field, element("div", { className: "actions open" }, send, cancel));
    field.focus();
  }
}

/** An answer: Markdown, with its reasoning folded away. */
export class AnswerView {
  constructor(message, onRegenerate) {
    this.message = message;
    this.summary = element("summary");
    this.reasoning = element("div", { className: "text" });
    this.thoughts = element("details", {}, this.summary, this.reasoning);
    this.markdown = new MarkdownView(element("div", { className: "markdown" }));
    this.error = element("p", { className: "error", role: "alert" });
    this.facts = element("span", { className: "facts" });
    const actions = element(
      "div",
      { className: "actions" },
      copyButton(() => message.content),
      textButton("Regenerate", onRegenerate),
      this.facts,
    );
    const parts = [this.thoughts, this.markdown.node, this.error, actions];
    this.node = element("article", { className: "assistant", ariaLabel: "Answer" }, ...parts);
    this.update(false);
  }

  /** Show what the message has become. */
  update(isRunning) {
    const { content, reasoning, error, facts } = this.message;
    this.node.classList.toggle("running", isRunning);
    this.node.classList.toggle("waiting", isRunning && !content && !reasoning);
    this.node.ariaBusy = String(isRunning);
    this.thoughts.hidden = !reasoning;
    this.summary.textContent = isRunning && !content ? "Thinking …" : "Reasoning";
    this.reasoning.textContent = reasoning ?? "";
    this.markdown.update(content);
    this.error.hidden = !error;
    this.error.textContent = error ?? "";
    this.facts.textContent = (facts ?? []).join(" · ");
  }
}

/** Enter alone; not while an input method is composing a word. */
export function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}
