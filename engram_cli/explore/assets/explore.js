// The page: its state is its address, each view is made of one answer of the API.

import { ngramDetail, rowDetail, toNgram } from "./detail.js";
import { count, el, plural, short, times } from "./dom.js";
import { addGates, cleanShares, gatesSummary, measures, shade, textsView } from "./texts.js";

const $ = (id) => document.getElementById(id);
const KEYS = ["view", "text", "against", "layer", "q", "order", "limit", "at"];
const MORE = 200; // matches that the API gives at most
let about = null;
let shown = { main: "", detail: "" }; // what is on the page, as API addresses
let turn = 0;

function stateOf() {
  const given = new URLSearchParams(location.search);
  const state = Object.fromEntries(KEYS.map((key) => [key, given.get(key) ?? ""]));
  state.view = state.view === "search" ? "search" : "text";
  state.compare = given.has("against");
  return state;
}

// Changes the address, and shows what it says.
function go(change) {
  const given = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(change)) {
    if (value === "" || value === null) given.delete(key);
    else given.set(key, value);
  }
  if (change.against === "") given.set("against", "");
  history.pushState(null, "", `?${given}`);
  show(change.at !== undefined && change.at !== "");
}

function address(name, given) {
  const some = Object.entries(given).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return `api/${name}${some.length ? `?${new URLSearchParams(some)}` : ""}`;
}

async function ask(url) {
  let answer;
  try {
    answer = await fetch(url, { headers: { accept: "application/json" } });
  } catch {
    throw new Error("engram explore does not answer: is it still running?");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found !== null) return found;
  throw new Error(found?.error ? `${found.error.message} - ${found.error.hint}` : `error ${answer.status}`);
}

function fail(place, error) {
  place.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
}

function mainAddress(state) {
  const layer = state.layer;
  if (state.view === "search") return about.stats === null ? "" : address("search", { q: state.q, order: state.order, limit: state.limit, layer });
  if (state.text === "") return "";
  return address("lookup", { text: state.text, against: state.compare ? state.against : "", layer });
}

function detailAddress(state) {
  const [kind, rest] = [state.at.slice(0, 2), state.at.slice(2)];
  if (kind === "n:") return address("ngram", { tokens: rest, layer: state.layer });
  if (kind !== "r:") return "";
  const [order, head, row] = rest.split(".");
  return address("row", { order, head, row, layer: state.layer });
}

async function show(focusDetail = false) {
  const state = stateOf();
  fillForms(state);
  const main = mainAddress(state);
  const detail = detailAddress(state);
  const mine = ++turn;
  $("json").href = detail || main || "api/about";
  document.querySelectorAll("[data-at]").forEach((each) =>
    each.setAttribute("aria-pressed", String(each.dataset.at === state.at)));
  if (main !== shown.main || main === "") await showMain(state, main, mine);
  if (mine !== turn) return;
  if (detail !== shown.detail) await showDetail(detail, mine, focusDetail);
}

async function showMain(state, url, mine) {
  shown.main = url;
  if (url === "") {
    $("status").textContent = "";
    $("view").replaceChildren(...await opening(state));
    return;
  }
  $("status").textContent = "Looking up ...";
  try {
    const found = await ask(url);
    if (mine !== turn) return;
    $("status").textContent = "";
    if (state.view === "search") $("view").replaceChildren(...searchView(found, state));
    else showTexts(found, state);
  } catch (error) {
    if (mine !== turn) return;
    $("status").textContent = "";
    shown.main = "";
    fail($("view"), error);
  }
}

function showTexts(found, state) {
  const sides = [["a", found.tokens, state.text], ["b", found.against, state.against]].filter((side) => side[1].length);
  $("view").replaceChildren(...textsView(found, about, state, go).filter((each) => each !== null));
  for (const [side, tokens, text] of sides) {
    if (about.hits) shade(side, cleanShares(tokens));
    if (about.model !== null) showGates(side, tokens, text, shown.main);
  }
}

async function showGates(side, tokens, text, main) {
  const place = el("div", { class: "soft", role: "status" }, "Running the model ...");
  $(`reading-${side}`).before(place);
  try {
    const gates = await ask(address("gates", { text }));
    if (shown.main !== main) return;
    addGates(gates, side);
    const found = measures(gates, tokens);
    const choice = el("select", { onchange: () => shade(side, found[choice.selectedIndex][1]) },
      found.map(([name]) => el("option", {}, name)));
    shade(side, found[0][1]);
    place.replaceChildren(el("p", {}, gatesSummary(gates)), el("label", {}, "Shade the text by ", choice));
  } catch (error) {
    fail(place, error);
  }
}

async function showDetail(url, mine, focus) {
  shown.detail = url;
  document.querySelector(".page").classList.toggle("wide", url !== "");
  if (url === "") {
    $("detail").replaceChildren();
    return;
  }
  try {
    const found = await ask(url);
    if (mine !== turn) return;
    const parts = found.ngram ? ngramDetail(found, about, go) : rowDetail(found, go);
    const close = el("button", { type: "button", onclick: () => go({ at: "" }) }, "Close");
    $("detail").replaceChildren(...parts.filter((each) => each !== null), el("p", {}, close));
  } catch (error) {
    if (mine !== turn) return;
    shown.detail = "";
    fail($("detail"), error);
  }
  $("detail").scrollTop = 0;
  if (focus) {
    $("detail").focus({ preventScroll: true });
    if (innerWidth < 1000) $("detail").scrollIntoView({ block: "start" });
  }
}

