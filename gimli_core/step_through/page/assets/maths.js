// MathML: symbols that explain themselves, vectors, matrices, and sums whose printed terms add up.
const MATH = "http://www.w3.org/1998/Math/MathML";
const m = (tag, ...children) => sketch(MATH, tag, null, children);
const mo = (x) => m("mo", x);
const explained = (node, symbol) => { if (known(symbol)) node.attributes["data-symbol"] = symbol; return node; };
const mi = (x) => { const e = m("mi", x); if (x.length > 1) e.attributes.mathvariant = "normal"; return explained(e, x.replace("′", "")); };
const mn = (x, print = fmt) => { const t = typeof x === "number" ? print(x) : fmt(x); return t[0] === "−" ? m("mrow", mo("−"), m("mn", t.slice(1))) : m("mn", t); };
const word = (text) => m("mtext", text);
const sub = (x, j) => { const e = m("msub", typeof x === "string" ? mi(x) : x, typeof j === "number" ? m("mn", String(j)) : word(j)); return typeof x === "string" ? explained(e, x) : e; };
const sup = (x, j) => m("msup", typeof x === "string" ? mi(x) : x, typeof j === "number" ? m("mn", String(j)) : word(j));
const plain = (...parts) => m("mrow", ...parts.map((p) => (typeof p === "string" ? mo(p) : p)));
// An equation in pieces that may stand below each other: it breaks before a relation, before a sum's sign, and before a matrix.
const BREAKS = new Set(["=", "+", "−", "+=", "←", "/"]);
function inPieces(row) {
  const pieces = [];
  let depth = 0, before = null;
  for (const child of row.children) {
    const text = child.tag === "mo" ? child.children[0] : null, sign = depth === 0 && BREAKS.has(text) && before && before.tag !== "mo";
    if (!pieces.length || sign || (before && before.tag === "mrow" && child.tag === "mrow")) pieces.push([]);
    pieces.at(-1).push(sign ? sketch(MATH, "mo", { form: "infix" }, child.children) : child);
    depth += text === "(" ? 1 : text === ")" ? -1 : 0;
    before = text === ")" ? { tag: "mrow" } : child;
  }
  return pieces.map((piece) => m("math", ...piece));
}
const prime = (x) => mi(`${x}′`);
const partial = (top, bottom) => m("mfrac", m("mrow", mo("∂"), top), m("mrow", mo("∂"), bottom));
const over = (top, bottom) => m("mfrac", m("mrow", ...[top].flat()), m("mrow", ...[bottom].flat()));
const root = (x) => m("msqrt", x);
const hat = (x) => m("mover", x, mo("^"));
const norms = (x) => m("mrow", mo("‖"), x, mo("‖"));
const vector = (xs, print = (x) => fmt(x)) => (xs.length === 1 ? mn(xs[0], (x) => print(x, 0)) : plain("(", ...xs.flatMap((x, i) => [...(i ? [mo(",")] : []), mn(x, (v) => print(v, i))]), ")"));
const matrix = (xs, n) => m("mrow", mo("("), m("mtable", ...Array.from({ length: xs.length / n }, (_, r) => m("mtr", ...xs.slice(r * n, r * n + n).map((x) => m("mtd", mn(x)))))), mo(")"));
const SHOWN = 4; // entries, up to which a quantity is written whole
const small = (name, j) => { const v = flat(name, j); return v && v.length <= SHOWN ? v : null; };
// The numbers of a quantity that a formula shows: all of a small one, else those of the chosen entry.
function entriesOf(name, j) {
  const all = small(name, j);
  if (all) return all;
  const one = options[chosenEntry] && options[chosenEntry].at(name, j);
  return one === null || one === undefined ? null : [one];
}
const isSmall = () => D.q.theta && small("theta", J) !== null || small("theta", 0) !== null;
const entryNote = () => (isSmall() || !options[chosenEntry] ? [] : [word(`${options[chosenEntry].label}:\u00a0`)]);
// whole = part + part + …, each [symbol, name, j]; printed so that the parts add up.
function sumOf(whole, parts) {
  const [total, ...terms] = [whole, ...parts].map(([, name, j]) => entriesOf(name, j));
  if (!total || terms.some((t) => !t)) return each([whole, ...parts]);
  const print = addingUp(total, terms);
  return [plain(...entryNote(), vector(total, print), "=", ...terms.flatMap((t, i) => (i ? ["+", t.length === 1 && value(t[0]) < 0 ? plain("(", vector(t, print), ")") : vector(t, print)] : [vector(t, print)])))];
}
const each = (terms) => terms.map(([symbol, name, j]) => { const v = entriesOf(name, j); return v ? plain(...entryNote(), symbol, "=", vector(v)) : plain(norms(symbol), "=", mn(norm(name, j))); });
const theta = (k) => sub("θ", k), ell = (j) => sub("ℓ", j), nabla = (...x) => m("mrow", sub(mi("∇"), "θ"), ...x);
const hessianOf = (j) => plain(explained(sup(mo("∇"), 2), "H"), ell(j));
const SLOT_LETTERS = { momentum_buffer: "b", exp_avg: "m", exp_avg_sq: "v" };
const stateOf = (slot, j, letter = "s") => (letter === "s" ? (SLOT_LETTERS[slot] ? sub(SLOT_LETTERS[slot], j) : m("mrow", sub("s", j), word(` ${slot}`))) : m("msubsup", mi("S"), m("mn", String(j)), SLOT_LETTERS[slot] ? mi(SLOT_LETTERS[slot]) : word(slot)));
const slotTerms = (letter, j) => D.slots.map((slot) => [stateOf(slot, j, letter), `${letter}.${slot}`, j]);
const named = (leaf) => explained(m("msub", mi("A"), word(leafName(leaf))), "A");
const amount = (x, print = fmt) => (!x ? word("–") : !x.v ? m("mrow", word("norm "), mn(x.n)) : x.v.length <= SHOWN ? vector(x.v, print) : m("mrow", word("norm "), mn(x.n)));
const bracketed = (x, print) => (x && x.v && x.v.length === 1 && value(x.v[0]) < 0 ? plain("(", amount(x, print), ")") : amount(x, print));
