// The step as a picture: boxes for θ_j, G_j, θ_{j+1}, s and φ; arrows with their factor and today's number.
// Forwards the boxes hold the values; backwards the same boxes hold their prices, and the arrows are read the other way.
const STEP_BOXES = {
  theta: [0.16, 0.66, "θ_j"], next: [0.84, 0.66, "θ_j₊₁"], G: [0.5, 0.36, "G_j"], opt: [0.84, 0.1, "φ_opt"], loss: [0.16, 0.1, "φ_loss"],
  s: [0.16, 0.93, "s_j"], snext: [0.84, 0.93, "s_j₊₁"],
};
const hasLoss = D.A.some((leaf) => leaf.kind === "A_loss"), hasOpt = D.A.some((leaf) => leaf.kind === "A_opt");
const direct = D.rule ? "1" : "∂θ′/∂θ", followed_ = D.rule === "sgd" ? "−lr" : "∂θ′/∂G";
// from, to, factor, where its label stands along it, the road's name, what it says
const STEP_EDGES = [
  { from: "theta", to: "next", factor: direct, at: 0.5, dy: 14, name: "direct", lines: [6, 14], says: "The straight road: θ_j arrives at θ_j₊₁ as it is. Backwards, what B_j₊₁ pays for it arrives at once." },
  { from: "theta", to: "G", factor: "∇²ℓ", at: 0.42, dy: -7, name: "curvature", lines: [5, 14], says: "Moving θ_j turns the slope G_j by the Hessian ∇²ℓ. Backwards this is the curvature term V_j·∇²ℓ of line 14." },
  { from: "G", to: "next", factor: followed_, at: 0.62, dy: 1, name: "through", lines: [6, 11], says: "The step follows the slope by O_j. Backwards line 11: V_j is what B_j₊₁ pays for the slope." },
  { from: "G", to: "snext", factor: "∂s′/∂G", at: 0.3, dy: 6, name: "into", lines: [6, 11], state: true, says: "The optimizer remembers the slope. Backwards S_j₊₁ pays for it, the second part of V_j." },
  { from: "s", to: "snext", factor: "∂s′/∂s", at: 0.5, dy: 12, name: "keep", lines: [6, 14], state: true, says: "What the optimizer keeps of its memory. Backwards it is how S_j₊₁ reaches S_j." },
  { from: "s", to: "next", factor: "", at: 0.3, dy: -2, name: "use", lines: [6, 14], state: true, says: "The memory moves θ. Backwards this is how S appears at all, although S_J = 0." },
  { from: "opt", to: "next", factor: "∂θ′/∂φ", at: 0.5, dy: 4, name: "opt", lines: [6, 12], says: "This step used the hyperparameters. Backwards line 12: its term of A_opt." },
  { from: "loss", to: "G", factor: "∇φ∇θ ℓ", at: 0.5, dy: 6, name: "loss", lines: [5, 13], says: "The slope used φ_loss. Backwards line 13: its term of A_loss, from V_j." },
].filter((e) => (!e.state || D.slots.length) && (e.name !== "opt" || hasOpt) && (e.name !== "loss" || hasLoss));
const LIT = { 5: ["curvature", "loss"], 6: ["direct", "through", "into", "keep", "use", "opt"], 8: [], 9: [], 11: ["through", "into"], 12: ["opt"], 13: ["loss"], 14: ["direct", "curvature", "keep", "use"], 16: [] };
const FRESH = { 5: ["G"], 6: ["next", "snext"], 9: ["next", "snext"], 11: ["G"], 12: ["opt"], 13: ["loss"], 14: ["theta", "s"] };
const CLOSES = { curvature: ["curvature"], state: ["into", "keep", "use"] };

