"use strict";
// Draws the charts of the page with Observable Plot, from the data in "engram-charts".
// Colours are variables of page.css, so light, dark and print need no second drawing.
(() => {
  const charts = JSON.parse(document.getElementById("engram-charts").textContent);
  const tip = document.getElementById("tip");
  const SIGMAS = 2; // of error bars
  const GAP = 0.6; // between groups of bars, in slots
  const MARGINS = { marginTop: 28, marginRight: 16, marginBottom: 46, marginLeft: 56 };
  const color = (index) => `var(--c${index % 8})`;

  // Numbers as `numbers.py` and `Axis` write them.
  const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const brief = (value) => {
    for (const [step, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(value) >= step * 0.9995) {
        const scaled = value / step;
        const digits = Math.abs(scaled) >= 99.95 || scaled.toFixed(1).endsWith(".0") ? 0 : 1;
        return `${scaled.toFixed(digits)}\u202f${letter}`;
      }
    }
    return String(Number(value.toPrecision(3)));
  };
  const percent = (share) => {
    const size = Math.abs(share);
    if (size > 0 && size < 1e-5) return `${(100 * share).toExponential(1)}\u202f%`;
    const digits = size >= 0.0995 || size === 0 ? 1 : size >= 0.00995 ? 2 : 3;
    return `${(100 * share).toFixed(digits)}\u202f%`;
  };
  const signed = (value, digits) => (value >= 0 ? "+" : "\u2212") + Math.abs(value).toFixed(digits);
  const text = (axis, value) => {
    if (axis.unit === "percent") return percent(value);
    if (axis.unit === "points") return `${signed(100 * value, 2)} points`;
    if (axis.unit === "decimal") {
      return value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
    }
    return whole(value);
  };
  const tick = (axis) => (value) => {
    if (axis.unit === "percent") return `${Number((100 * value).toPrecision(3))}\u202f%`;
    if (axis.unit === "points") return value === 0 ? "0" : signed(100 * value, Math.abs(value) < 0.01 ? 1 : 0);
    return brief(value);
  };

  // The domain and the ticks of an axis; `room`: pixels that a tick needs.
  const fitted = (axis, values, pixels, room) => {
    if (axis.log) return logarithmic(axis, values.filter((value) => value > 0), pixels, room);
    const low = axis.low ?? Math.min(...values, 0);
    let high = axis.high ?? Math.max(...values, low);
    if (!(high > low)) high = low + (Math.abs(low) || 1);
    const scale = d3.scaleLinear([low, high], [0, pixels]);
    const count = Math.max(2, Math.floor(pixels / room));
    scale.nice(count);
    let [from, to] = scale.domain();
    if (axis.low !== null) from = low;
    if (axis.high !== null) to = high;
    if (axis.most !== null) to = Math.min(to, axis.most);
    return { type: "linear", domain: [from, to], ticks: d3.ticks(from, to, count) };
  };
  const logarithmic = (axis, values, pixels, room) => {
    let low = axis.low ?? (d3.min(values) ?? 1) / 1.15;
    let high = axis.high ?? (d3.max(values) ?? 10) * 1.15;
    let first = Math.ceil(Math.log10(low) - 1e-9);
    let last = Math.floor(Math.log10(high) + 1e-9);
    if (last <= first) {
      first = Math.floor(Math.log10(low));
      last = Math.ceil(Math.log10(high));
      if (last <= first) last = first + 1;
      [low, high] = [10 ** first, 10 ** last];
    }
    const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(2, pixels / room)));
    return { type: "log", domain: [low, high], ticks: d3.range(first, last + 1, every).map((power) => 10 ** power) };
  };
  // Places 0, 1, 2, ... with names.
  const labelled = (labels, pixels) => {
    const longest = Math.max(...labels.map((label) => label.length), 1);
    const every = Math.max(1, Math.ceil((7 * longest + 8) * labels.length / pixels));
    return { type: "linear", domain: [-0.5, labels.length - 0.5], ticks: d3.range(0, labels.length, every) };
  };

  const inside = (width) => width - MARGINS.marginLeft - MARGINS.marginRight;
  const tall = (height) => height - MARGINS.marginTop - MARGINS.marginBottom;
  const quiet = { tickSize: 0, label: null, color: "var(--soft)" };
  const grid = { stroke: "var(--grid)", strokeOpacity: 1 };
  const framed = (chart, width, x, y, axes, marks) => Plot.plot({
    ...MARGINS, width, height: chart.height, className: "chart",
    style: { fontSize: "12px", fontFamily: "inherit", overflow: "visible" },
    x: { type: x.type, domain: x.domain, axis: null }, y: { type: y.type, domain: y.domain, clamp: true },
    marks: [
      Plot.gridY(y.ticks, grid),
      Plot.axisY(y.ticks, { ...quiet, tickFormat: tick(chart.y) }),
      ...axes,
      Plot.text([chart.y.title], { frameAnchor: "top-left", dx: -MARGINS.marginLeft, dy: -20, fill: "var(--soft)" }),
      Plot.text([chart.x.title], { frameAnchor: "bottom-right", dy: 38, fill: "var(--soft)" }),
      ...marks,
    ],
  });

  const drawLines = (chart, width) => {
    const usable = ([x, y]) => (x > 0 || !chart.x.log) && (y > 0 || !chart.y.log);
    const shown = chart.curves.map((curve) => ({ ...curve, points: curve.points.filter(usable), band: curve.band.filter(usable) }));
    const xs = shown.flatMap((curve) => curve.points.map(([x]) => x));
    const ys = shown.flatMap((curve) => [...curve.points.map(([, y]) => y), ...curve.band.flatMap(([, low, high]) => [low, high])]);
    const labels = chart.x.labels;
    const x = labels ? labelled(labels, inside(width)) : fitted(chart.x, xs, inside(width), 64);
    const y = fitted(chart.y, ys, tall(chart.height), 44);
    const loose = shown.filter((curve) => !curve.line);
    const aside = (curve) => (curve.line ? 0 : (loose.indexOf(curve) - (loose.length - 1) / 2) * 0.2);
    const axes = [Plot.axisX(x.ticks, { ...quiet, tickFormat: labels ? (at) => labels[at] : tick(chart.x) })];
    if (!labels) axes.push(Plot.gridX(x.ticks, grid));
    const base = y.domain[0] < 0 && y.domain[1] > 0 ? 0 : y.domain[0];
    const marks = [Plot.ruleY([base], { stroke: "var(--faint)" })];
    const thick = (curve) => (curve.wide ? 6 : 2) + (curve.step ? 1.5 * (shown.length - 1 - shown.indexOf(curve)) : 0); // equal steps hide nothing
    for (const curve of shown) {
      const hue = color(curve.color);
      const place = ([at]) => at + aside(curve);
      const band = { x: place, y1: (d) => d[1], y2: (d) => d[2] };
      if (curve.band.length && curve.line) marks.push(Plot.areaY(curve.band, { ...band, fill: hue, fillOpacity: 0.18 }));
      else if (curve.band.length) marks.push(Plot.ruleX(curve.band, { ...band, stroke: hue, strokeOpacity: 0.6 }));
      const stepped = curve.step ? curve.points.flatMap(([at, v]) => [[at - 0.5, v], [at + 0.5, v]]) : curve.points;
      if (curve.line && stepped.length > 1) {
        marks.push(Plot.line(stepped, { x: place, y: (d) => d[1], stroke: hue, strokeWidth: thick(curve), strokeOpacity: curve.wide ? 0.45 : 1, strokeDasharray: curve.dashed ? "2 5" : undefined, strokeLinecap: "round" }));
      }
      if (curve.dots || curve.points.length === 1) {
        marks.push(Plot.dot(curve.points, { x: place, y: (d) => d[1], r: curve.line ? 3 : 4, fill: hue, stroke: "var(--paper)" }));
      }
    }
    for (const mark of chart.marks) {
      const at = { x: [mark.x], y: [mark.y] };
      const below = mark.place === "below";
      marks.push(Plot.dot([0], { ...at, r: 5, fill: "var(--mark)", stroke: "var(--paper)", strokeWidth: 1.5 }));
      marks.push(Plot.text([mark.label], {
        ...at, textAnchor: below ? "end" : "start", dx: below ? -9 : 9,
        dy: { below: 11, above: -9, higher: -26 }[mark.place],
        fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 4, fontWeight: 600,
      }));
    }
    const svg = framed(chart, width, x, y, axes, marks);
    const scale = svg.scale("x");
    const places = [...new Set(xs)].sort((a, b) => a - b);
    const stops = places.map((at) => ({
      pixel: scale.apply(at),
      title: chart.places ? chart.places[Math.round(at)] : `${text(chart.x, at)} ${chart.x.title}`,
      entries: shown.flatMap((curve) => {
        const point = curve.points.find(([px]) => px === at);
        return point ? [[curve.name, text(chart.y, point[1]), curve.color]] : [];
      }),
    }));
    return [svg, stops];
  };

  const drawBars = (chart, width) => {
    const slots = [];
    chart.groups.forEach((group, index) => group.slots.forEach((slot) => {
      slots.push({ ...slot, group, at: slots.length + index * GAP });
    }));
    const end = slots.length ? slots[slots.length - 1].at + 1 : 1;
    const bars = slots.flatMap((slot) => {
      const wide = 0.78 / Math.max(slot.bars.length, 1);
      return slot.bars.map((bar, i) => ({ ...bar, x1: slot.at + 0.11 + i * wide, x2: slot.at + 0.11 + (i + 0.92) * wide }));
    });
    const values = bars.flatMap((bar) => [bar.value + SIGMAS * bar.error, bar.ideal ?? 0]);
    const y = fitted(chart.y, values, tall(chart.height), 44);
    const x = { type: "linear", domain: [-0.2, end + 0.2] };
    const slotWide = inside(width) / (end + 0.4);
    const longest = Math.max(...slots.map((slot) => slot.label.length), 1);
    const every = Math.max(1, Math.ceil((7 * longest + 4) / slotWide));
    const named = chart.groups.flatMap((group) => slots.filter((slot) => slot.group === group).filter((_, i) => i % every === 0));
    const middle = (group) => d3.mean(slots.filter((slot) => slot.group === group), (slot) => slot.at + 0.5);
    const base = chart.y.log ? y.domain[0] : 0;
    const axes = [
      Plot.text(named, { x: (slot) => slot.at + 0.5, text: "label", frameAnchor: "bottom", dy: 16, fill: "var(--soft)" }),
      Plot.text(chart.groups, { x: middle, text: "label", frameAnchor: "bottom", dy: 34, fill: "var(--ink)" }),
    ];
    const marks = [
      Plot.rect(bars, { x1: "x1", x2: "x2", y1: base, y2: "value", fill: (bar) => color(bar.color), fillOpacity: (bar) => (bar.light ? 0.4 : 1) }),
      Plot.ruleX(bars.filter((bar) => bar.error), { x: (bar) => (bar.x1 + bar.x2) / 2, y1: (bar) => Math.max(bar.value - SIGMAS * bar.error, base), y2: (bar) => bar.value + SIGMAS * bar.error, stroke: "var(--ink)" }),
      Plot.ruleY(bars.filter((bar) => bar.ideal !== null), { x1: (bar) => bar.x1 - 0.05, x2: (bar) => bar.x2 + 0.05, y: "ideal", stroke: "var(--mark)", strokeWidth: 2 }),
      Plot.text(bars.filter((bar) => bar.flag), { x: (bar) => (bar.x1 + bar.x2) / 2, y: "value", dy: -9, text: (bar) => (bar.flag === "above" ? "▲" : "▼"), fill: "var(--ink)" }),
      Plot.ruleY([base], { stroke: "var(--faint)" }),
    ];
    const svg = framed(chart, width, x, y, axes, marks);
    const scale = svg.scale("x");
    const stops = slots.map((slot) => ({
      pixel: scale.apply(slot.at + 0.5),
      title: slot.title || slot.label,
      entries: slot.bars.flatMap((bar) => [
        [bar.label, text(chart.y, bar.value) + (bar.error ? ` ± ${text(chart.y, SIGMAS * bar.error)}` : ""), bar.color],
        ...(bar.ideal === null ? [] : [[`${bar.label}, ideal`, text(chart.y, bar.ideal), null]]),
        ...(bar.flag ? [["outside the interval", bar.flag, null]] : []),
      ]),
    }));
    return [svg, stops];
  };

  // What the pointer, a finger or the arrow keys are at. Texts are untrusted: textContent only.
  const element = (name, className, content) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  let active = null; // {svg, hair, stops, at}
  const hide = () => {
    active?.hair.setAttribute("opacity", 0);
    active = null;
    tip.hidden = true;
  };
  const show = (drawn, at, clientX, clientY, finger) => {
    if (active && active !== drawn) hide();
    active = drawn;
    const stop = drawn.stops[at];
    drawn.at = at;
    drawn.hair.setAttribute("x1", stop.pixel);
    drawn.hair.setAttribute("x2", stop.pixel);
    drawn.hair.setAttribute("opacity", 1);
    tip.replaceChildren(element("b", "", stop.title), ...stop.entries.map(([name, value, hue]) => {
      const entry = element("div", "entry");
      entry.append(element("i", hue === null ? "" : `c${hue % 8}`), element("span", "", name), element("span", "", value));
      return entry;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = clientX + 16 + box.width > innerWidth - 8 ? clientX - 16 - box.width : clientX + 16;
    const top = finger ? clientY - box.height - 32 : clientY - box.height / 2; // not under the finger
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${Math.min(Math.max(top, 8), innerHeight - box.height - 8)}px`;
  };
  const nearest = (drawn, clientX) => {
    const box = drawn.svg.getBoundingClientRect();
    const pixel = (clientX - box.left) * drawn.width / box.width;
    return d3.leastIndex(drawn.stops, (a, b) => Math.abs(a.pixel - pixel) - Math.abs(b.pixel - pixel));
  };
  const listen = (drawn) => {
    const { svg } = drawn;
    const follow = (event) => show(drawn, nearest(drawn, event.clientX), event.clientX, event.clientY, event.pointerType === "touch");
    if (!drawn.stops.length) return;
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const last = drawn.stops.length - 1;
      const now = active === drawn ? drawn.at : -1;
      const next = { ArrowRight: Math.min(now + 1, last), ArrowLeft: now < 0 ? last : Math.max(now - 1, 0), Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      show(drawn, next, box.left + drawn.stops[next].pixel * box.width / drawn.width, box.top + box.height / 3);
    });
  };
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("pointerdown", (event) => { if (active && !active.svg.contains(event.target)) hide(); });
  document.addEventListener("scroll", hide, { passive: true });

  const draw = (chart, holder, width) => {
    const [svg, stops] = chart.kind === "bars" ? drawBars(chart, width) : drawLines(chart, width);
    svg.querySelector("style")?.remove(); // page.css has these rules; the page's policy forbids others
    for (const group of svg.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${chart.title}. ${chart.description}`);
    svg.setAttribute("tabindex", "0");
    const hair = d3.select(svg).append("line")
      .attr("y1", MARGINS.marginTop).attr("y2", chart.height - MARGINS.marginBottom)
      .attr("stroke", "var(--faint)").attr("opacity", 0).attr("class", "hair").node();
    holder.replaceChildren(svg);
    listen({ svg, hair, stops, width, at: -1 });
  };

  // What a figure offers as a file.
  const save = (name, content, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const plain = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // no formula for a spreadsheet
    return /[",\n\r]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };
  const csv = (chart) => {
    const rows = chart.kind === "bars"
      ? [["group", "place", "bar", chart.y.title, "standard error", "ideal"],
        ...chart.groups.flatMap((group) => group.slots.flatMap((slot) => slot.bars.map((bar) =>
          [group.label, slot.title || slot.label, bar.label, bar.value, bar.error, bar.ideal])))]
      : [["curve", chart.x.title, chart.y.title, "low", "high"],
        ...chart.curves.flatMap((curve) => {
          const bands = new Map(curve.band.map(([at, low, high]) => [at, [low, high]]));
          return curve.points.map(([at, value]) =>
            [curve.name, chart.places ? chart.places[Math.round(at)] : at, value, ...(bands.get(at) ?? [null, null])]);
        })];
    return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
  };
  const picture = (svg) => {
    const style = getComputedStyle(svg);
    const copy = svg.cloneNode(true);
    copy.querySelector(".hair")?.remove();
    copy.removeAttribute("tabindex");
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("font-family", "system-ui, sans-serif");
    copy.setAttribute("font-size", "12");
    copy.removeAttribute("style");
    d3.select(copy).insert("rect", ":first-child").attr("width", "100%").attr("height", "100%").attr("fill", "var(--paper)");
    return new XMLSerializer().serializeToString(copy)
      .replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim())
      .replaceAll("currentColor", style.color);
  };

  const holders = new Map();
  const resized = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const width = Math.round(contentRect.width);
      const own = holders.get(target);
      if (width > 0 && own.width !== width) {
        own.width = width;
        if (active && target.contains(active.svg)) hide();
        draw(own.chart, target, width);
      }
    }
  });
  for (const chart of charts) {
    const figure = document.getElementById(chart.name);
    const holder = figure.querySelector(".plot");
    const width = Math.round(holder.clientWidth) || 600;
    holders.set(holder, { chart, width });
    draw(chart, holder, width);
    resized.observe(holder);
    for (const button of figure.querySelectorAll("button[data-save]")) {
      button.hidden = false;
      button.addEventListener("click", () => (button.dataset.save === "csv"
        ? save(`${chart.name}.csv`, csv(chart), "text/csv")
        : save(`${chart.name}.svg`, picture(holder.querySelector("svg")), "image/svg+xml")));
    }
  }
})();
