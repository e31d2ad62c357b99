// Puts figures and tables into the page, and switches between light and dark.

const THEMES = ["system", "light", "dark"];

function themeSwitch() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  let theme = "system";
  // A page from a file may have no storage.
  try { theme = localStorage.getItem("berth-theme") || theme; } catch { /* The choice is not kept. */ }
  const apply = () => {
    if (theme === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("berth-theme", theme); } catch { /* As above. */ }
    apply();
  });
  button.hidden = false;
  apply();
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const experiments = data.experiments.map((each) => new Experiment(each));
  const waiting = new Map();
  const place = (node, make) => waiting.set(node, make);
  for (const [number, experiment] of experiments.entries()) {
    const section = document.querySelector(`[data-experiment="${number}"]`);
    for (const figure of section.querySelectorAll("figure")) place(figure, () => new LiveChart(figure, data.kinds[figure.dataset.kind], experiment));
    const table = section.querySelector(".table");
    place(table, () => new Table(table, experiment.data, table.dataset.caption));
  }
  for (const table of document.querySelectorAll("[data-table]")) place(table, () => new Table(table, data.tables[table.dataset.table], table.dataset.caption));
  const make = (node) => {
    const waited = waiting.get(node);
    waiting.delete(node);
    if (waited) waited();
  };
  // Made when they come near: a page of ten thousand points opens at once.
  const watch = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    watch.unobserve(entry.target);
    make(entry.target);
  }), { rootMargin: "800px" });
  for (const node of waiting.keys()) watch.observe(node);
  window.addEventListener("beforeprint", () => {
    [...waiting.keys()].forEach(make);
    document.querySelectorAll("details").forEach((each) => { each.open = true; });
  });
}

themeSwitch();
start();
