// For a run of more than a few parameters: where B grows on its way back, by how much, and through what.
const roughly = (x) => (typeof x === "number" && x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(2).replace(/-/g, "−") : brief(x, 3));
const logOf = (x) => (value(x) > 0 && Number.isFinite(value(x)) ? Math.log10(value(x)) : null);
function tensorMap(name) {
  const rows = D.tensors.length, columns = D.q[name].cells.length, at_ = (r, j) => { const c = cells(name, j); return c && c[r] ? c[r].n : undefined; };
  const logs = D.tensors.flatMap((_, r) => Array.from({ length: columns }, (_, j) => logOf(at_(r, j)))), finite = logs.filter((x) => x !== null);
  const low = Math.min(...finite), span = Math.max(...finite) - low || 1, says = h("p", { class: "facts", "aria-live": "off" });
  const rest = finite.length ? `Pale ${roughly(10 ** low)}, full ${roughly(10 ** (low + span))}, on a logarithmic scale; empty where it is 0 or was not kept.` : "No norms by tensor were kept.";
  const map = heat(logs.map((x) => (x === null ? 0 : 0.06 + (0.94 * (x - low)) / span)), columns, `Map of the norm of ${name} by tensor, from the first above to the last, and by step from left to right`, 1, (x) => x);
  Object.assign(map.style, { aspectRatio: "auto", maxHeight: "none", height: `${Math.min(26, 1.2 * rows)}rem`, cursor: "pointer" });
  const cell = (event) => { const box = map.getBoundingClientRect(), part = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x * n))); return [part((event.clientY - box.top) / box.height, rows), part((event.clientX - box.left) / box.width, columns)]; };
  map.addEventListener("mousemove", (event) => { const [r, j] = cell(event); says.textContent = `${D.tensors[r].name}, step ${j}: ‖${name}‖ = ${fmt(at_(r, j))}`; });
  map.addEventListener("mouseleave", () => { says.textContent = rest; });
  map.addEventListener("click", (event) => { const to = findAny(14, Math.min(cell(event)[1], J - 1)); if (to >= 0) show(to, true); });
  says.textContent = rest;
  const named_ = rows <= 21 ? h("ol", { class: "rows", "aria-hidden": "true" }, ...D.tensors.map((t) => h("li", { title: t.name }, t.name))) : null;
  return [h("div", { class: "tensor-map" }, named_, map), says];
}
// The steps that multiply ‖B‖ by most, the worst first.
function worstSteps() {
  const B = D.q.B.norm.map(value), grew = Array.from({ length: J }, (_, j) => (B[j + 1] > 0 && Number.isFinite(B[j + 1]) ? (Number.isFinite(B[j]) ? B[j] / B[j + 1] : Infinity) : null));
  return grew.map((factor, j) => ({ j, factor })).filter((one) => one.factor > 1).sort((a, b) => b.factor - a.factor).slice(0, 5);
}
function causeOf(j) {
  const terms = ["direct", "curvature", ...D.slots.map((x) => `S.${x}`)].map((name) => [name, value(norm(name, j))]).filter(([, x]) => Number.isFinite(x)), two = terms.slice(0, 2);
  const cause = two.length < 2 ? "not finite" : two[1][1] > two[0][1] ? `curvature, ${roughly(two[1][1])} beside ${roughly(two[0][1])} of the optimizer` : `the optimizer, ${roughly(two[0][1])} beside ${roughly(two[1][1])} of the curvature`;
  const parts = (cells("B", j) || []).map((c, k) => [value(c.n), k]).filter(([x]) => Number.isFinite(x)).sort((a, b) => b[0] - a[0]), most = parts.length ? D.tensors[parts[0][1]] : null;
  const top = most && cells("B", j)[parts[0][1]].top, entry = top && top[0] ? `${most.name}${position(top[0][0], most.shape)} = ${roughly(top[0][1])}` : most ? most.name : "";
  const steep = D.steepest[j], eps_ = D.hyper.eps;
  const slope = steep ? `O reaches ${roughly(steep[2])} in ${D.tensors[steep[0]].name}, where G = ${roughly(steep[3])}${typeof eps_ === "number" && Math.abs(value(steep[3])) < eps_ ? `, less than eps = ${roughly(eps_)}` : ""}` : "";
  return { cause, entry, slope };
}
function drawWhereItGrows() {
  const section = $("where-it-grows");
  section.hidden = !(D.parameters > FEW && D.q.B && D.q.direct);
  if (section.hidden) return;
  const names = ["B", ...D.slots.map((x) => `S.${x}`), "V"].filter((name) => D.q[name]), mapHolder = h("div"), draw = (name) => mapHolder.replaceChildren(...tensorMap(name));
  draw("B");
  const rows = worstSteps().map(({ j, factor }) => { const { cause, entry, slope } = causeOf(j); return h("tr", null, h("td", null, h("button", { type: "button", "data-worst": j, click: () => { show(findAny(14, j), true); $("now").scrollIntoView({ block: "center" }); } }, `step ${j}`)), h("td", { class: "n" }, `×${roughly(factor)}`), h("td", null, cause), h("td", null, entry), h("td", null, slope)); });
  const B = D.q.B.norm.map(value), factors = Array.from({ length: J }, (_, j) => (B[j + 1] > 0 && Number.isFinite(B[j] / B[j + 1]) ? B[j] / B[j + 1] : null));
  const bars_ = track(curves({ series: [["factor", factors]], bars: true, y: "factor", description: "The norm of B at a step over that one step later" }));
  const kept = D.A.filter((leaf) => leaf.after.every((x) => x)).slice(0, 4).map((leaf) => {
    const values = Array.from({ length: J }, (_, k) => (leaf.after[J - 1 - k].v && leaf.shape.length === 0 ? leaf.after[J - 1 - k].v[0] : leaf.after[J - 1 - k].n));
    return h("figure", null, h("h3", null, `${leaf.shape.length ? "Norm of A" : "A"} of ${leafName(leaf)}, only the last k steps counted`), curves({ series: [["A", values]], x: "k", y: "A", offset: 1, cursor: false, description: `A of ${leafName(leaf)} against the number of last steps that are counted` }));
  });
  $("where-it-grows-body").replaceChildren(
    !rows.length ? h("p", { class: "facts" }, "No step makes B larger on its way back.") : h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Worst steps" }, h("table", { "aria-label": "The steps that multiply the norm of B by most" }, h("thead", null, h("tr", null, ...["worst steps", "‖B_j‖/‖B_j₊₁‖", "mostly through", "largest entry of B", "the rule"].map((t, n) => h("th", { class: n === 1 ? "n" : null, scope: "col" }, ...typeset(t))))), h("tbody", null, ...rows))),
    h("div", { class: "grid wide" },
      h("figure", null, h("h3", null, "Tensor by step ", h("label", { class: "small" }, "of ", h("select", { id: "map-of", change: (e) => draw(e.target.value) }, ...names.map((n) => h("option", { value: n }, `‖${n}‖`))))), mapHolder),
      h("figure", null, h("h3", null, "What each step multiplies ‖B‖ by"), bars_), ...kept));
}