// What to see before anything is asked: the most frequent n-grams, as examples.
async function opening(state) {
  const what = el("p", {}, "Each token ends one n-gram of each order. An n-gram is hashed to one row in each head, and the memory ",
    "reads those rows. Type a text to see which rows, how often the corpus used them, and which n-grams share them.");
  if (state.view === "search") {
    return [el("p", {}, "There are no statistics to search n-grams in. Count a corpus with engram hash-stats, and start engram explore with --stats.")];
  }
  if (about.stats === null) return [what];
  try {
    const found = await ask(address("search", { limit: 12, order: about.orders[about.orders.length - 1], layer: state.layer }));
    return [what, el("h2", {}, "Frequent n-grams of the corpus"), searchTable(found, state)];
  } catch (error) {
    return [what, el("p", { class: "error" }, error.message)];
  }
}

function searchView(found, state) {
  const of = state.q.trim() ? `with “${state.q.trim()}”` : "of the statistics, the most frequent first";
  const first = found.matches.length < found.total ? ` The first ${found.matches.length} are shown.` : "";
  const parts = [el("p", {}, `${plural(found.total, "known n-gram")} ${of}.${first}`)];
  if (found.matches.length) parts.push(searchTable(found, state));
  if (found.matches.length < Math.min(found.total, MORE)) {
    parts.push(el("p", {}, el("button", { type: "button", onclick: () => go({ limit: MORE }) },
      `Show ${Math.min(found.total, MORE)}`)));
  }
  else parts.push(el("p", { class: "soft" }, found.exact ? "The corpus has none." : "The sample holds none; the corpus may. Look the text up to see its rows."));
  return parts;
}

function searchTable(found, state) {
  const most = Math.max(...found.matches.map((each) => each.count), 1);
  const rows = found.matches.map((each) => el("tr", {},
    el("td", {}, toNgram(each.text, each.tokens, go)),
    el("td", { class: "num" }, `${each.order}`),
    el("td", { class: "num" }, times(each.count, each.exact)),
    el("td", { "aria-hidden": "true" }, el("span", { class: "bar", own: each.count / most }))));
  return el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "n-gram"),
    el("th", { scope: "col", class: "num" }, "order"), el("th", { scope: "col", class: "num" }, "in the corpus"), el("td", {}))),
  el("tbody", {}, rows));
}

function fillForms(state) {
  const search = state.view === "search";
  $("to-text").setAttribute("aria-pressed", String(!search));
  $("to-search").setAttribute("aria-pressed", String(search));
  $("text-form").hidden = search;
  $("search-form").hidden = !search;
  $("against-box").hidden = !state.compare;
  $("compare").setAttribute("aria-pressed", String(state.compare));
  document.querySelector(".texts").classList.toggle("two", state.compare);
  for (const [id, value] of [["text", state.text], ["against", state.against], ["query", state.q]]) {
    if (document.activeElement !== $(id)) $(id).value = value;
  }
  $("order").value = state.order;
  $("layer").value = state.layer || String(about.layers[0]);
}

function describe() {
  const name = about.path.split("/").pop();
  const rows = about.rows.map(short).join(" + ");
  const parts = [`${name}: ${about.kind}, ${rows} rows`];
  if (about.dim !== null) parts[0] += ` of ${about.dim} × ${about.dtype}`;
  parts.push(`orders ${about.orders.join(", ")} with ${plural(about.heads, "head")}`);
  if (about.corpus_tokens !== null) parts.push(`statistics of ${short(about.corpus_tokens)} tokens`);
  else parts.push(about.hits ? "hits of a corpus, without its n-grams" : "no statistics");
  if (about.model !== null) parts.push(`model ${about.model.split("/").filter(Boolean).pop()}`);
  $("about").textContent = parts.join(" · ");
  document.title = `${name} - engram explore`;
  $("text").maxLength = $("against").maxLength = $("query").maxLength = about.characters;
  $("order").replaceChildren(el("option", { value: "" }, "all"),
    ...about.orders.map((order) => el("option", { value: order }, order)));
  $("layer").replaceChildren(...about.layers.map((layer) => el("option", { value: layer }, layer)));
  $("layer-label").hidden = about.layers.length < 2;
}

function lookUp() {
  const change = { view: "", text: $("text").value };
  if (stateOf().compare) change.against = $("against").value;
  shown.main = "";
  go(change);
}

function wire() {
  $("to-text").onclick = () => go({ view: "" });
  $("to-search").onclick = () => go({ view: "search" });
  $("layer").onchange = () => go({ layer: $("layer").value, at: "" });
  $("text-form").onsubmit = (event) => { event.preventDefault(); lookUp(); };
  $("search-form").onsubmit = (event) => {
    event.preventDefault();
    shown.main = "";
    go({ view: "search", q: $("query").value, order: $("order").value, limit: "" });
  };
  $("order").onchange = () => go({ view: "search", q: $("query").value, order: $("order").value });
  $("compare").onclick = () => {
    const given = { text: $("text").value, against: stateOf().compare ? null : "" };
    go(given);
    if (given.against === "") $("against").focus();
  };
  for (const id of ["text", "against"]) {
    $(id).onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); lookUp(); }
    };
  }
  $("link").onclick = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copied").textContent = "Copied.";
    } catch {
      $("copied").textContent = "Copy it from the address bar.";
    }
  };
  addEventListener("popstate", () => show());
}

async function start() {
  try {
    about = await ask("api/about");
  } catch (error) {
    $("about").textContent = "";
    fail($("view"), error);
    return;
  }
  describe();
  wire();
  await show();
  document.documentElement.dataset.ready = "yes";
}

start();
