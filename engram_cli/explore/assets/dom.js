// Builds elements. Texts become text nodes: nothing that a corpus or a user wrote is read as HTML.

export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "own") made.style.setProperty("--own", `${(100 * value).toFixed(1)}%`);
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, given, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A token as the API names it: spaces are "␣" and drawn faint.
export function token(text, name = "span") {
  const parts = text.split("␣").flatMap((part, at) =>
    at === 0 ? [part] : [el("span", { class: "space" }, "␣"), part]);
  return el(name, { class: "tok" }, parts.filter((part) => part !== ""));
}

// An n-gram's tokens, which the API separates by spaces.
export function ngram(text) {
  return el("span", {}, text.split(" ").map((part) => token(part)));
}

export const count = (number) => number.toLocaleString("en");

export function short(number) {
  return Math.abs(number) < 1e5 ? count(number)
    : Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}

export function plural(number, name) {
  return `${count(number)} ${name}${number === 1 ? "" : "s"}`;
}

export function percent(share) {
  if (share > 0.99 && share < 1) return "99.9 %"; // not all of it
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

export function decimal(number) {
  return number === null ? "not finite" : String(Number(number.toPrecision(3)));
}

export function times(number, exact) {
  return `${exact ? "" : "≤ "}${count(number)} ×`;
}

// How often the corpus has an n-gram, in words.
export function occurs(found) {
  if (found.absent || found.at_most === 0) return "not in the corpus";
  if (found.sampled !== null) return times(found.sampled, true);
  return found.at_most === null ? "" : times(found.at_most, false);
}

// The share of a row's hits that are this n-gram's own, and whether it is only an upper bound.
export function share(found, head) {
  if (head.hits === null) return null;
  if (head.hits === 0) return { own: 0, bound: false, unused: true };
  if (found.absent) return { own: 0, bound: false };
  const own = found.sampled ?? found.at_most;
  if (own === null) return null;
  return { own: Math.min(1, own / head.hits), bound: found.sampled === null };
}

// One head's row as a square: the n-gram's share of its hits, or without hits its norm.
export function square(found, head, most) {
  const own = share(found, head);
  const both = head.shared_with.length ? " both" : "";
  if (own === null) {
    return el("span", { class: `sq norm${both}`, own: head.norm === null ? 0 : head.norm / most });
  }
  const kind = own.unused ? " unused" : own.bound ? " bound" : "";
  const filled = own.own < 1 ? 0.8 * own.own : 1; // a full square is a clean head
  return el("span", { class: `sq${kind}${both}`, own: filled });
}

// The greatest norm of some n-grams' rows, by which squares without hits are filled.
export function mostNorm(grams) {
  const norms = grams.flatMap((found) => found.heads.map((head) => head.norm ?? 0));
  return norms.reduce((most, norm) => Math.max(most, norm), 1e-30);
}
