// What the user has chosen: fields of the settings, the model, the key, light or dark.

import { load, save } from "./storage.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** The settings, bound to the form in their dialog. */
export class Settings {
  constructor(form) {
    this.form = form;
    const stored = load("settings", {});
    for (const name of ["system", ...NUMBERS]) form.elements[name].value = stored[name] ?? "";
    form.elements.key.value = load("key", "", () => sessionStorage);
    form.addEventListener("input", () => this.#save());
  }

  get key() {
    return this.form.elements.key.value.trim();
  }

  set key(value) {
    this.form.elements.key.value = value;
    this.#save();
  }

  get systemPrompt() {
    return this.form.elements.system.value;
  }

  /** Fields of a request; what is left empty is the server's choice. */
  get sampling() {
    const fields = NUMBERS.map((name) => [name, this.form.elements[name].value]);
    return Object.fromEntries(fields.filter(([, text]) => text).map(([name, text]) => [name, Number(text)]));
  }

  #save() {
    const values = ["system", ...NUMBERS].map((name) => [name, this.form.elements[name].value]);
    save("settings", Object.fromEntries(values));
    save("key", this.key, () => sessionStorage);
  }
}

/** Fill the choice of models, with the one used last chosen if it is still there. */
export function offerModels(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name)));
  const last = load("model", "");
  if (names.includes(last)) select.value = last;
  select.disabled = names.length === 0;
}

export function rememberModel(name) {
  save("model", name);
}

/** Light or dark, whichever it is not now. */
export function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  save("theme", theme);
}

export function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
