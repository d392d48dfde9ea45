// Heat maps, signed bars, histograms and curves.
const themed = new Set(); // canvases to draw again when the colours change
let palette = null;
function colours() {
  if (palette) return palette;
  const css = getComputedStyle(document.documentElement);
  const rgb = (name) => { const x = css.getPropertyValue(name).trim(); return [1, 3, 5].map((i) => parseInt(x.slice(i, i + 2), 16)); };
  palette = { zero: rgb("--card"), positive: rgb("--positive"), negative: rgb("--negative"), bad: rgb("--bad") };
  return palette;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { palette = null; for (const c of themed) if (c.isConnected) c.redraw(); else themed.delete(c); });

// Square root scale: small values stay visible.
const depth = (x, peak) => (peak > 0 ? Math.sqrt(Math.min(1, Math.abs(x) / peak)) : 0);
function heat(values, columns, description, peak, scale = depth) {
  const rows = Math.ceil(values.length / columns), finite = values.map(value);
  peak = peak || Math.max(...finite.filter(Number.isFinite).map(Math.abs), 0);
  const canvas = h("canvas", { role: "img", "aria-label": description, width: columns, height: rows });
  canvas.style.aspectRatio = `${columns} / ${rows}`;
  canvas.style.maxHeight = "14rem";
  canvas.redraw = () => {
    const { zero, positive, negative, bad } = colours(), context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    finite.forEach((x, i) => {
      const to = Number.isNaN(x) ? bad : x < 0 ? negative : positive, t = Number.isNaN(x) ? 1 : scale(x, peak);
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = zero[c] + t * (to[c] - zero[c]);
      image.data[4 * i + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  };
  canvas.redraw();
  themed.add(canvas);
  return canvas;
}
function bar(x, peak) {
  const size = peak > 0 && typeof x === "number" ? (50 * Math.abs(x)) / peak : 0, negative = value(x) < 0;
  return h("i", { "aria-hidden": "true" }, h("b", { style: { left: `${negative ? 50 - size : 50}%`, width: `${size}%`, background: `var(--${negative ? "negative" : "positive"})` } }));
}
function histogram(counts, low, high) {
  const peak = Math.max(...counts), w = 240 / counts.length;
  return s("svg", { viewBox: "0 0 240 46", role: "img", "aria-label": `Histogram from ${fmt(low)} to ${fmt(high)}` },
    ...counts.map((n, i) => { const t = peak ? (30 * Math.log1p(n)) / Math.log1p(peak) : 0, mid = low + ((i + 0.5) / counts.length) * (high - low); return s("rect", { x: i * w, y: 30 - t, width: w - 1, height: t, fill: `var(--${mid < 0 ? "negative" : "positive"})` }); }),
    s("text", { x: 0, y: 43 }, fmt(low)), s("text", { x: 240, y: 43, "text-anchor": "end" }, fmt(high)));
}
// The ends and 0, without those that would print on top of each other.
function ticksBetween(low, high, middle) {
  const wide = middle || 0.12 * (high - low), ends = [low, high].filter((v) => Math.abs(v) > wide);
  return [...new Set([0, ...ends, ...(middle ? ends.map((v) => Math.sign(v) * middle) : [])])];
}
const SERIES = ["--negative", "--positive", "--forward", "--backward", "--third", "--fourth"];
// Curves over j with a cursor that follows the run. series: [[label, numbers]], bars: draw the first as bars.
function curves({ series, log, x = "step j", y = "", xs = null, bars = false, height = 190, cursor = true, description = "", offset = 0 }) {
  const W = 520, H = height, left = 62, right = 10, top = 10, bottom = 26;
  const all = series.flatMap(([, v]) => v).map(value).filter(Number.isFinite);
  const length = Math.max(...series.map(([, v]) => v.length), 2);
  const nonzero = all.map(Math.abs).filter((v) => v > 0);
  if (log === undefined) log = all.every((v) => v >= 0) && nonzero.length > 1 && Math.max(...nonzero) / Math.min(...nonzero) > 300;
  // A signed logarithm where both signs and many orders of magnitude meet: linear below a millionth of the peak.
  const peak = Math.max(...nonzero, 0), signed = !log && nonzero.length > 1 && peak / [...nonzero].sort((a, b) => a - b)[nonzero.length >> 1] > 1e3;
  const bend = (v) => (signed ? Math.sign(v) * Math.log10(1 + Math.abs(v) / (peak * 1e-6)) : v);
  const lowest = log ? Math.max(Math.min(...nonzero, 1e300), Math.max(...nonzero, 1e-300) * 1e-16) : 0;
  const extremes = [Math.min(0, ...all), Math.max(0, ...all)];
  let low = log ? Math.log10(lowest) : bend(extremes[0]), high = log ? Math.log10(Math.max(...nonzero, 1e-300)) : bend(extremes[1]);
  if (!(high > low)) { high = low + 1; }
  const pad = bars ? 0.5 : 0;
  const X = (j) => left + ((j - offset + pad) / (length - 1 + 2 * pad)) * (W - left - right);
  const Y = (v) => top + (1 - ((log ? Math.log10(Math.max(v, lowest)) : bend(v)) - low) / (high - low)) * (H - top - bottom);
  const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(1).replace("e+", "e") : String(Number(v.toPrecision(3)))).replace(/-/g, "−");
  const marks = log ? [low, (low + high) / 2, high].map((t) => 10 ** t) : ticksBetween(extremes[0], extremes[1], signed ? peak * 1e-3 : 0);
  const parts = marks.map((v) => [s("line", { x1: left, x2: W - right, y1: Y(v), y2: Y(v), class: "axis" }), s("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, short(v))]).flat();
  series.forEach(([, values], n) => {
    const colour = `var(${SERIES[n % SERIES.length]})`;
    if (bars && n === 0) {
      const w = Math.max(1, ((W - left - right) / length) * 0.7);
      values.forEach((v, i) => { if (typeof v === "number") parts.push(s("rect", { x: X(i + offset) - w / 2, y: Math.min(Y(v), Y(0)), width: w, height: Math.max(0.5, Math.abs(Y(v) - Y(0))), rx: 1, fill: `var(--${v < 0 ? "negative" : "positive"})`, "data-j": i + offset }, s("title", null, `step ${i + offset}: ${fmt(v)}`))); });
      return;
    }
    let path = "", pen = "M";
    values.forEach((v, i) => { if (typeof v === "number") { path += `${pen}${X(i + offset).toFixed(1)} ${Y(v).toFixed(1)}`; pen = "L"; } else pen = "M"; });
    parts.push(s("path", { d: path, fill: "none", stroke: bars ? "var(--ink)" : colour, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": n > 3 ? "4 3" : null }));
    if (length <= 40) values.forEach((v, i) => { if (typeof v === "number") parts.push(s("circle", { cx: X(i + offset), cy: Y(v), r: 2.6, fill: bars ? "var(--ink)" : colour }, s("title", null, `${x.replace(/^step j$/, "step")} ${i + offset}: ${fmt(v)}`))); });
  });
  const ticks = length <= 16 ? 1 : Math.ceil(length / 10);
  for (let i = 0; i < length; i += ticks) parts.push(s("text", { x: X(i + offset), y: H - 8, "text-anchor": "middle" }, xs ? brief(xs[i], 2) : i + offset));
  parts.push(s("text", { x: W - right, y: H + 6, "text-anchor": "end" }, `${x}${log ? ", logarithmic" : signed ? ", upright: signed logarithm" : ""}`));
  if (y) parts.push(s("text", { x: 0, y: top + (H - top - bottom) / 2, style: { fill: "var(--ink)" } }, ...svgLabel(y)));
  const at = cursor ? s("line", { class: "cursor", y1: top, y2: H - bottom, x1: -9, x2: -9 }) : null;
  const svg = s("svg", { viewBox: `0 0 ${W} ${H + 10}`, role: "img", "aria-label": description }, at, ...parts);
  svg.move = (j) => { if (at) { const p = j >= offset && j < offset + length ? X(j) : -9; at.setAttribute("x1", p); at.setAttribute("x2", p); } };
  return svg;
}
// Bars side by side, for entries that are not related to their neighbours.
function barChart({ series, labels, x, y, description }) {
  const W = 520, H = 240, left = 62, right = 10, top = 10, bottom = 46, all = series.flatMap(([, v]) => v).filter(Number.isFinite), low = Math.min(0, ...all), high = Math.max(0, ...all);
  const X = (k) => left + (k / labels.length) * (W - left - right), Y = (v) => top + ((high - v) / (high - low || 1)) * (H - top - bottom), w = ((W - left - right) / labels.length) * 0.8 / series.length;
  const marks = ticksBetween(low, high).map((v) => [s("line", { class: "axis", x1: left, x2: W - right, y1: Y(v), y2: Y(v) }), s("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, String(Number(v.toPrecision(2))).replace("-", "−"))]).flat();
  const bars = series.flatMap(([label, values], n) => values.map((v, k) => s("rect", { x: X(k) + n * w + 2, y: Math.min(Y(v), Y(0)), width: w, height: Math.max(0.5, Math.abs(Y(v) - Y(0))), fill: `var(${SERIES[n % SERIES.length]})` }, s("title", null, `${label}, ${labels[k]}: ${fmt(v)}`))));
  const names = labels.map((text, k) => (k % Math.ceil(labels.length / 16) === 0 ? s("text", { x: X(k + 0.5), y: H - bottom + 14, "text-anchor": "end", transform: `rotate(-35 ${X(k + 0.5)} ${H - bottom + 14})`, style: { fontSize: "10px" } }, text) : null));
  return s("svg", { viewBox: `0 0 ${W} ${H + 10}`, role: "img", "aria-label": description }, ...marks, ...bars, ...names.filter(Boolean), s("text", { x: W - right, y: H + 8, "text-anchor": "end" }, x), y ? s("text", { x: 0, y: top + (H - top - bottom) / 2, style: { fill: "var(--ink)" } }, ...svgLabel(y)) : null);
}
function legend(series, current) {
  return h("ul", { class: "legend" }, ...series.map(([label, values], n) => h("li", null, h("i", { style: { background: `var(${SERIES[n % SERIES.length]})` } }), ...typeset(label), current === undefined || values[current] === undefined || values[current] === null ? null : h("span", { class: "value" }, " ", fmt(values[current])))));
}
