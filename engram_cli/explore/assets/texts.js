// A text, or two side by side: its tokens, their n-grams, and with a model the gates.

import { cleanHeads } from "./detail.js";
import { count, decimal, el, mostNorm, ngram, occurs, percent, plural, square, token } from "./dom.js";

const SIDES = [["tokens", "tokens_total", "a"], ["against", "against_total", "b"]];

export function textsView(found, about, state, go) {
  const two = found.against.length > 0;
  const sides = SIDES.slice(0, two ? 2 : 1);
  return [
    about.hits ? legend(two, about.stats !== null) : el("p", { class: "soft" },
      about.dim === null ? "" : "A square is a row, one in each head, filled by its norm. ",
      "Nothing counted the rows: with --stats you see hits, and which n-grams share a row."),
    two ? sharedTable(found) : null,
    el("div", { class: two ? "columns two" : "columns" }, sides.map(([key, total, side]) =>
      oneText(found[key], found[total], side, two, about, state, go))),
  ];
}

function legend(two, sampled) {
  const item = (own, kind, text) => el("li", {}, el("span", { class: `sq ${kind}`, own }), text);
  return el("ul", { class: "legend", "aria-label": "What a square means" },
    el("li", {}, "A square is a row, one in each head:"),
    item(1, "", "the n-gram has it alone"),
    item(0.4, "", "it has this share of the row's hits"),
    item(0.4, "bound", "at most this share"),
    item(0, "unused", "the corpus never used the row"),
    two ? item(0.6, "both", "both texts read it") : null,
    el("li", {}, sampled ? "≤ marks an upper bound: the sample does not hold the n-gram." : "≤ marks an upper bound."));
}

function sharedTable(found) {
  const number = (value) => el("td", { class: "num" }, count(value));
  const names = ["Order", "Look-ups", "Same n-gram", "Another n-gram", "Own row"];
  return el("div", {}, el("h2", {}, "Rows of the first text that the second reads too"),
    el("p", { class: "soft" }, "By the same n-gram, or by another one that falls on the same row by chance."),
    el("table", {}, el("thead", {}, el("tr", {}, names.map((name, at) =>
      el("th", { scope: "col", class: at ? "num" : null }, name)))),
    el("tbody", {}, found.shared.map((own) => el("tr", {}, el("th", { scope: "row" }, `${own.order}`),
      number(own.lookups), number(own.same), number(own.chance), number(own.lookups - own.same - own.chance))))));
}

function oneText(tokens, total, side, two, about, state, go) {
  const cut = tokens.length < total ? `, the first ${count(tokens.length)} of ${count(total)}` : "";
  const heading = el("div", { class: "heading", "aria-hidden": "true" }, el("span", {}, "token"),
    about.model === null ? null : el("span", {}, "gates and loss"),
    tokens[0].orders.map((own) => el("span", {}, `${own.order}-gram that ends here`)));
  const most = mostNorm(tokens.flatMap((own) => own.orders));
  const list = el("ol", { class: "tokens", id: `tokens-${side}` },
    tokens.map((own) => oneToken(own, side, most, about, state, go)));
  const box = el("div", { class: about.model === null ? "tokens" : "tokens modelled" }, heading, list);
  box.style.setProperty("--orders", about.orders.length);
  return el("section", { "aria-label": two ? (side === "a" ? "First text" : "Second text") : "Text" },
    el("h2", {}, `${two ? (side === "a" ? "First text" : "Second text") : "The text"}: ${plural(total, "token")}${cut}`),
    el("div", { id: `reading-${side}`, class: "reading" }, tokens.map((own) => chip(own, side))),
    box);
}

// A token of the text as it reads; it leads to its line below.
function chip(own, side) {
  const button = el("button", { type: "button", "data-position": own.position, onclick: () => {
    const line = document.getElementById(`${side}-${own.position}`);
    document.querySelectorAll(".token.on").forEach((each) => each.classList.remove("on"));
    line.classList.add("on");
    line.scrollIntoView({ block: "nearest" });
    line.querySelector("button").focus({ preventScroll: true });
  } }, own.text.replaceAll("␣", " ") || "·");
  return button;
}

