// The chat page: asks the server, shows the answers, listens to the keyboard.

import { Answer, emptyAnswer } from "./answer.js";
import { listModels, streamChat } from "./api.js";
import { Conversation } from "./conversation.js";
import { Log } from "./log.js";
import { AnswerView, isSendKey, QuestionView } from "./message_view.js";
import { isDark, offerModels, rememberModel, Settings, toggleTheme } from "./settings.js";

const byId = (id) => document.getElementById(id);
const page = {
  model: byId("model"),
  input: byId("input"),
  send: byId("send"),
  stop: byId("stop"),
  greeting: byId("greeting"),
  notice: byId("notice"),
  status: byId("status"),
  settings: byId("settings"),
  keyPrompt: byId("key-prompt"),
};

const conversation = new Conversation();
const settings = new Settings(page.settings.querySelector("form"));
const log = new Log(byId("log"), byId("scroller"), viewFor);
let running = null; // AbortController of the answer that is coming

function viewFor(message) {
  if (message.role === "user") return new QuestionView(message, (text) => ask(text, message));
  return new AnswerView(message, () => regenerate(message));
}

function showConversation() {
  page.greeting.hidden = conversation.messages.length > 0;
  log.show(conversation.messages);
}

/** Ask `text`; in place of an earlier message and what followed it, if there is one. */
async function ask(text, replaced = null) {
  await stopAndWait();
  if (replaced) conversation.cutAt(replaced);
  conversation.add({ role: "user", content: text });
  await answer();
}

async function regenerate(message) {
  await stopAndWait();
  conversation.cutAt(message);
  await answer();
}

/** Have the server answer the conversation as it is. */
async function answer() {
  const message = conversation.add(emptyAnswer());
  const body = requestBody();
  running = new AbortController();
  showRunning();
  showConversation();
  log.scrollDown();
  running.done = follow(new Answer(message), body, running.signal);
  await running.done;
  running = null;
  showRunning();
  log.keepingEnd(() => log.viewOf(message)?.update(false));
  if (!conversation.save()) notify("The browser has no room for this conversation: it will be lost.");
}

function requestBody() {
  const messages = conversation.forServer(settings.systemPrompt);
  return { model: page.model.value, messages, ...settings.sampling };
}

/** Take the answer's chunks to its end, whatever that is. */
async function follow(coming, body, signal) {
  const show = oncePerFrame(() => log.keepingEnd(() => log.viewOf(coming.message)?.update(running !== null)));
  show();
  try {
    for await (const chunk of streamChat(body, settings.key, signal)) {
      coming.take(chunk);
      show();
    }
    say("The answer is complete.");
  } catch (error) {
    report(coming.message, error);
  }
  coming.end(signal.aborted);
}

function report(message, error) {
  if (error.name === "AbortError") return say("Stopped.");
  message.error = sentence(error.message);
  if (error.status === 401) askForKey();
}

/** The server words its errors for logs: lower case, no full stop. */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/** A function that does `work` before the next drawing, however often it is called. */
function oncePerFrame(work) {
  let isPlanned = false;
  return () => {
    if (isPlanned) return;
    isPlanned = true;
    requestAnimationFrame(() => {
      isPlanned = false;
      work();
    });
  };
}

async function stopAndWait() {
  running?.abort();
  await running?.done;
}

function showRunning() {
  page.send.hidden = running !== null;
  page.stop.hidden = running === null;
  if (running) say("The answer is coming.");
}

function say(text) {
  page.status.textContent = text;
}

function notify(text) {
  page.notice.textContent = text;
  page.notice.hidden = !text;
}

async function showModels() {
  try {
    const names = await listModels(settings.key);
    offerModels(page.model, names);
    notify(names.length ? "" : "This server has no model yet: “powerserve pull” fetches one.");
  } catch (error) {
    offerModels(page.model, []);
    notify(sentence(error.message));
    if (error.status === 401) askForKey();
  }
}

function askForKey() {
  if (!page.keyPrompt.open) page.keyPrompt.showModal();
}

function submit() {
  const text = page.input.value;
  if (!text.trim() || running) return;
  page.input.value = "";
  fitInput();
  ask(text);
}

/** As high as its text; the style sheet has the limit. */
function fitInput() {
  page.input.style.height = "auto";
  page.input.style.height = `${page.input.scrollHeight}px`;
}

function showTheme() {
  byId("theme").ariaPressed = String(isDark());
}

async function clear() {
  await stopAndWait();
  conversation.clear();
  notify("");
  showConversation();
  page.input.focus();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
page.input.addEventListener("input", fitInput);
page.input.addEventListener("keydown", (event) => {
  if (!isSendKey(event)) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  const isElsewhere = event.target.closest("dialog, article textarea");
  if (event.key === "Escape" && !isElsewhere) running?.abort();
});
page.stop.addEventListener("click", () => running?.abort());
page.model.addEventListener("change", () => rememberModel(page.model.value));
byId("clear").addEventListener("click", clear);
byId("theme").addEventListener("click", () => {
  toggleTheme();
  showTheme();
});
byId("open-settings").addEventListener("click", () => page.settings.showModal());
page.settings.addEventListener("close", () => page.model.disabled && showModels());
byId("key-cancel").addEventListener("click", () => page.keyPrompt.close());
page.keyPrompt.querySelector("form").addEventListener("submit", (event) => {
  settings.key = event.target.elements.key.value;
  showModels();
});
addEventListener("pagehide", () => conversation.save());

showTheme();
showConversation();
log.scrollDown();
showModels();
