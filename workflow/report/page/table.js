// Tables that sort, filter and copy. Only the rows in sight are in the page: thousands would make it slow.

const PAGE_ROWS = 50;

class Table {
  constructor(place, data, caption) {
    this.columns = Object.entries(data.columns).map(([name, column]) => ({ name, ...column, text: "words" in column }));
    this.order = Array.from({ length: data.rows }, (_, row) => row);
    this.all = this.order;
    this.limit = PAGE_ROWS;
    this.caption = caption;
    // What is the same in every row is told once, above; it stays in the copy.
    const alike = (column) => column.text && data.rows > 1 && column.words.length === 1 && !column.values.includes(-1);
    this.alike = this.columns.filter(alike);
    this.seen = this.columns.filter((column) => !alike(column));
    this.build(place);
  }

  raw(column, row) {
    const value = column.values[row];
    if (column.text) return value < 0 ? "" : column.words[value];
    return value;
  }

  build(place) {
    const tools = element("div", { class: "tools" });
    this.filter = element("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter ${this.caption}` });
    this.filter.addEventListener("input", () => this.select());
    const copy = element("button", { type: "button" }, "Copy as CSV");
    copy.addEventListener("click", async () => {
      const done = await copyText(this.csv());
      copy.textContent = done ? "Copied" : "Could not copy";
      setTimeout(() => { copy.textContent = "Copy as CSV"; }, 2000);
    });
    this.count = element("span", { class: "count", role: "status" });
    this.more = element("button", { type: "button" });
    this.more.addEventListener("click", () => {
      this.limit += 10 * PAGE_ROWS;
      this.fill();
    });
    tools.append(this.filter, copy, this.count, this.more);
    this.heads = this.seen.map((column) => {
      const button = element("button", { type: "button" }, heading(column.name));
      if (column.unit && column.unit !== "fraction") button.append(element("small", {}, column.unit));
      const head = element("th", { scope: "col", class: column.text ? "" : "n", "aria-sort": "none" }, button);
      button.addEventListener("click", () => this.sort(column, head));
      return head;
    });
    this.body = element("tbody");
    const table = element("table", {}, element("caption", { class: "unseen" }, this.caption), element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    const told = this.alike.map((column) => `${heading(column.name)} ${column.words[0]}`).join(", ");
    if (told) place.append(element("p", { class: "alike" }, `In every row: ${told}.`));
    place.append(tools, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": this.caption }, table));
    this.fill();
  }

  sort(column, head) {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of this.heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    const empty = (value) => value === null || value === "";
    const compare = (a, b) => {
      const [left, right] = [this.raw(column, a), this.raw(column, b)];
      // Unknown values stay at the end whichever way.
      if (empty(left) || empty(right)) return empty(left) - empty(right) || a - b;
      const order = column.text ? left.localeCompare(right, "en", { numeric: true }) : left - right;
      return sign * order || a - b;
    };
    this.all = [...this.all].sort(compare);
    this.select();
  }

  select() {
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const line = (row) => this.columns.map((column) => this.raw(column, row)).join(" ").toLowerCase();
    this.order = words.length ? this.all.filter((row) => { const text = line(row); return words.every((word) => text.includes(word)); }) : this.all;
    this.limit = PAGE_ROWS;
    this.fill();
  }

  fill() {
    const shown = this.order.slice(0, this.limit);
    this.body.replaceChildren(...shown.map((row) => element("tr", {}, ...this.seen.map((column) => this.cell(column, row)))));
    const left = this.order.length - shown.length;
    this.count.textContent = left ? `${shown.length} of ${this.order.length} rows` : `${shown.length} row${shown.length === 1 ? "" : "s"}`;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${Math.min(left, 10 * PAGE_ROWS)} more`;
  }

  cell(column, row) {
    const value = this.raw(column, row);
    if (!column.text) {
      const plain = ["run", "concurrency", "request_rate_req_s"].includes(column.name);
      return element("td", { class: "n" }, value === null ? "" : plain ? String(value) : numberText(value));
    }
    const loud = { flagged: "flagged-cell", failed: "bad-cell", crashed: "bad-cell", refused: "bad-cell" };
    const kind = ["status", "verdict"].includes(column.name) ? loud[value] || "" : value.length > 48 ? "long" : "";
    return element("td", kind ? { class: kind } : {}, value.replaceAll(";", ", "));
  }

  csv() {
    const quote = (value) => {
      if (typeof value === "number") return String(value);
      const text = value === null ? "" : String(value);
      // A spreadsheet would run a text that begins so as a formula.
      const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    const lines = [this.columns.map((column) => quote(column.name)), ...this.order.map((row) => this.columns.map((column) => quote(this.raw(column, row))))];
    return lines.map((cells) => cells.join(",")).join("\n") + "\n";
  }
}

// A column's name as words, without its unit, which stands below it.
function heading(name) {
  const words = name.replace(/_(tok_s|req_s|ms|s)$/, "").replace("platform_label", "platform").replaceAll("_", " ");
  return words.replace(/\b(ttft|tpot|itl|e2el|cpu)\b/g, (word) => word.toUpperCase());
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Where a page may not write to the clipboard, an old way still works.
    const area = element("textarea", { class: "unseen", "aria-hidden": "true", readonly: "" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
