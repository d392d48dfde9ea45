// The formula of the current line, in symbols and with the moment's numbers in it, as MathML.
const MATH = "http://www.w3.org/1998/Math/MathML";
const m = (tag, ...children) => build(MATH, tag, null, children);
const mi = (x) => { const e = m("mi", x); if (x.length === 1) return e; e.setAttribute("mathvariant", "normal"); return e; };
const mo = (x) => m("mo", x);
const mn = (x) => { const t = fmt(x); return t[0] === "−" ? m("mrow", mo("−"), m("mn", t.slice(1))) : m("mn", t); };
const label = (x) => m("mrow", ...(Array.isArray(x) ? x : [m("mtext", String(x))]));
const sub = (x, j) => m("msub", typeof x === "string" ? mi(x) : x, typeof j === "number" ? m("mn", String(j)) : m("mtext", j));
const norms = (x) => m("mrow", mo("‖"), x, mo("‖"));
const plain = (...parts) => m("mrow", ...parts.map((p) => (typeof p === "string" ? mo(p) : p)));

const vector = (xs) => m("mrow", mo("("), m("mtable", m("mtr", ...xs.map((x) => m("mtd", mn(x))))), mo(")"));
const matrix = (xs, n) => m("mrow", mo("("), m("mtable", ...Array.from({ length: xs.length / n }, (_, r) => m("mtr", ...xs.slice(r * n, r * n + n).map((x) => m("mtd", mn(x)))))), mo(")"));
const SHOWN = 4;
const small = (name, j) => { const v = flat(name, j); return v && v.length <= SHOWN ? v : null; };
// An equation between quantities [(symbol, name, index), …]: in full where small, one a row where long, else their norms.
function amounts(terms, between) {
  if (terms.every(([, name, j]) => small(name, j))) {
    const entries = terms.map(([, name, j]) => vector(small(name, j)));
    if (terms.reduce((n, [, name, j]) => n + small(name, j).length, 0) <= 6) return [plain(...entries.flatMap((v, i) => [...(i ? [between[i - 1]] : []), v]))];
    return entries.map((v, i) => plain(terms[i][0], "=", v));
  }
  return terms.map(([symbol, name, j]) => plain(norms(symbol), "=", mn(norm(name, j))));
}
const slots = (letter, j) => D.slots.map((slot) => [m("mrow", sub(letter, j), m("mtext", ` ${slot}`)), `${letter}.${slot}`, j]);
const each = (terms) => terms.flatMap((t) => (small(t[1], t[2]) ? [plain(t[0], "=", vector(small(t[1], t[2])))] : amounts([t], [])));
const partial = (top, bottom) => m("mfrac", m("mrow", mo("∂"), top), m("mrow", mo("∂"), bottom));
const prime = (x) => m("mi", `${x}′`);

