// One figure that answers: values under the pointer, zoom by drag, wheel and keys.

class LiveChart extends Chart {
  listen() {
    const place = (event) => {
      const box = this.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let start = null;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      if (event.pointerType === "touch") this.near(...place(event));
      else {
        start = place(event);
        this.stage.setPointerCapture(event.pointerId);
      }
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (start) this.dragging(start, place(event));
      else if (event.pointerType !== "touch") this.near(...place(event));
    });
    this.stage.addEventListener("pointerup", (event) => {
      if (start) this.dragged(start, place(event));
      start = null;
    });
    this.stage.addEventListener("pointercancel", () => {
      start = null;
      this.over.replaceChildren();
    });
    // A finger that is lifted leaves too; what it has touched stays to be read.
    this.stage.addEventListener("pointerleave", (event) => !start && event.pointerType !== "touch" && this.hide());
    this.stage.addEventListener("dblclick", () => this.reset());
    this.stage.addEventListener("wheel", (event) => {
      // Without a click before, the wheel scrolls the page.
      if (!event.ctrlKey && document.activeElement !== this.stage) return;
      event.preventDefault();
      const [x, y] = place(event);
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25, (x - this.left) / this.inner, 1 - (y - this.top) / this.high);
    }, { passive: false });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.stage.addEventListener("blur", () => this.hide());
  }

  box(from, to) {
    const within = ([x, y]) => [Math.min(Math.max(x, this.left), this.left + this.inner), Math.min(Math.max(y, this.top), this.top + this.high)];
    const [a, b] = [within(from), within(to)];
    // Along one axis only, where the other was hardly moved.
    if (Math.abs(a[1] - b[1]) < 14) [a[1], b[1]] = [this.top, this.top + this.high];
    else if (Math.abs(a[0] - b[0]) < 14) [a[0], b[0]] = [this.left, this.left + this.inner];
    return { x: [Math.min(a[0], b[0]), Math.max(a[0], b[0])], y: [Math.min(a[1], b[1]), Math.max(a[1], b[1])] };
  }

  dragging(from, to) {
    const { x, y } = this.box(from, to);
    this.tip.hidden = true;
    this.over.replaceChildren(svg("rect", { x: x[0], y: y[0], width: x[1] - x[0], height: y[1] - y[0], class: "box" }));
  }

  dragged(from, to) {
    this.over.replaceChildren();
    if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 8) return;
    const { x, y } = this.box(from, to);
    const back = ([low, high], start, size, pixels) => pixels.map((pixel) => low + ((pixel - start) / size) * (high - low));
    const nextX = back(this.shown.x, this.left, this.inner, x);
    const nextY = back(this.shown.y, this.top, this.high, [this.top + this.high - (y[1] - this.top), this.top + this.high - (y[0] - this.top)]);
    if (nextX[1] - nextX[0] < 0.02) return;
    this.view = { x: nextX, y: nextY };
    this.draw();
  }

  visible() {
    return this.drawn.filter((point) => {
      const [x, y] = [this.x(point.x), this.y(point.y)];
      return x >= this.left - 1 && x <= this.left + this.inner + 1 && y >= this.top - 1 && y <= this.top + this.high + 1;
    });
  }

  near(x, y) {
    let best = null;
    let least = Infinity;
    const over = this.panel.x in AXES;
    for (const point of this.visible()) {
      const [dx, dy] = [this.x(point.x) - x, this.y(point.y) - y];
      // Over levels the one under the pointer counts first.
      const far = over ? Math.abs(dx) * 1000 + Math.abs(dy) : Math.hypot(dx, dy);
      if (far < least) [best, least] = [point, far];
    }
    if (best) this.show(best);
    else this.hide();
  }

  hide() {
    this.tip.hidden = true;
    if (this.over) this.over.replaceChildren();
  }

  show(point) {
    this.focus = point;
    const [x, y] = [this.x(point.x), this.y(point.y)];
    const over = this.panel.x in AXES;
    this.over.replaceChildren();
    if (over) svg("line", { x1: x, x2: x, y1: this.top, y2: this.top + this.high, class: "rule" }, this.over);
    svg("circle", { cx: x, cy: y, r: 7, class: "halo" }, this.over);
    const same = over ? this.drawn.filter((other) => other.level === point.level) : [point];
    same.sort((a, b) => b.y - a.y);
    const first = Math.max(0, Math.min(same.indexOf(point) - 4, same.length - 10));
    const rows = same.slice(first, first + 10).map((other) => this.tipRow(other, other === point));
    const head = element("b", {}, AXES[point.curve.axis].level(point.level));
    this.tip.replaceChildren(head, element("table", {}, element("tbody", {}, ...rows)));
    if (same.length > rows.length) this.tip.append(element("small", {}, `and ${same.length - rows.length} more`));
    this.tip.hidden = false;
    const width = this.tip.offsetWidth;
    const room = this.width - x - 14;
    this.tip.style.left = `${Math.max(0, Math.min(room > width ? x + 14 : x - width - 14, this.width - width))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y - this.tip.offsetHeight / 2, this.height - this.tip.offsetHeight))}px`;
  }

  tipRow(point, near) {
    const unit = (this.experiment.columns[this.panel.column] || {}).unit || "";
    const sample = svg("svg", { viewBox: "0 0 12 12", class: "swatch", "aria-hidden": "true" });
    svg("path", { d: markerPath(this.experiment.many ? 0 : point.curve.run, 6, 6, 4), class: `dots ${this.experiment.colour(point.curve)}` }, sample);
    const row = point.curve.rows[point.place];
    const codes = this.experiment.word(row, "reason_codes");
    const values = [element("td", { class: "n" }, `${numberText(point.y)} ${unit}`)];
    if (!(this.panel.x in AXES)) values.push(element("td", { class: "n" }, `at ${numberText(point.x)} ms`));
    const name = element("td", {}, sample, point.curve.label);
    if (codes) name.append(element("small", {}, ` ${codes.replaceAll(";", ", ")}`));
    return element("tr", near ? { class: "near" } : {}, name, ...values);
  }

  key(event) {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in steps) this.step(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(0.6);
    else if (event.key === "-") this.zoom(1 / 0.6);
    else if (event.key === "0" || event.key === "Escape") this.reset();
    else return;
    event.preventDefault();
  }

  step(along, across) {
    const points = this.visible();
    if (!points.length) return;
    const at = this.focus && points.find((point) => point.curve === this.focus.curve && point.place === this.focus.place);
    let next = points[0];
    if (at && along) {
      const own = points.filter((point) => point.curve === at.curve);
      next = own[Math.min(Math.max(own.indexOf(at) + along, 0), own.length - 1)];
    } else if (at) {
      const beside = points.filter((point) => point.level === at.level).sort((a, b) => a.y - b.y);
      next = beside[Math.min(Math.max(beside.indexOf(at) + across, 0), beside.length - 1)];
    }
    this.show(next);
    const unit = (this.experiment.columns[this.panel.column] || {}).unit || "";
    document.getElementById("said").textContent = `${next.curve.label}, ${AXES[next.curve.axis].level(next.level).toLowerCase()}: ${numberText(next.y)} ${unit}`;
  }
}
