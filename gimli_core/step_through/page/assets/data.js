// What the run kept, and small helpers. Text enters the page through textContent alone.
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const byName = () => Object.create(null); // names are the user's, "__proto__" among them
const J = D.steps;
const E = D.events;
const SVG = "http://www.w3.org/2000/svg";

function build(space, tag, attributes, children) {
  const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "style") Object.assign(element.style, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return element;
}
const h = (tag, attributes, ...children) => build(null, tag, attributes, children);
const s = (tag, attributes, ...children) => build(SVG, tag, attributes, children);

let digits = 6;
// A number as it is printed everywhere: JSON holds the engine's, exactly.
function fmt(x) {
  if (x === null || x === undefined) return "–";
  if (typeof x === "string") return x.replace("-", "−").replace("inf", "∞");
  let text = digits >= 17 ? String(x) : x.toPrecision(digits);
  if (text.includes("e")) text = text.replace(/\.?0*e\+?/, "e");
  else if (text.includes(".")) text = text.replace(/\.?0+$/, "");
  return (Number(x) === 0 ? "0" : text).replace(/-/g, "−");
}
// A number on the stage: four digits at most.
function brief(x, most = 4) {
  const kept = digits;
  digits = Math.min(digits, most);
  const text = fmt(x);
  digits = kept;
  return text;
}
// Numbers that must add up before the reader's eyes: as many digits as it takes for the rounded ones to do so.
// parts: lists of equal length whose sums are `sums`. Returns how to print a number of the i-th sum.
function addingUp(sums, parts) {
  const prints = sums.map((sum, i) => oneSum(value(sum), parts.map((p) => value(p[i]))));
  return (x, i = 0) => prints[i](x);
}
function oneSum(sum, terms) {
  const peak = Math.max(...[sum, ...terms].map(Math.abs));
  if (!(peak > 0) || !Number.isFinite(peak)) return fmt;
  const magnitude = Math.floor(Math.log10(peak)), power = magnitude < -4 || magnitude > 6 ? magnitude : 0; // 1.2e10 rather than ten digits
  const first = Math.max(0, (digits > 12 ? 12 : Math.min(digits, 5)) - 1 - magnitude + power), scaled = (x) => x / 10 ** power, whole = (x, d) => BigInt(scaled(x).toFixed(d).replace(".", ""));
  for (let d = first; d <= first + 10; d++) {
    if (whole(sum, d) === terms.reduce((t, x) => t + whole(x, d), 0n)) return (x) => (x === 0 ? "0" : scaled(x).toFixed(d).replace(/^-(?=0\.?0*$)/, "").replace("-", "−") + (power ? `e${power}`.replace("-", "−") : ""));
  }
  return fmt;
}
const vectorText = (xs, print = (x) => brief(x)) => (xs.length === 1 ? print(xs[0], 0) : `(${xs.map((x, i) => print(x, i)).join(", ")})`);
const value = (x) => (typeof x === "number" ? x : NaN);
const subscript = (j) => String(j).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]);
const bytes = (n) => (n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toPrecision(3)} KiB` : n < 1073741824 ? `${(n / 1048576).toPrecision(3)} MiB` : `${(n / 1073741824).toPrecision(3)} GiB`);
const micro = (us) => (us < 1000 ? `${us} µs` : us < 1e6 ? `${(us / 1000).toPrecision(3)} ms` : `${(us / 1e6).toPrecision(3)} s`);

const norm = (name, j) => (D.q[name] ? D.q[name].norm[j] : null);
const cells = (name, j) => (D.q[name] ? D.q[name].cells[j] : null);
// Every element in one row, where the page has them all.
function flat(name, j) {
  const kept = cells(name, j);
  return kept && kept.every((c) => c.v) ? kept.flatMap((c) => c.v) : null;
}

const turn = (() => { const at = E.line.findIndex((l) => l === 8 || l === 9); return at < 0 ? E.line.length : at; })();
const backward = (i) => i >= turn;
const count = E.line.length;
const find = (line, j) => E.line.findIndex((l, i) => l === line && E.j[i] === j && !E.replay[i]);
const findAny = (line, j) => { const at = find(line, j); return at >= 0 ? at : E.line.findIndex((l, i) => l === line && E.j[i] === j); };
const sides = (i) => (E.line[i] === 16 ? "the end" : backward(i) ? "backward" : "forward");
const place = (i) => `Line ${E.line[i]} · ${E.line[i] === 16 ? "the result" : "step " + E.j[i]} · ${sides(i)}`;
const position = (index, shape) => {
  const out = [];
  for (let d = shape.length - 1; d >= 0; d--) { out.unshift(index % shape[d]); index = Math.floor(index / shape[d]); }
  return `[${out.join(", ")}]`;
};
const FEW = 40; // parameters, up to which every entry has a name here
const entryNames = D.parameters <= FEW ? D.tensors.flatMap((t) => Array.from({ length: t.shape.reduce((a, b) => a * b, 1) }, (_, k) => (t.shape.length ? t.name + position(k, t.shape) : t.name))) : [];
const leafName = (leaf) => leaf.label.replace(/^phi_(opt|loss)\['?/, "").replace(/'?\]$/, "").replace(/'\]\['/g, ", ");
const single = (x, k = 0) => (!x ? null : x.v ? x.v[k] : x.n);
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
