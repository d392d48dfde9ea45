// Symbols explain themselves: on hover, on focus and when tapped.
const GLOSSARY = {
  "θ": ["θ", "the parameters that the inner loop trains; θ_j stands before step j, θ_J at the end"],
  "s": ["s", "the optimizer's state, such as a momentum buffer: what it remembers from step to step"],
  "G": ["G_j", "the gradient of the inner loss ℓ_j at θ_j"],
  "ℓ": ["ℓ_j", "the inner loss of step j: what training makes small"],
  "L": ["L_val", "the validation loss at the end: what the meta-gradient is the gradient of"],
  "φ": ["φ", "the meta-parameters: what is set before training, φ_opt for the optimizer, φ_loss inside the loss"],
  "A": ["A", "the meta-gradient: how L_val changes with a meta-parameter, summed over all steps that use it"],
  "B": ["B_j", "the price of a nudge: move θ_j by δ, and L_val moves by B_j·δ"],
  "S": ["S_j", "the price of a nudge of the optimizer's state s_j"],
  "V": ["V_j", "the price of a nudge of the gradient G_j: what reaches it from θ and s one step later"],
  "O": ["O_j", "how far the step follows its gradient, ∂θ′/∂G; for SGD it is −lr"],
  "H": ["H", "the Hessian ∇²ℓ: how the slope G turns when θ moves, the curvature of the valley"],
  "J": ["J", "the number of inner steps"],
  "δ": ["δ", "a nudge: a small change of θ_j, made by hand"],
  "∇": ["∇", "the gradient with respect to what stands below it; ∇² is the matrix of second derivatives"],
  "∂": ["∂", "how much the upper quantity moves for a small move of the lower one, all else held"],
  "lr": ["lr", "the learning rate: how far a step of the optimizer goes"],
  "μ": ["μ", "the momentum: how much of its last move the optimizer keeps"],
  "ε": ["ε", "a weight, or Adam's eps: the text says which"],
  "m": ["m", "Adam's running mean of the gradient (exp_avg)"],
  "v": ["v", "Adam's running mean of the squared gradient (exp_avg_sq)"],
  "b": ["b", "the momentum buffer: the optimizer's memory of its moves"],
};
const WORDS = /((?<![\p{L}\p{N}_])d?[\p{L}]_[\p{L}\p{N}]+(?:₊₁)?(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}_'’])(?:lr|[θsGLφBSVOHJδℓμ∇])(?![\p{L}\p{N}_'’]))/u;
const known = (symbol) => GLOSSARY[symbol] || GLOSSARY[symbol[0]];
// A symbol as a word of the text. Only the first of a kind in a paragraph takes the focus.
function symbolWord(text, seen) {
  const parts = /^(d?\p{L})_([^_]+)$/u.exec(text), key = parts ? parts[1] : text;
  const children = parts ? [parts[1], h("sub", null, parts[2].replace("₊₁", "+1"))] : [text];
  if (!seen || !known(key)) return children;
  const first = !seen.has(key);
  seen.add(key);
  return [h("span", { class: "symbol-word", "data-symbol": key, tabindex: first ? 0 : null, role: first ? "button" : null, "aria-label": first ? `${text.replace("_", " ")}: ${known(key)[1]}` : null }, ...children)];
}
// Text with real subscripts; with a set `seen`, its symbols explain themselves.
const typeset = (text, seen) => String(text).split(WORDS).filter(Boolean).map((part) => (WORDS.test(part) && part.length < 24 && (seen || part.includes("_")) ? symbolWord(part, seen) : part)).flat();

// The text of what stands in the document with its subscripts set, as it was before.
function rawText(node) {
  const copy = node.cloneNode(true);
  for (const sub of copy.querySelectorAll("sub")) sub.textContent = `_${sub.textContent.replace("+1", "₊₁")}`;
  return copy.textContent.trim();
}
// The same inside a drawing, where there is no sub element.
const svgSymbols = (text) => text.split(/_(opt|loss|val|j)/).map((part, n) => (n % 2 ? sv("tspan", { dy: "0.25em", "font-size": "0.8em" }, part) : sv("tspan", n ? { dy: "-0.2em" } : null, part)));
const svgLabel = (text) => svgSymbols(text).map((part) => drawn(null, part)); // once for all
function tipFor(target) {
  const holder = target instanceof Element ? target.closest("[data-symbol]") : null, tip = $("tip");
  if (!holder || !known(holder.dataset.symbol)) { tip.hidden = true; return; }
  const [symbol, meaning] = known(holder.dataset.symbol), box = holder.getBoundingClientRect();
  tip.replaceChildren(h("b", null, ...typeset(symbol)), " — ", ...typeset(meaning));
  tip.hidden = false;
  tipSince = performance.now();
  const size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(innerWidth - size.width - 4, box.left))}px`;
  tip.style.top = `${box.bottom + size.height + 6 < innerHeight ? box.bottom + 4 : box.top - size.height - 4}px`;
}
for (const event of ["mouseover", "focusin", "click"]) document.addEventListener(event, (e) => tipFor(e.target));
document.addEventListener("focusout", () => { $("tip").hidden = true; });
let tipSince = 0; // what scrolls because a symbol took the focus does not take its explanation away
document.addEventListener("scroll", () => { if (performance.now() - tipSince > 300) $("tip").hidden = true; }, true);
document.addEventListener("keydown", (e) => { if (e.key === "Escape") $("tip").hidden = true; });
function legendList() {
  return h("dl", { class: "legend-list" }, ...Object.entries(GLOSSARY).filter(([key]) => (key !== "m" && key !== "v" || D.rule === "adam") && (key !== "b" && key !== "μ" || D.rule === "momentum")).flatMap(([, [symbol, meaning]]) => [h("dt", null, ...typeset(symbol)), h("dd", null, ...typeset(meaning))]));
}
