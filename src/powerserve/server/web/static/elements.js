// Making elements. Text goes in as text: nothing here, nor anywhere else, parses markup.

/** An element with properties and children; strings among them become text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A small button that says what it does. */
export function textButton(label, onclick) {
  return element("button", { type: "button", className: "text", textContent: label, onclick });
}

/** A button that copies what `text()` returns, and says whether that worked. */
export function copyButton(text) {
  const button = textButton("Copy", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedFromField(text);
  }
}

/** The old way, for pages that come over plain HTTP from another machine. */
function copiedFromField(text) {
  const field = element("textarea", { value: text, className: "unseen" });
  document.body.append(field);
  field.select();
  const worked = document.execCommand("copy");
  field.remove();
  return worked;
}