const shortNumbers = (name, j) => {
  const v = flat(name, j);
  if (v && v.length <= 2) { const text = vectorText(v, (x) => brief(x, v.length > 1 ? 3 : 4)); return text.length > 17 ? vectorText(v, (x) => brief(x, 2)) : text; }
  const one = options[chosenEntry] && options[chosenEntry].at(name, j);
  return one === null || one === undefined ? (norm(name, j) === null || norm(name, j) === undefined ? "" : `‖${brief(norm(name, j))}‖`) : brief(one);
};
const slotOf = (letter, j) => (D.slots.length ? shortNumbers(`${letter}.${D.slots[0]}`, j) : "");
const firstTerm = (kind, j) => { const leaf = D.A.find((l) => l.kind === kind && (l.shape.length === 0 || l.inc.some((x) => x && x.v))); return leaf && leaf.inc[j] ? brief(single(leaf.inc[j])) : ""; };
// What stands in the boxes and on the arrows, for a step and a side of the run; line says how far it has come.
function stepNumbers(i) {
  const line = E.line[i], j = Math.min(E.line[i] === 16 ? 0 : E.j[i], Math.max(0, J - 1)), back = backward(i);
  if (!back) {
    const done = line >= 6;
    return { j, back, box: { theta: shortNumbers("theta", j), G: shortNumbers("G", j), next: done ? shortNumbers("theta", j + 1) : "", s: slotOf("s", j), snext: done ? slotOf("s", j + 1) : "", opt: optText(), loss: lossText() }, edge: {} };
  }
  const atEnd = line <= 9 && E.j[i] === J, v = line >= 11, o = line >= 12, p = line >= 13, b = line >= 14;
  return { j, back, box: {
    theta: b && !atEnd ? shortNumbers("B", j) : "", next: line === 8 ? "" : shortNumbers("B", j + 1), G: v ? shortNumbers("V", j) : "", s: b ? slotOf("S", j) : "", snext: line === 8 ? "" : slotOf("S", j + 1), opt: o ? firstTerm("A_opt", j) : "", loss: p ? firstTerm("A_loss", j) : "" },
  edge: { direct: b ? shortNumbers("direct", j) : "", curvature: b ? shortNumbers("curvature", j) : "", through: v && D.slots.length ? shortNumbers("V_theta", j) : "", into: v ? shortNumbers("V_state", j) : "" } };
}
const optText = () => { const [name, x] = Object.entries(D.hyper).find(([, v]) => v !== 0) || []; return name ? `${name} = ${brief(x)}` : ""; };
const lossText = () => { const leaf = D.A.find((l) => l.kind === "A_loss"); return leaf ? leafName(leaf).slice(0, 14) : ""; };
const BACK_SYMBOLS = { theta: "B_j", next: "B_j₊₁", G: "V_j", s: "S_j", snext: "S_j₊₁", opt: "A_opt +=", loss: "A_loss +=" };
let pickedEdge = null, edgeSays = "";
function drawStep(i) {
  const holder = $("step").querySelector(".draw"), [W, H] = sizeOf(holder), { j, back, box, edge } = stepNumbers(i), line = E.line[i];
  const flatBoxes = H < (D.slots.length ? 215 : 165) * em(), bw = Math.min(flatBoxes ? 170 * em() : 148 * em(), W * (flatBoxes ? 0.42 : 0.345)), bh = (flatBoxes ? 21 : 40) * em(), tight = D.slots.length ? 1 : flatBoxes ? 1.1 : 1.12;
  const centre = (name) => { const [fx, fy] = STEP_BOXES[name]; return [Math.max(bw / 2 + 2, Math.min(W - bw / 2 - 2, fx * W)), Math.min(H - bh / 2 - 2, Math.max(bh / 2 + 2, fy * H * tight))]; };
  const indexed = (symbol) => symbol.replace("_j₊₁", subscript(j + 1)).replace("_j", subscript(j));
  const labels = []; // over all arrows, under the boxes
  const parts = STEP_EDGES.map((e) => {
    const [x1, y1] = centre(e.from), [x2, y2] = centre(e.to), angle = Math.atan2(y2 - y1, x2 - x1), cos = Math.cos(angle), sin = Math.sin(angle);
    const reach = Math.min(Math.abs((bw / 2 + 3) / (cos || 1e-9)), Math.abs((bh / 2 + 3) / (sin || 1e-9)));
    let [ax, ay, bx, by] = [x1 + reach * cos, y1 + reach * sin, x2 - reach * cos, y2 - reach * sin];
    if (back) [ax, ay, bx, by] = [bx, by, ax, ay]; // the same arrow, turned round
    const turn_ = Math.atan2(by - ay, bx - ax), wing = (side) => `${(bx - 8 * Math.cos(turn_ + side)).toFixed(1)} ${(by - 8 * Math.sin(turn_ + side)).toFixed(1)}`;
    const along = flatBoxes && !e.state ? 0.5 : back ? 1 - e.at : e.at, tx = ax + along * (bx - ax), ty = ay + along * (by - ay), number = edge[e.name];
    const lit = (LIT[line] || []).includes(e.name) && e.lines.includes(line), closed = Object.entries(CLOSES).some(([k, names]) => changedNow.closed[k] && names.includes(e.name));
    const words = e.says.replaceAll("_j₊₁", subscript(j + 1)).replaceAll("_j", subscript(j));
    const head = `${indexed(STEP_BOXES[e.from][2])} → ${indexed(STEP_BOXES[e.to][2])}${e.factor ? `, factor ${e.factor}` : ""}${number ? `, now ${number}` : ""}: `;
    const say = () => { pickedEdge = e.name; if (edgeSays !== head + words) { edgeSays = head + words; $("edge").replaceChildren(h("b", null, ...typeset(head)), ...typeset(words)); } };
    const node = sv("g", { class: `edge-line${lit ? " lit" : ""}${closed ? " closed" : ""}`, role: "button", tabindex: 0, "data-edge": e.name, "aria-label": `Arrow from ${STEP_BOXES[e.from][2]} to ${STEP_BOXES[e.to][2]}: ${words}`, click: say, focus: say, keydown: (event) => { if (event.key === "Enter") say(); } },
      sv("path", { class: "grip", d: `M${ax} ${ay}L${bx} ${by}` }), sv("path", { d: `M${ax.toFixed(1)} ${ay.toFixed(1)}L${bx.toFixed(1)} ${by.toFixed(1)}M${wing(0.45)}L${bx.toFixed(1)} ${by.toFixed(1)}L${wing(-0.45)}` }));
    const label = (flatBoxes && e.state) || (e.name === "into" && !lit) ? "" : (e.state || e.name === "through") && !lit ? e.factor : number || e.factor;
    // What is longer than the straight arrow stands below it.
    const below = e.name !== "direct" || label.length < 5 ? null : flatBoxes ? (D.slots.length ? 19 : 22) * em() : label.length > 16 ? bh / 2 + 13 : null;
    labels.push(sv("g", { class: `edge-line label${lit ? " lit" : ""}`, "aria-hidden": "true" }, sv("text", { x: tx, y: ty + (below ?? (flatBoxes ? 4 : e.dy)), "text-anchor": e.name === "into" ? "end" : "middle" }, label)));
    if (pickedEdge === e.name) say();
    return node;
  });
  const boxes = Object.keys(STEP_BOXES).filter((k) => (k !== "s" && k !== "snext" || D.slots.length) && (k !== "opt" || hasOpt) && (k !== "loss" || hasLoss)).map((k) => {
    const [x, y] = centre(k), fresh = (FRESH[line] || []).includes(k), symbol = back ? BACK_SYMBOLS[k] : STEP_BOXES[k][2];
    const tip = { theta: back ? "B" : "θ", next: back ? "B" : "θ", G: back ? "V" : "G", s: back ? "S" : "s", snext: back ? "S" : "s", opt: back ? "A" : "φ", loss: back ? "A" : "φ" }[k];
    return sv("g", { class: `box${fresh ? " new" : ""}`, "data-box": k, "data-symbol": tip }, sv("rect", { x: x - bw / 2, y: y - bh / 2, width: bw, height: bh }),
      ...(flatBoxes ? [sv("text", { class: "number", x, y: y + 4, "text-anchor": "middle" }, sv("tspan", { class: "symbol" }, ...svgSymbols(indexed(symbol))), sv("tspan", null, ` ${box[k] || "·"}`))]
        : [sv("text", { class: "symbol", x, y: y - bh / 2 + bh * 0.42, "text-anchor": "middle" }, ...svgSymbols(indexed(symbol))), sv("text", { class: "number", x, y: y + bh * 0.36, "text-anchor": "middle" }, box[k] || "·")]));
  });
  patch(holder, [sv("svg", { role: "group", viewBox: `0 0 ${W} ${H}`, "aria-label": `Step ${j}, read ${back ? "backwards: the boxes hold prices" : "forwards"}` }, ground(W, H), parts, labels, boxes)]);
  write("step-title", `Step ${j}, read ${back ? "backwards ←" : "forwards →"}`);
  if (!pickedEdge) write("edge", "Tap an arrow: what it carries, and where from.");
}
