"use strict";
(() => {
  const root = document.documentElement;

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
    link.download = "engram-data.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // The value of a token in a shaded text: under the pointer, a finger, or the arrow keys.
  for (const text of document.querySelectorAll(".shaded")) {
    const tokens = [...text.querySelectorAll(".tok")];
    const readout = text.parentElement.querySelector(".readout");
    let at = -1;
    const pick = (next) => {
      if (next < 0 || next >= tokens.length || next === at) return;
      tokens[at]?.classList.remove("on");
      at = next;
      tokens[at].classList.add("on");
      const word = document.createElement("code");
      word.textContent = tokens[at].textContent;
      readout.replaceChildren(`Token ${at + 1} of ${tokens.length}: `, word, ` ${tokens[at].dataset.tip}`);
    };
    const under = (event) => pick(tokens.indexOf(event.target.closest(".tok")));
    text.addEventListener("pointerover", under);
    text.addEventListener("pointerdown", under);
    text.addEventListener("keydown", (event) => {
      const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      pick(next);
    });
    readout.hidden = false;
  }

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
