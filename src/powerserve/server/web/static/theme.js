// Runs before anything is drawn: a chosen theme must not flash in the other colours first.
"use strict";

try {
  const theme = JSON.parse(localStorage.getItem("powerserve.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Nothing is stored, or storage is forbidden: the system's colours will do.
}
