// One figure as it is drawn: axes, curves, crosses, legend. chart-pointer.js makes it answer.

class Chart {
  constructor(figure, kind, experiment) {
    this.figure = figure;
    this.kind = kind;
    this.experiment = experiment;
    this.name = figure.querySelector("h3").textContent;
    this.panels = kind.panels.filter((panel) => this.points(panel, true).length);
    if (!this.panels.length) this.panels = [kind.panels[0]];
    this.panel = this.panels[0];
    this.view = null;
    this.focus = null;
    experiment.charts.push(this);
    this.build();
  }

  // A curve over rates has no place over concurrency, and the other way round.
  belongs(curve, panel = this.panel) {
    return !(panel.x in AXES) || curve.axis === panel.x;
  }

  shows(curve) {
    return !this.experiment.hidden.has(curve) && this.belongs(curve);
  }

  // Every drawn value of a panel; hidden curves too if asked.
  points(panel, all) {
    const found = [];
    for (const curve of this.experiment.curves) {
      if ((!all && this.experiment.hidden.has(curve)) || !this.belongs(curve, panel)) continue;
      curve.levels.forEach((level, place) => {
        const y = this.experiment.value(curve, place, panel.column);
        const x = panel.x in AXES ? level : this.experiment.value(curve, place, panel.x);
        if (x !== null && y !== null && (!this.kind.log || y > 0) && x > 0) found.push({ curve, place, level, x, y });
      });
    }
    return found;
  }

  build() {
    const plot = this.figure.querySelector(".plot");
    const before = [];
    if (this.panels.length > 1) {
      const words = (panel) => panel.title || (panel.x.split("_")[1] || "").toUpperCase();
      const choice = element("div", { class: "switch", role: "group", "aria-label": "What is shown" });
      for (const panel of this.panels) {
        const button = element("button", { type: "button", "aria-pressed": panel === this.panel }, words(panel));
        button.addEventListener("click", () => {
          this.panel = panel;
          for (const other of choice.children) other.setAttribute("aria-pressed", other === button);
          this.reset();
        });
        choice.append(button);
      }
      before.push(choice);
    }
    const zoom = element("div", { class: "zoom" });
    for (const [text, label, action] of [["+", "Zoom in", () => this.zoom(0.6)], ["−", "Zoom out", () => this.zoom(1 / 0.6)], ["Reset", "Reset zoom", () => this.reset()]]) {
      const button = element("button", { type: "button", class: "control", "aria-label": label, title: label }, text);
      button.addEventListener("click", action);
      zoom.append(button);
    }
    before.push(zoom);
    this.stage = element("div", {
      class: "stage", tabindex: 0, role: "group", "aria-roledescription": "chart",
      "aria-label": `${this.name}. Arrow keys go from point to point, plus and minus zoom, 0 resets.`,
    });
    this.tip = element("div", { class: "tip", hidden: "" });
    this.legend = element("ul", { class: "legend", "aria-label": "Curves: press to hide or show one, with Shift to show it alone" });
    plot.append(...before, this.stage, this.legend);
    this.listen();
    this.draw();
    new ResizeObserver(() => this.width !== this.stage.clientWidth && this.draw()).observe(this.stage);
  }

  fullView() {
    const points = this.points(this.panel, false);
    const over = this.panel.x in AXES;
    const levels = this.levels();
    const xs = over ? levels : points.map((point) => point.x);
    const ys = points.map((point) => point.y);
    this.baseX = over ? 2 : 10;
    this.baseY = this.kind.log ? 10 : 0;
    const least = (values, fallback) => values.reduce((a, b) => Math.min(a, b), values.length ? Infinity : fallback);
    const most = (values, fallback) => values.reduce((a, b) => Math.max(a, b), values.length ? -Infinity : fallback);
    const x = [toAxis(least(xs, 1), this.baseX), toAxis(most(xs, 1024), this.baseX)];
    const pad = over ? 0.3 : Math.max(0.06, 0.06 * (x[1] - x[0]));
    const y = this.kind.log ? [toAxis(least(ys, 1), 10), toAxis(most(ys, 10), 10)] : [0, most(ys, 1) * 1.06 || 1];
    const padY = this.kind.log ? Math.max(0.08, 0.06 * (y[1] - y[0])) : 0;
    return { x: [x[0] - pad, x[1] + pad], y: [y[0] - padY, y[1] + padY] };
  }

  levels() {
    const seen = new Set();
    for (const curve of this.experiment.curves) if (this.shows(curve)) curve.levels.forEach((level) => seen.add(level));
    return [...seen].sort((a, b) => a - b);
  }

  x(value) {
    const [low, high] = this.shown.x;
    return this.left + ((toAxis(value, this.baseX) - low) / (high - low)) * this.inner;
  }

