// Every quantity that a moment shows, in full where it is small.
const ABOUT = {
  theta: ["θ", "parameters"], G: ["G", "gradient of the inner loss"], O: ["O", "∂θ′/∂G, how far the step follows the gradient"],
  V: ["V", "∂L/∂G, the adjoint of the gradient"], B: ["B", "∂L/∂θ, the adjoint of the parameters"],
  direct: ["B, optimizer term", "what reaches B past the loss"], curvature: ["B, curvature term", "V·∇²ℓ, what reaches B through the gradient"],
};
function about(name) {
  if (ABOUT[name]) return ABOUT[name];
  const [letter, slot] = [name[0], name.slice(2)];
  return letter === "s" ? [`s ${slot}`, "optimizer state"] : [`S ${slot}`, "its adjoint"];
}
// Which quantities a moment shows, with their index: [name, j, whether this line computed it].
function shown(i) {
  const line = E.line[i], j = E.j[i], s = (k, fresh) => D.slots.map((x) => [`s.${x}`, k, fresh]), S = (k, fresh) => D.slots.map((x) => [`S.${x}`, k, fresh]);
  if (line === 5 && !backward(i)) return [["theta", j, false], ["G", j, true], ...s(j, false)];
  if (line === 5) return [["theta", j, false], ["G", j, true], ...s(j, false), ["B", j + 1, false], ...S(j + 1, false)];
  if (line === 6) return [["G", j, false], ["theta", j + 1, true], ...s(j + 1, true)];
  if (line === 8) return [["theta", J, false], ...s(J, false)];
  if (line === 9) return [["theta", j, false], ["B", j, true], ...S(j, true)];
  if (line === 11) return [["B", j + 1, false], ...S(j + 1, false), ["O", j, true], ["V", j, true], ["G", j, false]];
  if (line === 12) return [["B", j + 1, false], ...S(j + 1, false), ["G", j, false], ...s(j, false)];
  if (line === 13) return [["V", j, false], ["theta", j, false]];
  if (line === 14) return [["direct", j, true], ["curvature", j, true], ["B", j, true], ...S(j, true), ["V", j, false]];
  return [["B", 0, false], ...S(0, false), ["theta", J, false]];
}
function tensorView(cell, tensor, title) {
  const { name, shape } = tensor, many = D.tensors.length > 1;
  const caption = h("div", { class: "name" }, many || shape.length ? `${name} ${shape.length ? "[" + shape.join("×") + "]" : ""}` : name);
  if (cell.v && cell.v.length <= 12) {
    const peak = Math.max(...cell.v.map((x) => Math.abs(value(x))).filter(Number.isFinite), 0);
    return h("div", { class: "tensor" }, caption, h("table", { "aria-label": `${title} ${name}` }, h("tbody", null, ...cell.v.map((x, k) =>
      h("tr", null, h("td", { class: "index" }, shape.length ? position(k, shape) : ""), h("td", { class: "n" }, fmt(x)), h("td", { class: "bar" }, bar(x, peak)))))));
  }
  if (cell.v) {
    const columns = shape.length > 1 ? cell.v.length / shape[0] : Math.min(cell.v.length, 32), peak = Math.max(...cell.v.map((x) => Math.abs(value(x))).filter(Number.isFinite), 0);
    return h("div", { class: "tensor" }, caption, heat(cell.v, columns, `Heat map of ${title} ${name}, norm ${fmt(cell.n)}, largest magnitude ${fmt(peak)}`), h("div", { class: "name" }, `norm ${fmt(cell.n)} · largest ±${fmt(peak)}`));
  }
  if (cell.h) {
    const parts = [caption, h("div", { class: "name" }, `norm ${fmt(cell.n)} · mean ${fmt(cell.mean)}`)];
    if (cell.map) {
      const [rows, columns, text] = cell.map, raw = atob(text), values = Array.from(raw, (c) => c.charCodeAt(0));
      parts.push(heat(values, columns, `Root mean square of ${title} ${name} over ${rows} by ${columns} blocks`, 255, (x) => x / 255));
    }
    parts.push(histogram(cell.h, cell.lo, cell.hi));
    parts.push(h("details", null, h("summary", null, "Largest entries"), h("table", null, h("tbody", null, ...cell.top.map(([k, x]) => h("tr", null, h("td", { class: "index" }, position(k, shape)), h("td", { class: "n" }, fmt(x))))))));
    return h("div", { class: "tensor" }, ...parts);
  }
  const text = cell.broken ? `${cell.broken} entries are not finite` : cell.n === undefined ? "not kept for this step" : `norm ${fmt(cell.n)}`;
  return h("div", { class: "tensor" }, caption, h("div", { class: "name" }, text));
}
let chosen = 0;
const MANY = 4;
function drawQuantities(i) {
  const open = new Set([...document.querySelectorAll("#quantities details[open]")].map((d) => d.closest(".quantity").dataset.name));
  $("quantities").replaceChildren(...shown(i).filter(([name, j]) => norm(name, j) !== null && norm(name, j) !== undefined).map(([name, j, fresh]) => {
    const [letter, what] = about(name), kept = cells(name, j), title = letter[0] + subscript(j) + letter.slice(1);
    const body = !kept ? [h("div", { class: "name" }, "only the norm is kept for this step")]
      : D.tensors.length > MANY
        ? [h("table", { "aria-label": `Norms of ${title}` }, h("tbody", null, ...normRows(kept))), tensorView(kept[chosen], D.tensors[chosen], title)]
        : kept.map((cell, k) => tensorView(cell, D.tensors[k], title));
    const card = h("section", { class: fresh ? "quantity new" : "quantity", "data-name": name, "data-j": j, "aria-label": `${title}, ${what}` },
      h("header", null, h("h3", null, title, fresh ? h("span", { class: "tag new" }, "computed here") : null), h("span", { class: "norm" }, "‖·‖ ", h("span", { class: "value" }, fmt(norm(name, j))))),
      h("p", { class: "what" }, what), ...body);
    if (open.has(name)) for (const d of card.querySelectorAll("details")) d.open = true;
    return card;
  }));
}
function normRows(kept) {
  const peak = Math.max(...kept.map((c) => value(c.n)).filter(Number.isFinite), 0);
  return kept.slice(0, 40).map((c, k) => h("tr", null, h("td", { class: "index" }, D.tensors[k].name.length > 22 ? "…" + D.tensors[k].name.slice(-21) : D.tensors[k].name), h("td", { class: "n" }, fmt(c.n)), h("td", { class: "bar" }, bar(c.n, peak))));
}

