"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");

  // A browser shows <title> of a drawing over its values; screen readers get it as a label instead.
  for (const chart of document.querySelectorAll("svg.chart")) {
    const title = chart.querySelector("title");
    if (title) {
      chart.setAttribute("aria-label", title.textContent);
      chart.removeAttribute("aria-labelledby");
      title.remove();
    }
  }

  // Values of the place under the pointer. Texts are untrusted: textContent only.
  let shown = null;
  const hide = () => {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };
  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const fill = (text) => {
    const [heading, ...lines] = text.split("\n");
    tip.replaceChildren(element("b", "", heading));
    for (const line of lines) {
      const [name, value, color] = line.split("\t");
      const entry = element("div", "entry");
      entry.append(element("i", color === "" ? "" : "c" + (Number(color) % 8)));
      entry.append(element("span", "", name), element("span", "", value));
      tip.append(entry);
    }
  };
  const show = (strip, x, y) => {
    if (strip !== shown) {
      hide();
      shown = strip;
      strip.classList.add("on");
      fill(strip.dataset.tip);
      tip.hidden = false;
    }
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth - 8 ? x - 16 - box.width : x + 16;
    const top = Math.min(Math.max(y - box.height / 2, 8), innerHeight - box.height - 8);
    tip.style.left = Math.max(left, 8) + "px";
    tip.style.top = top + "px";
  };
  const under = (event) => {
    const strip = event.target instanceof Element && event.target.closest(".strip");
    if (strip) show(strip, event.clientX, event.clientY);
    else hide();
  };
  document.addEventListener("pointermove", under);
  document.addEventListener("pointerdown", under);
  document.addEventListener("scroll", hide, { passive: true });

  // The same with the arrow keys, for the drawing that has the focus.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const chart = document.activeElement;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !(chart instanceof Element) || !chart.matches("svg.chart")) return;
    const strips = [...chart.querySelectorAll(".strip")];
    if (!strips.length) return;
    event.preventDefault();
    const last = strips.indexOf(shown);
    const next = last < 0 ? (step > 0 ? 0 : strips.length - 1) : last + step;
    const strip = strips[Math.min(Math.max(next, 0), strips.length - 1)];
    const box = strip.getBoundingClientRect();
    show(strip, box.left + box.width / 2, box.top + box.height / 3);
  });
  document.addEventListener("focusout", hide);

  // Light, dark, or as the system says.
  const themes = ["auto", "light", "dark"];
  const button = document.getElementById("theme");
  const apply = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = "Theme: " + theme;
  };
  let theme = "auto";
  try {
    const kept = localStorage.getItem("engram-theme");
    if (themes.includes(kept)) theme = kept;
  } catch { /* storage may be off for files */ }
  apply(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    apply(theme);
    try {
      localStorage.setItem("engram-theme", theme);
    } catch { /* then it is not kept */ }
  });

  // The statistics behind the page, as a file.
  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const text = document.getElementById("engram-data").textContent;
    const data = JSON.stringify(JSON.parse(text), null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
    link.download = "stats.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // Where in the page the reader is.
  const links = new Map();
  for (const link of document.querySelectorAll("nav a")) links.set(link.hash.slice(1), link);
  const seen = new IntersectionObserver((changes) => {
    for (const change of changes) {
      if (!change.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(change.target.id)?.setAttribute("aria-current", "location");
    }
  }, { rootMargin: "-10% 0px -70% 0px" });
  for (const section of document.querySelectorAll("main > section")) seen.observe(section);

  root.dataset.ready = "yes";
})();