  y(value) {
    const [low, high] = this.shown.y;
    return this.top + (1 - (toAxis(value, this.baseY) - low) / (high - low)) * this.high;
  }

  reset() {
    this.view = null;
    this.focus = null;
    this.draw();
  }

  // Around a place in the figure, from 0 to 1 on both axes.
  zoom(factor, atX = 0.5, atY = 0.5) {
    const full = this.fullView();
    const from = this.view || full;
    const cut = ([low, high], at, [least, most]) => {
      const size = Math.min((high - low) * factor, most - least);
      const start = Math.min(Math.max(low + (high - low - size) * at, least), most - size);
      return [start, start + size];
    };
    const next = { x: cut(from.x, atX, full.x), y: cut(from.y, atY, full.y) };
    if (next.x[1] - next.x[0] < 0.02) return;
    this.view = next.x[1] - next.x[0] >= full.x[1] - full.x[0] - 1e-9 && next.y[1] - next.y[0] >= full.y[1] - full.y[0] - 1e-9 ? null : next;
    this.draw();
  }

  draw() {
    const width = this.stage.clientWidth;
    this.width = width;
    const hero = this.figure.classList.contains("hero");
    this.height = Math.round(Math.min(Math.max(width * (hero ? 0.42 : 0.6), 250), hero ? 430 : 320));
    this.shown = this.view || this.fullView();
    this.top = 10;
    this.high = this.height - this.top - 46;
    this.drawn = this.points(this.panel, false);
    const image = svg("svg", { viewBox: `0 0 ${width} ${this.height}`, height: this.height, role: "img", "aria-label": this.name });
    this.image = image;
    const [lowY, highY] = this.shown.y.map((each) => fromAxis(each, this.baseY));
    const countY = Math.max(3, Math.floor(this.high / 45));
    const ticksY = this.kind.log ? logTicks(lowY, highY, countY * 1.5) : linearTicks(lowY, highY, countY);
    this.left = 14 + 7.2 * Math.max(2, ...ticksY.map((tick) => tickText(tick).length));
    this.inner = Math.max(60, width - this.left - 12);
    this.drawAxes(image, ticksY);
    // A nested svg clips what zooming has moved outside, with room for half a marker.
    this.pane = svg("svg", { x: this.left - 6, y: this.top - 6, width: this.inner + 12, height: this.high + 12, viewBox: `${this.left - 6} ${this.top - 6} ${this.inner + 12} ${this.high + 12}` }, image);
    for (const curve of this.experiment.curves) if (this.shows(curve)) this.drawCurve(curve);
    if (this.panel.x in AXES) this.drawMarks();
    if (!this.drawn.length) svg("text", { x: this.left + this.inner / 2, y: this.top + this.high / 2, "text-anchor": "middle", class: "empty" }, image, this.experiment.curves.length ? "not measured" : "no points yet");
    this.over = svg("g", {}, image);
    this.stage.replaceChildren(image, this.tip);
    this.hide();
    this.drawLegend();
  }

  drawAxes(image, ticksY) {
    const bottom = this.top + this.high;
    const right = this.left + this.inner;
    for (const tick of ticksY) {
      const y = this.y(tick);
      svg("line", { x1: this.left, x2: right, y1: y, y2: y, class: "grid" }, image);
      svg("text", { x: this.left - 7, y: y + 4, "text-anchor": "end" }, image, tickText(tick));
    }
    const [low, high] = this.shown.x.map((each) => fromAxis(each, this.baseX));
    const over = this.panel.x in AXES;
    const ticksX = over ? levelTicks(this.levels(), low, high, this.inner / 38) : logTicks(low, high, this.inner / 50);
    for (const tick of ticksX) {
      const x = this.x(tick);
      svg("line", { x1: x, x2: x, y1: this.top, y2: bottom, class: "grid" }, image);
      svg("text", { x, y: bottom + 17, "text-anchor": "middle" }, image, over ? String(tick) : tickText(tick));
    }
    svg("line", { x1: this.left, x2: right, y1: bottom, y2: bottom, class: "frame" }, image);
    svg("line", { x1: this.left, x2: this.left, y1: this.top, y2: bottom, class: "frame" }, image);
    const words = over ? AXES[this.panel.x].words : `Median ${(this.panel.x.split("_")[1] || "").toUpperCase()} (ms)`;
    svg("text", { x: this.left + this.inner / 2, y: this.height - 6, "text-anchor": "middle", class: "axis-title" }, image, words);
  }

