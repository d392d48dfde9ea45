// The formula of the current line, in symbols and with the moment's numbers in it.
let chosenEntry = 0, options = []; // the entries that can be shown alone: see followOptions
const own = (line, j) => (OWN[D.rule] && OWN[D.rule][line] ? OWN[D.rule][line](j) : null);

const FORMULAS = {
  5: (j) => [[plain(sub("G", j), "=", nabla(ell(j)), "(", theta(j), ")")], [plain(ell(j), "(", theta(j), ")", "=", mn(D.loss[j])), ...each([[theta(j), "theta", j], [sub("G", j), "G", j]])]],
  6: (j) => {
    const state = D.slots.length > 0;
    const symbols = own(6, j) || [plain(theta(j + 1), ...(state ? [",", sub("s", j + 1)] : []), "=", sub(word(D.optimizer), j), "(", theta(j), ...(state ? [",", sub("s", j)] : []), ",", sub("G", j), ")")];
    const fixed = Object.entries(D.hyper).filter(([, x]) => x !== 0).slice(0, 4);
    return [symbols, (D.rule && ownStep(j)) || [...each([[theta(j), "theta", j], [sub("G", j), "G", j], [theta(j + 1), "theta", j + 1], ...slotTerms("s", j + 1)]), ...(fixed.length ? [plain(...fixed.flatMap(([k, x], n) => [...(n ? [","] : []), word(k), "=", mn(x)]))] : [])]];
  },
  8: () => [[plain(sub("L", "val"), "=", sub("L", "val"), "(", theta(J), ")")], [plain(sub("L", "val"), "=", mn(D.val.loss)), ...D.A.slice(0, 6).map((leaf) => plain(named(leaf), "←", amount(leaf.start)))]],
  9: (j) => [[plain(sub("B", j), "=", nabla(sub("L", "val")), "(", theta(j), ")", ...(j < J ? ["+ …"] : [])), ...(D.slots.length && j === J ? [plain(sub("S", j), "=", "0")] : [])], each([[theta(j), "theta", j], [sub("B", j), "B", j]])],
  11: (j) => {
    const V = [sub("V", j), "V", j], through = [[word("through θ"), "V_theta", j], [word("through s"), "V_state", j]];
    const generic = [plain(sub("V", j), "=", sub("B", j + 1), "·", partial(prime("θ"), sub("G", j)), ...(D.slots.length ? ["+", sub("S", j + 1), "·", partial(prime("s"), sub("G", j))] : [])), plain(sub("O", j), "=", partial(prime("θ"), sub("G", j)))];
    const B = entriesOf("B", j + 1), v = entriesOf("V", j);
    const sgd = D.rule === "sgd" && B && v && D.hyper.lr !== undefined ? [plain(...entryNote(), vector(v), "=", "−", mn(D.hyper.lr), "·", vector(B))] : null;
    return [own(11, j) || generic, sgd || [...(D.slots.length ? sumOf(V, through) : each([V])), ...each([[sub("B", j + 1), "B", j + 1], [sub("O", j), "O", j]])]];
  },
  12: (j) => [[plain(sub("A", "opt"), "+=", sub("B", j + 1), "·", partial(prime("θ"), sub("φ", "opt")), ...(D.slots.length ? ["+", sub("S", j + 1), "·", partial(prime("s"), sub("φ", "opt"))] : [])), ...(own(12, j) || [])], added("A_opt", j)],
  13: (j) => [[plain(sub("A", "loss"), "+=", sub("V", j), "·", sub(mi("∇"), "φ"), nabla(ell(j)))], added("A_loss", j)],
  14: (j) => {
    const H = D.hessian[j], v = small("V", j);
    const generic = [plain(sub("B", j), "=", m("munder", m("mrow", sub("B", j + 1), mo("·"), partial(prime("θ"), theta(j)), ...(D.slots.length ? [mo("+"), sub("S", j + 1), mo("·"), partial(prime("s"), theta(j))] : [])), word("arrives directly")), "+", m("munder", m("mrow", sub("V", j), mo("·"), hessianOf(j)), word("through the gradient")))];
    const numbers = sumOf([sub("B", j), "B", j], [[word("directly"), "direct", j], [word("through the gradient"), "curvature", j]]);
    if (!D.rule) numbers.push(...each([[sub("B", j + 1), "B", j + 1]]));
    if (H && v && v.length <= 2) numbers.push(plain(vector(small("curvature", j)), "=", vector(v), matrix(H, v.length)));
    return [own(14, j) || generic, [...numbers, ...each(slotTerms("S", j))]];
  },
  16: () => [[plain(sub("A", "opt"), ",", sub("A", "loss"), ",", sub("B", 0), ",", sub("S", 0))], [...D.A.slice(0, 8).map((leaf) => plain(named(leaf), "=", amount(leaf.final))), ...each([[sub("B", 0), "B", 0]]), ...(D.tasks ? [plain(word("a price for each task; what they share gets the sum"))] : [])]],
};
// A after = A before + this step's term, for each meta-parameter.
function added(kind, j) {
  const leaves = D.A.filter((leaf) => leaf.kind === kind);
  if (!leaves.length) return [plain(word(kind === "A_opt" ? "no hyperparameter is a meta-parameter here" : "the loss has no meta-parameters here"))];
  return leaves.slice(0, 6).map((leaf) => {
    const before = j === J - 1 ? leaf.start : leaf.after[j + 1], inc = leaf.inc[j], after = leaf.after[j];
    if (!before || !inc || !after || !inc.v || !before.v || inc.v.length > SHOWN) return plain(word("‖increment of "), named(leaf), word("‖ "), "=", amount(inc));
    const print = addingUp(after.v, [before.v, inc.v]);
    return plain(named(leaf), "=", amount(before, print), "+", bracketed(inc, print), "=", amount(after, print));
  });
}
function formula(i) {
  return FORMULAS[E.line[i]](E.j[i]).map((rows) => rows.map((row) => hv("div", { class: "equation" }, inPieces(row))));
}
// Each line of the algorithm has a sheet of its own, which lies ready outside the panel while another line is shown.
const sheets = new Map();
let sheetNow = null;
function sheetOf(line) {
  if (!sheets.has(line)) {
    const title = h("h2", null, `Line ${line}`), body = h("div", { class: "body" });
    sheets.set(line, { node: h("div", { class: "sheet", "aria-hidden": "true" }, title, h("p", { class: "line-text" }, ...typeset(LINES[line - 1][2])), h("p", { class: "meaning" }, ...typeset(MEANING[line] || "")), body), title, body, shows: "" });
    $("formula").append(sheets.get(line).node);
  }
  return sheets.get(line);
}
const writeBody = ({ body }, [symbols, numbers]) => patch(body, [hv("div", { class: "symbols" }, symbols), hv("div", { class: "numbers" }, numbers)]);
// The sheet of a moment, with that moment's numbers; it may have been written ahead.
function writeMoment(i) {
  const line = E.line[i], sheet = sheetOf(line), shows = `${i} ${digits} ${chosenEntry}`;
  if (sheet.shows === shows) return sheet;
  patch(sheet.title, [line === 16 ? "Line 16, the result" : `Line ${line}, step ${E.j[i]}`, hv("span", { class: `tag ${backward(i) ? "backward" : "forward"}` }, sides(i)), E.replay[i] ? hv("span", { class: "tag replay" }, "replay") : null]);
  writeBody(sheet, formula(i));
  sheet.shows = shows;
  return sheet;
}
function drawFormula(i) {
  const sheet = writeMoment(i);
  if (sheet === sheetNow) return;
  if (sheetNow) { sheetNow.node.classList.remove("current"); sheetNow.node.setAttribute("aria-hidden", "true"); }
  sheet.node.classList.add("current");
  sheet.node.removeAttribute("aria-hidden");
  sheetNow = sheet;
}
// The height that the longest writing of any line takes: the panel keeps it, so that no line is cut and none moves the stage.
const lengthOf = (x) => (x === null || x === undefined ? 0 : typeof x === "object" ? x.children.reduce((t, c) => t + lengthOf(c), 0) : String(x).length);
function measureFormulas() {
  const longest = new Map(), stride = Math.max(1, Math.ceil(count / 200));
  for (let i = 0; i < count; i++) {
    if (i % stride && longest.has(E.line[i])) continue;
    const best = longest.get(E.line[i]) || [[], []];
    formula(i).forEach((rows, part) => rows.forEach((row, n) => { if (!best[part][n] || lengthOf(row) > lengthOf(best[part][n])) best[part][n] = row; }));
    longest.set(E.line[i], best);
  }
  const holder = $("formula"), nodes = [...longest].map(([line, rows]) => {
    const sheet = sheetOf(line);
    sheet.shows = "";
    writeBody(sheet, rows);
    return sheet.node;
  });
  const tallest = Math.max(...nodes.map((node) => node.getBoundingClientRect().height)), rest = $("now").offsetHeight - holder.clientHeight;
  $("stage").parentElement.style.setProperty("--line", `${Math.ceil(tallest + rest + 2)}px`);
  if (sheetNow) drawFormula(at); // the moment's own numbers again
}
