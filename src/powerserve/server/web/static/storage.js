// What the browser keeps. It may forbid that, be full, or hold what an older page left behind.

const PREFIX = "powerserve.";

/** The stored value, or `fallback`. */
export function load(name, fallback, area = () => localStorage) {
  try {
    return JSON.parse(area().getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Store a value; false if the browser will not. */
export function save(name, value, area = () => localStorage) {
  try {
    area().setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