function formula(i) {
  const line = E.line[i], j = E.j[i];
  const ell = () => sub("ℓ", j), theta = (k) => sub("θ", k), nabla = (...x) => m("mrow", sub(mo("∇"), "θ"), ...x);
  const hessian = plain(m("msup", mo("∇"), m("mn", "2")), ell());
  const symbols = [], numbers = [];
  if (line === 5) {
    symbols.push(plain(sub("G", j), "=", nabla(ell()), "(", theta(j), ")"));
    numbers.push(plain(ell(), "(", theta(j), ")", "=", mn(D.loss[j])), ...each([[theta(j), "theta", j], [sub("G", j), "G", j]]));
  } else if (line === 6) {
    const s6 = D.slots.length > 0;
    symbols.push(plain(theta(j + 1), ...(s6 ? [",", sub("s", j + 1)] : []), "=", sub(m("mtext", D.optimizer), j), "(", theta(j), ...(s6 ? [",", sub("s", j)] : []), ",", sub("G", j), ")"));
    const fixed = Object.entries(D.hyper);
    if (D.rule === "sgd" && small("theta", j)) {
      symbols.push(plain(theta(j + 1), "=", theta(j), "−", m("mtext", "lr"), "·", sub("G", j)));
      numbers.push(plain(vector(small("theta", j + 1)), "=", vector(small("theta", j)), "−", mn(D.hyper.lr), "·", vector(small("G", j))));
    } else if (D.rule === "momentum" && small("theta", j)) {
      symbols.push(plain(sub("b", j + 1), "=", "μ", sub("b", j), "+", sub("G", j)), plain(theta(j + 1), "=", theta(j), "−", m("mtext", "lr"), "·", sub("b", j + 1)));
      numbers.push(plain(vector(small("s.momentum_buffer", j + 1)), "=", mn(D.hyper.momentum), "·", vector(small("s.momentum_buffer", j)), "+", vector(small("G", j))),
        plain(vector(small("theta", j + 1)), "=", vector(small("theta", j)), "−", mn(D.hyper.lr), "·", vector(small("s.momentum_buffer", j + 1))));
    } else {
      numbers.push(...each([[theta(j), "theta", j], [sub("G", j), "G", j], [theta(j + 1), "theta", j + 1], ...slots("s", j + 1)]));
      if (fixed.length) numbers.push(plain(...fixed.filter(([, x]) => x !== 0).slice(0, 4).flatMap(([k, x], n) => [...(n ? [","] : []), m("mtext", k), "=", mn(x)])));
    }
  } else if (line === 8) {
    symbols.push(plain(sub("L", "val"), "=", m("mtext", "L_val"), "(", theta(J), ")"));
    numbers.push(plain(sub("L", "val"), "=", mn(D.val.loss)));
    for (const leaf of D.A.slice(0, 6)) numbers.push(plain(named(leaf), "←", amount(leaf.start)));
  } else if (line === 9) {
    symbols.push(plain(sub("B", j), "=", nabla(sub("L", "val")), "(", theta(j), ")", ...(j < J ? ["+ …"] : []), ",", sub("S", j), "=", j < J ? "…" : "0"));
    numbers.push(...each([[theta(j), "theta", j], [sub("B", j), "B", j]]));
  } else if (line === 11) {
    const O = [sub("O", j), "O", j], V = [sub("V", j), "V", j], B = [sub("B", j + 1), "B", j + 1];
    symbols.push(plain(sub("V", j), "=", sub("B", j + 1), "·", partial(prime("θ"), sub("G", j)), ...(D.slots.length ? ["+", sub("S", j + 1), "·", partial(prime("s"), sub("G", j))] : []), ",", m("mspace"), sub("O", j), "=", partial(prime("θ"), sub("G", j))));
    numbers.push(...each([B, O]));
    numbers.push(...(D.slots.length ? amounts([V, [m("mtext", "through θ"), "V_theta", j], [m("mtext", "through s"), "V_state", j]], ["=", "+"]) : each([V])));
  } else if (line === 12 || line === 13) {
    const kind = line === 12 ? "A_opt" : "A_loss";
    symbols.push(line === 12
      ? plain(sub("A", "opt"), "+=", sub("B", j + 1), "·", partial(prime("θ"), sub("φ", "opt")), ...(D.slots.length ? ["+", sub("S", j + 1), "·", partial(prime("s"), sub("φ", "opt"))] : []))
      : plain(sub("A", "loss"), "+=", sub("V", j), "·", sub(mo("∇"), "φ"), nabla(ell())));
    const leaves = D.A.filter((leaf) => leaf.kind === kind);
    if (!leaves.length) numbers.push(plain(m("mtext", line === 12 ? "no hyperparameter is a meta-parameter here" : "the loss has no meta-parameters here")));
    for (const leaf of leaves.slice(0, 6)) {
      const before = j === J - 1 ? leaf.start : leaf.after[j + 1];
      numbers.push(leaf.shape.length ? plain(m("mtext", "‖increment of "), named(leaf), m("mtext", "‖ "), "=", amount(leaf.inc[j])) : plain(named(leaf), "=", amount(before), "+", paren(leaf.inc[j]), "=", amount(leaf.after[j])));
    }
  } else if (line === 14) {
    const H = D.hessian[j], v = small("V", j), direct = small("direct", j);
    symbols.push(plain(sub("B", j), "=", m("munder", m("mrow", sub("B", j + 1), mo("·"), partial(prime("θ"), theta(j)), ...(D.slots.length ? [mo("+"), sub("S", j + 1), mo("·"), partial(prime("s"), theta(j))] : [])), m("mtext", "optimizer")), "+", m("munder", m("mrow", sub("V", j), mo("·"), hessian), m("mtext", "curvature"))));
    numbers.push(...amounts([[sub("B", j), "B", j], [m("mtext", "optimizer"), "direct", j], [m("mtext", "curvature"), "curvature", j]], ["=", "+"]));
    if (H && v && direct && v.length <= 2) numbers.push(plain(m("mtext", "curvature "), vector(small("curvature", j)), "=", vector(v), matrix(H, v.length)));
    numbers.push(...each(slots("S", j)));
  } else {
    symbols.push(plain(sub("A", "opt"), ",", sub("A", "loss"), ",", sub("B", 0), ",", sub("S", 0)));
    for (const leaf of D.A.slice(0, 8)) numbers.push(plain(named(leaf), "=", amount(leaf.final)));
    numbers.push(...each([[sub("B", 0), "B", 0]]));
  }
  return [symbols, numbers].map((rows) => rows.map((row) => { const e = m("math", row); e.setAttribute("display", "block"); return e; }));
}
const leafName = (leaf) => leaf.label.replace(/^phi_(opt|loss)\['?/, "").replace(/'?\]$/, "").replace(/'\]\['/g, ", ");
const named = (leaf) => m("msub", mi("A"), m("mtext", leafName(leaf)));
function amount(x) {
  if (!x) return m("mtext", "–");
  if (!x.v) return m("mrow", m("mtext", "norm "), mn(x.n));
  return x.v.length === 1 ? mn(x.v[0]) : x.v.length <= SHOWN ? vector(x.v) : m("mrow", m("mtext", "norm "), mn(x.n));
}
const paren = (x) => (x && x.v && x.v.length === 1 && value(x.v[0]) < 0 ? plain("(", amount(x), ")") : amount(x));
