"use strict";
// Numbers on axes: how they are written, where ticks stand, from values to pixels.

// As report_words.number: thousands apart, as many decimals as tell something.
function numberText(value) {
  const size = Math.abs(value);
  if (size < 1) return value.toLocaleString("en-US", { maximumFractionDigits: 4 });
  const decimals = size >= 1000 || Number.isInteger(value) ? 0 : size >= 100 ? 1 : 2;
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

function tickText(value) {
  return value.toLocaleString("en-US", { maximumSignificantDigits: 4 });
}

// base 0 is linear, 2 and 10 are logarithmic. Positions on such an axis are logarithms, so that zooming is linear.
function toAxis(value, base) {
  return base ? Math.log(value) / Math.log(base) : value;
}

function fromAxis(position, base) {
  return base ? base ** position : position;
}

function linearTicks(low, high, most) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, most);
  const decade = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * decade).find((each) => each >= rough * 0.999);
  const ticks = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + 1e-9 * span; place += 1) ticks.push(Number((place * step).toPrecision(12)));
  return ticks;
}

// 1, 2, 5 of each decade, fewer where they would not fit; even steps where less than a decade is in sight.
function logTicks(low, high, most) {
  for (const parts of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const part of parts) {
        const tick = Number((part * 10 ** power).toPrecision(12));
        if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(tick);
      }
    }
    if (ticks.length <= most && ticks.length > 2) return ticks;
  }
  return linearTicks(low, high, most).filter((tick) => tick > 0);
}

// The levels themselves; when they do not fit, every second, third... of them.
function levelTicks(levels, low, high, most) {
  const seen = levels.filter((level) => level >= low && level <= high);
  const step = Math.ceil(seen.length / Math.max(2, most));
  return seen.length ? seen.filter((_, place) => place % step === 0) : logTicks(low, high, most);
}