  drawCurve(curve) {
    const many = this.experiment.many;
    const colour = this.experiment.colour(curve);
    let line = "";
    let dots = "";
    let hollow = "";
    let pen = "M";
    curve.levels.forEach((level, place) => {
      // Another run has added this level for itself: the pen stays down.
      if (curve.skipped[place]) return;
      const y = this.experiment.value(curve, place, this.panel.column);
      const x = this.panel.x in AXES ? level : this.experiment.value(curve, place, this.panel.x);
      if (x === null || y === null || !(x > 0) || (this.kind.log && !(y > 0))) {
        pen = "M";
        return;
      }
      const at = [Number(this.x(x).toFixed(1)), Number(this.y(y).toFixed(1))];
      line += `${pen}${at}`;
      pen = "L";
      const mark = markerPath(curve.run, ...at, many ? 2 : 4.2);
      if (this.experiment.status(curve.rows[place]) === "flagged") hollow += mark;
      else dots += mark;
    });
    if (line) svg("path", { d: line, class: `curve ${colour}${many ? " thin" : ""}`, "stroke-dasharray": many ? "" : DASHES[curve.run % DASHES.length] }, this.pane);
    if (dots) svg("path", { d: dots, class: `dots ${colour}` }, this.pane);
    if (hollow) svg("path", { d: hollow, class: `hollow ${colour}` }, this.pane);
  }

  // A cross and a word where a point crashed or failed; alike words at one place once.
  drawMarks() {
    const stacked = new Map();
    const written = new Map();
    for (const curve of this.experiment.curves) {
      if (!this.shows(curve)) continue;
      const colour = this.experiment.colour(curve);
      const own = this.drawn.filter((point) => point.curve === curve);
      for (const [place, text, crashed, leftOut] of curve.marks) {
        const before = own.filter((point) => point.place < place).pop();
        const raw = this.experiment.raw(curve, place, this.panel.column);
        const x = this.x(curve.levels[place]);
        const bottom = this.top + this.high;
        let y = bottom;
        if (crashed) y = this.kind.log ? (before ? this.y(before.y) : bottom) : raw === null ? bottom : this.y(raw);
        if (crashed && before) svg("path", { d: `M${this.x(before.x)},${this.y(before.y)}L${x},${y}`, class: `fallen ${colour}` }, this.pane);
        if (!leftOut) svg("path", { d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8`, class: `mark ${colour}` }, this.pane);
        const key = `${curve.levels[place]} ${Math.round(y)} ${text}`;
        const same = written.get(key);
        if (same) {
          same.count += 1;
          same.node.textContent = `${text} (${same.count} runs)`;
          continue;
        }
        const up = stacked.get(curve.levels[place]) || 0;
        stacked.set(curve.levels[place], up + 13);
        const early = x < this.left + 90;
        const node = svg("text", { x: x + (early ? 7 : -7), y: y - 6 - up, "text-anchor": early ? "start" : "end", class: `word ${colour}` }, this.pane, text);
        written.set(key, { node, count: 1 });
      }
    }
  }

  drawLegend() {
    const valued = new Set(this.points(this.panel, true).map((point) => point.curve));
    const entries = this.experiment.entries().filter((entry) => entry.curves.some((curve) => valued.has(curve) || (curve.marks.length && this.belongs(curve))));
    const items = entries.map((entry) => {
      const [first] = entry.curves;
      const shown = entry.curves.some((curve) => !this.experiment.hidden.has(curve));
      const sample = svg("svg", { viewBox: "0 0 26 12", class: "swatch", "aria-hidden": "true" });
      const colour = this.experiment.colour(first);
      svg("path", { d: "M0,6H26", class: `curve ${colour}`, "stroke-dasharray": this.experiment.many ? "" : DASHES[first.run % DASHES.length] }, sample);
      svg("path", { d: markerPath(this.experiment.many ? 0 : first.run, 13, 6, 4), class: `dots ${colour}` }, sample);
      const button = element("button", { type: "button", "aria-pressed": shown }, sample, entry.label);
      button.addEventListener("click", (event) => this.toggle(entry, event.shiftKey));
      return element("li", {}, button);
    });
    const at = [...this.legend.querySelectorAll("button")].indexOf(document.activeElement);
    this.legend.replaceChildren(...items);
    // The pressed button was replaced: the focus stays where it was.
    if (at >= 0) this.legend.querySelectorAll("button")[at]?.focus();
  }

  toggle(entry, alone) {
    const { hidden, curves } = this.experiment;
    if (alone) {
      const only = curves.every((curve) => hidden.has(curve) !== entry.curves.includes(curve));
      hidden.clear();
      if (!only) curves.filter((curve) => !entry.curves.includes(curve)).forEach((curve) => hidden.add(curve));
    } else {
      const shown = entry.curves.some((curve) => !hidden.has(curve));
      entry.curves.forEach((curve) => (shown ? hidden.add(curve) : hidden.delete(curve)));
    }
    this.experiment.redraw();
  }
}
