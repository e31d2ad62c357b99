// What figures are made of: elements, markers, and what all figures of an experiment share.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "9 3 2 3", "2 3", "9 3 2 3 2 3", "2 6"];
// Above this many curves they are told apart by platform only, as in the figures of the table.
const MANY = 12;

// What may stand below a figure as the level of a curve's points: its words, and those of one level.
const AXES = {
  concurrency: { words: "Maximum request concurrency", level: (level) => `Concurrency ${level}` },
  request_rate_req_s: { words: "Request rate (requests/s)", level: (level) => `${level} requests/s` },
};

function svg(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function markerPath(shape, x, y, r) {
  switch (shape % 5) {
    case 1: return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
    case 2: return `M${x},${y - 1.2 * r}L${x + 1.1 * r},${y + r}H${x - 1.1 * r}z`;
    case 3: return `M${x},${y - 1.3 * r}L${x + 1.3 * r},${y}L${x},${y + 1.3 * r}L${x - 1.3 * r},${y}z`;
    case 4: return `M${x},${y + 1.2 * r}L${x + 1.1 * r},${y - r}H${x - 1.1 * r}z`;
    default: return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`;
  }
}

// What all figures of an experiment share: its rows by column, its curves, and which of these are hidden.
class Experiment {
  constructor(data) {
    this.data = data;
    this.columns = data.columns;
    this.curves = data.curves;
    this.groups = [...new Set(this.curves.map((curve) => curve.group))];
    this.many = this.curves.length > MANY;
    this.hidden = new Set();
    this.charts = [];
    const status = this.columns.status;
    this.status = (row) => (status && status.values[row] >= 0 ? status.words[status.values[row]] : "");
  }

  value(curve, place, column) {
    const row = curve.rows[place];
    if (row < 0 || !["ok", "flagged"].includes(this.status(row))) return null;
    return this.raw(curve, place, column);
  }

  raw(curve, place, column) {
    const row = curve.rows[place];
    const values = this.columns[column];
    return row < 0 || !values ? null : values.values[row];
  }

  word(row, column) {
    const words = this.columns[column];
    return words && words.values[row] >= 0 ? words.words[words.values[row]] : "";
  }

  colour(curve) {
    const alone = this.groups.length === 1 && !this.many;
    return `k${(alone ? curve.run : curve.group) % 7}`;
  }

  // Legend entries: one per curve, or one per group of many.
  entries() {
    if (!this.many) return this.curves.map((curve) => ({ label: curve.label, curves: [curve] }));
    return this.groups.map((group) => {
      const curves = this.curves.filter((curve) => curve.group === group);
      return { label: `${curves[0].platform}, ${curves.length} run${curves.length > 1 ? "s" : ""}`, curves };
    });
  }

  redraw() {
    for (const chart of this.charts) chart.reset();
  }
}
