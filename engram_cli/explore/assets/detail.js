// The details of one n-gram, and of one row.

import { count, decimal, el, mostNorm, ngram, occurs, percent, plural, share, square, svg, times } from "./dom.js";

const order = (number) => `${number}-gram`;

// A button that shows an n-gram.
export function toNgram(text, tokens, go) {
  return el("button", { type: "button", class: "follow", onclick: () => go({ at: `n:${tokens.join(",")}` }) }, ngram(text));
}

function toRow(found, head, go) {
  const at = `r:${found.order}.${head.head}.${head.row}`;
  return el("button", { type: "button", class: "follow", "aria-label": `row ${head.row} of head ${head.head}`,
    onclick: () => go({ at }) }, `row ${count(head.row)}`);
}

function facts(pairs) {
  return el("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== "")
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function cleanHeads(found) {
  if (found.clean === null) return "";
  const bound = found.sampled === null && !found.absent && found.at_most > 0;
  return `${bound ? "at most " : ""}${found.clean} of ${found.heads.length} heads clean`;
}

export function ngramDetail({ ngram: found, shorter }, about, go) {
  return [
    el("h2", {}, `${order(found.order)} `, ngram(found.ngram)),
    facts([
      ["In the corpus", occurs(found)],
      ["Clean heads", cleanHeads(found).replace(" heads clean", "")],
      ["Compressed ids", found.tokens.join(", ")],
    ]),
    el("h3", {}, `Its row in each of ${plural(found.heads.length, "head")}`),
    el("ul", { class: "heads" }, found.heads.map((head) => headItem(found, head, mostNorm([found]), go))),
    shorter.length ? el("h3", {}, "It ends with") : null,
    ...shorter.map((own) => el("p", {}, toNgram(own.ngram, own.tokens, go), ` ${occurs(own)}`)),
    about.stats === null ? null : el("p", {}, el("button", { type: "button", onclick: () => go({ view: "search", q: words(found.ngram), order: "", at: "" }) },
      "Search n-grams with these words")),
  ];
}

// The words of an n-gram as somebody would type them.
function words(text) {
  return text.split(" ").map((part) => part.replaceAll("␣", " ")).join("").trim();
}

function headItem(found, head, most, go) {
  const own = share(found, head);
  const line = [square(found, head, most), `head ${head.head}`, toRow(found, head, go)];
  if (head.hits !== null) line.push(el("span", {}, plural(head.hits, "hit")));
  if (own !== null && !own.unused) line.push(el("span", {}, `${own.bound ? "≤ " : ""}${percent(own.own)} own`));
  if (head.norm !== null) line.push(el("span", {}, `norm ${decimal(head.norm)}`));
  const rest = head.others_known - head.others.length;
  const others = head.others.map((each, at) => [toNgram(each.text, each.tokens, go),
    ` ${times(each.count, each.exact)}${at < head.others.length - 1 ? ", " : " "}`]);
  return el("li", {}, el("div", { class: "line" }, line),
    others.length ? el("div", { class: "also" }, "also on this row: ", others.flat(),
      rest > 0 ? `and ${count(rest)} more` : null) : null,
    head.shared_with.length ? el("div", { class: "also" }, `the other text reads this row at ${
      plural(head.shared_with.length, "token")}`) : null);
}

export function rowDetail(found, go) {
  const named = found.ngrams.reduce((sum, each) => sum + (each.exact ? each.count : 0), 0);
  const rest = found.known === null || found.hits === null ? 0 : found.hits - named;
  return [
    el("h2", {}, `Row ${count(found.row)}`),
    facts([
      ["Of", `order ${found.order}, head ${found.head}, which has ${count(found.rows)} rows`],
      ["In the layer's table", `row ${count(found.table_row)} of layer ${found.layer}`],
      ["Hits in the corpus", found.hits === null ? null : count(found.hits)],
      ["Norm", found.values === null ? null : decimal(found.norm)],
    ]),
    found.values === null ? null : el("h3", {}, `Its ${plural(found.values.length, "value")}`),
    found.values === null ? null : strip(found.values),
    found.known === null ? null : el("h3", {}, found.known === 0
      ? "No n-gram of the sample is on it"
      : `${plural(found.known, "n-gram")} of the sample ${found.known === 1 ? "is" : "are"} on it`),
    found.ngrams.length ? members(found, go) : null,
    found.ngrams.length < (found.known ?? 0) ? el("p", { class: "soft" }, `The first ${found.ngrams.length} are shown.`) : null,
    rest > 0 && found.ngrams.length === found.known && found.ngrams.every((each) => each.exact)
      ? el("p", { class: "soft" }, `${plural(rest, "hit")} come from n-grams outside the sample.`) : null,
  ];
}

function members(found, go) {
  const rows = found.ngrams.map((each) => el("tr", {},
    el("td", {}, toNgram(each.text, each.tokens, go)),
    el("td", { class: "num" }, times(each.count, each.exact)),
    el("td", { class: "num" }, found.hits ? `${each.exact ? "" : "≤ "}${percent(Math.min(1, each.count / found.hits))}` : "")));
  return el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, order(found.order)),
    el("th", { scope: "col", class: "num" }, "count"), el("th", { scope: "col", class: "num" }, "of its hits"))),
  el("tbody", {}, rows));
}

// The values of a row as bars above and below zero.
function strip(values) {
  const finite = values.filter((value) => value !== null);
  if (!finite.length) return el("p", {}, "None of them is finite.");
  const most = Math.max(...finite.map(Math.abs), 1e-30);
  const bars = values.map((value, at) => {
    const height = Math.abs(value ?? 0) / most / 2;
    return svg("rect", { x: at + 0.1, width: 0.8, y: value > 0 ? 0.5 - height : 0.5, height });
  });
  const chart = svg("svg", { class: "strip", viewBox: `0 -0.05 ${values.length} 1.1`, preserveAspectRatio: "none",
    role: "img", "aria-label": `values from ${decimal(Math.min(...finite))} to ${decimal(Math.max(...finite))}` },
  ...bars, svg("line", { x1: 0, x2: values.length, y1: 0.5, y2: 0.5 }));
  return el("div", {}, chart, el("p", { class: "soft" },
    `${decimal(Math.min(...finite))} to ${decimal(Math.max(...finite))}`));
}
