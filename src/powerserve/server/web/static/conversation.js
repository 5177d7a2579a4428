// The turns of a conversation, kept in the browser.

import { load, save } from "./storage.js";

const NAME = "conversation";

/** Messages in order: `{role, content}`, and for answers what Answer adds. */
export class Conversation {
  constructor() {
    const stored = load(NAME, []);
    this.messages = Array.isArray(stored) ? stored.filter(isMessage) : [];
  }

  add(message) {
    this.messages.push(message);
    return message;
  }

  /** Forget `message` and all that came after it. */
  cutAt(message) {
    const index = this.messages.indexOf(message);
    if (index >= 0) this.messages.length = index;
  }

  clear() {
    this.messages = [];
    this.save();
  }

  /** Returns false if the browser has no room for it. */
  save() {
    return save(NAME, this.messages);
  }

  /** What the server gets: no reasoning, no errors, and nothing of an answer that never came. */
  forServer(systemPrompt) {
    const turns = this.messages.filter(({ role, content }) => role === "user" || content);
    const system = systemPrompt.trim() ? [{ role: "system", content: systemPrompt }] : [];
    return [...system, ...turns.map(({ role, content }) => ({ role, content }))];
  }
}

function isMessage(value) {
  return ["user", "assistant"].includes(value?.role) && typeof value.content === "string";
}