function oneToken(own, side, most, about, state, go) {
  return el("li", { class: "token", id: `${side}-${own.position}` },
    el("div", { class: "who" }, token(own.text), el("br"),
      el("small", { title: "token id → compressed id" }, own.token_id === own.compressed_id
        ? `${own.token_id}` : `${own.token_id} → ${own.compressed_id}`)),
    about.model === null ? null : el("div", { class: "traced" }),
    own.orders.map((found) => gram(found, most, state, go)));
}

function gram(found, most, state, go) {
  const at = `n:${found.tokens.join(",")}`;
  return el("button", { type: "button", class: "gram", "data-at": at, "aria-pressed": String(state.at === at),
    onclick: () => go({ at }) },
  el("span", {}, el("span", { class: "hidden" }, `${found.order}-gram `), ngram(found.ngram)),
  el("span", { class: "line" }, occurs(found) ? el("span", {}, occurs(found)) : null,
    el("span", { class: "squares", "aria-hidden": "true" }, found.heads.map((head) => square(found, head, most))),
    el("span", { class: found.clean === null ? "hidden" : null }, cleanHeads(found))));
}

// Shades a text by a measure of its tokens in 0..1.
export function shade(side, values) {
  document.querySelectorAll(`#reading-${side} button`).forEach((button, at) => {
    button.style.setProperty("--depth", String(0.06 + 0.5 * (values[at] ?? 0)));
  });
}

// The share of clean heads of the longest n-gram, by which a text is shaded without a model.
export function cleanShares(tokens) {
  return tokens.map((own) => {
    const found = own.orders[own.orders.length - 1];
    return found.clean === null ? 0 : found.clean / found.heads.length;
  });
}

// What can shade a text once its gates are known: [name, values in 0..1, sentence].
export function measures(gates, tokens) {
  const found = [];
  for (const layer of gates.layers) {
    const means = layer.gates.map((own) => own.reduce((sum, gate) => sum + gate, 0) / own.length);
    const [low, high] = [Math.min(...means), Math.max(...means)];
    found.push([`gate of decoder layer ${layer.decoder_layer}, ${decimal(low)} to ${decimal(high)}`,
      means.map((mean) => (mean - low) / (high - low || 1))]);
  }
  const most = Math.max(...change(gates).map((value) => Math.abs(value ?? 0)), 1e-9);
  found.push(["how much the memory lowers the loss", change(gates).map((value) => Math.max(0, -(value ?? 0)) / most)]);
  if (tokens[0].orders[0].clean !== null) found.push(["clean heads of the longest n-gram", cleanShares(tokens)]);
  return found;
}

function change(gates) {
  return gates.with_memory.map((loss, at) => {
    const without = gates.without_memory[at]; // null for the first token, and where it is not finite
    return loss === null || without === null ? null : loss - without;
  });
}

// Writes the gates next to the tokens.
export function addGates(gates, side) {
  const changes = change(gates);
  gates.ids.forEach((_, at) => {
    const place = document.querySelector(`#${side}-${at} .traced`);
    if (place === null) return;
    const lines = gates.layers.map((layer) => {
      const gate = layer.gates[at].reduce((sum, own) => sum + own, 0) / layer.gates[at].length;
      return el("div", { class: "model", title: `decoder layer ${layer.decoder_layer}: how far its gate opens, and the length of what is added, as a share of the hidden state` },
        el("span", { class: "bar", own: gate }), `layer ${layer.decoder_layer}: gate ${gate.toFixed(2)}, adds ${percent(layer.strengths[at])}`);
    });
    if (changes[at] !== null) {
      const better = changes[at] <= 0;
      lines.push(el("div", { class: "model", title: "loss of predicting this token, in nats, without the memory and with it" },
        `loss ${gates.without_memory[at].toFixed(2)} → ${gates.with_memory[at].toFixed(2)} `,
        el("span", { class: better ? "better" : "worse" }, `(${better ? "−" : "+"}${Math.abs(changes[at]).toFixed(2)})`)));
    }
    place.replaceChildren(...lines);
  });
}

export function gatesSummary(gates) {
  const known = change(gates).filter((value) => value !== null);
  if (gates.untrained.length === gates.layers.length) return "The memory is untrained: it adds nothing to any token.";
  if (known.length < gates.ids.length - 1 || !known.length) return "";
  const mean = (losses) => losses.slice(1).reduce((sum, loss) => sum + loss, 0) / (losses.length - 1);
  return `Mean loss of this text: ${mean(gates.without_memory).toFixed(3)} nats without the memory, ${
    mean(gates.with_memory).toFixed(3)} with it.`;
}
