// The panels: each draws itself for one moment of the run.
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
function position(index, shape) {
  const out = [];
  for (let d = shape.length - 1; d >= 0; d--) { out.unshift(index % shape[d]); index = Math.floor(index / shape[d]); }
  return `[${out.join(", ")}]`;
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

const moving = []; // charts whose cursor follows j
const track = (chart) => { moving.push(chart); return chart; };
const growing = [];
function drawGrowth() {
  const figures = D.A.slice(0, 24).map((leaf) => {
    const entries = leaf.shape.reduce((a, b) => a * b, 1), readable = leaf.inc.some((x) => x && x.v);
    const holder = h("div"), numbers = h("div", { class: "scroll", tabindex: 0 }), now = h("p", { class: "facts" });
    const pick = (x, k) => (!x ? null : x.v ? x.v[k] : x.n);
    let k = 0;
    const draw = () => {
      const inc = leaf.inc.map((x) => pick(x, k)), after = leaf.after.map((x) => pick(x, k));
      const chart = curves({ series: [["increment", inc], ["sum so far", after]], bars: true, description: `Increments of A for ${leafName(leaf)} by step, and their sum` });
      holder.replaceChildren(chart);
      holder.at = (i) => {
        const line = E.line[i], done = backward(i) ? (line === 16 ? 0 : line >= (leaf.kind === "A_opt" ? 12 : 13) ? E.j[i] : E.j[i] + 1) : J + 1;
        for (const r of chart.querySelectorAll("[data-j]")) r.style.opacity = Number(r.dataset.j) >= done ? 1 : 0.22;
        chart.move(E.j[i]);
        const sum = line === 16 ? pick(leaf.final, k) : done >= J ? (backward(i) ? pick(leaf.start, k) : null) : after[done];
        now.replaceChildren(sum === null || sum === undefined ? "Not begun: the sweep fills it from right to left." : h("span", { class: "value" }, `A = ${fmt(sum)}`), sum === null || sum === undefined ? "" : ` after the terms of step ${Math.min(done, J)} and later`);
      };
      numbers.replaceChildren(h("table", null, h("thead", null, h("tr", null, h("th", null, "step j"), h("th", { class: "n" }, "increment"), h("th", { class: "n" }, "sum so far"))), h("tbody", null, ...inc.map((x, j) => h("tr", null, h("td", null, j), h("td", { class: "n" }, fmt(x)), h("td", { class: "n" }, fmt(after[j])))).reverse())));
    };
    draw();
    holder.draw = draw;
    growing.push(holder);
    const select = readable && entries > 1 ? h("label", { class: "small" }, "Entry ", h("select", { change: (e) => { k = Number(e.target.value); draw(); holder.at(at); } }, ...Array.from({ length: entries }, (_, n) => h("option", { value: n }, position(n, leaf.shape))))) : null;
    return h("figure", null, h("h3", null, `A of ${leafName(leaf)}`, readable || entries === 1 ? "" : " (norms)"), select, now, holder, h("details", null, h("summary", null, "Every term as a number"), numbers));
  });
  $("growth").hidden = !figures.length || !D.events.line.includes(12);
  $("growth-body").replaceChildren(...figures);
}
function drawTerms() {
  const series = [["‖optimizer term‖", D.q.direct], ["‖curvature term‖", D.q.curvature]].filter(([, q]) => q).map(([label, q]) => [label, q.norm.slice(0, J)]);
  const B = D.q.B ? [["‖B_j‖", D.q.B.norm]] : [];
  const all = [...series, ...B];
  if (!series.length) { $("terms").replaceChildren(h("p", { class: "facts" }, "The run did not come to line 14.")); return; }
  const where = h("div");
  const chart = track(curves({ series: all, description: "Norms of the optimizer term, the curvature term and B by step" }));
  growing.push({ at: (i) => where.replaceChildren(legend(all, backward(i) ? Math.min(E.j[i], J - 1) : undefined)), draw() {} });
  $("terms").replaceChildren(where, chart, h("p", { class: "facts" }, "Read from right to left, as the sweep runs. Where the curvature term is small, second order hardly matters; where it is as large as the optimizer term, dropping it is wrong."));
}
function followOptions() {
  const options = [];
  D.tensors.forEach((tensor, t) => {
    const size = tensor.shape.reduce((a, b) => a * b, 1), whole = D.q.theta.cells.every((c) => c && c[t].v);
    for (let k = 0; whole && k < size && options.length < 300; k++) {
      options.push({ label: tensor.shape.length ? tensor.name + position(k, tensor.shape) : tensor.name, at: (name, j) => { const c = cells(name, j); return c ? c[t].v[k] : null; } });
    }
  });
  const known = new Set(options.map((o) => o.label));
  for (const one of D.follow) if (!known.has(one.label)) options.push({ label: one.label, at: (name, j) => (one.q[name] ? one.q[name][j] : null) });
  return options;
}
let options = [], followed = 0;
const followCharts = [];
function drawFollow() {
  const one = options[followed];
  followCharts.length = 0;
  const rows = [["θ", "theta", J + 1], ["G", "G", J], ["B", "B", J + 1], ["V", "V", J]].filter(([, name]) => D.q[name]).map(([symbol, name, length]) => {
    const values = Array.from({ length }, (_, j) => one.at(name, j)), text = h("span", { class: "value" });
    const chart = curves({ series: [[symbol, values]], height: 92, description: `${symbol} of ${one.label} by step` });
    followCharts.push({ move(i) { const hit = shown(i).find(([n]) => n === name); const j = hit ? hit[1] : Math.min(E.j[i], length - 1); chart.move(j); text.textContent = `${symbol}${subscript(j)} = ${fmt(values[j])}`; } });
    return h("div", null, text, chart);
  });
  $("follow-body").replaceChildren(...rows);
  for (const chart of followCharts) chart.move(at);
}
function matrixView(title, values, n, caption) {
  const rows = values.length / n, peak = Math.max(...values.map((x) => Math.abs(value(x))).filter(Number.isFinite), 0);
  const mix = (x) => `color-mix(in srgb, var(--${value(x) < 0 ? "negative" : "positive"}) ${Math.round(55 * depth(value(x), peak))}%, transparent)`;
  const body = n <= 6 ? h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "matrix", "aria-label": title }, h("tbody", null, ...Array.from({ length: rows }, (_, r) => h("tr", null, ...values.slice(r * n, r * n + n).map((x) => h("td", { style: { background: mix(x) } }, fmt(x))))))))
    : heat(values, n, `${title}, ${rows} by ${n}, largest magnitude ${fmt(peak)}`);
  if (n > 6) body.style.maxHeight = "none";
  return h("figure", null, h("h3", null, title), body, h("figcaption", null, caption));
}
function drawMatrices(i) {
  const j = E.line[i] === 16 ? 0 : Math.min(E.j[i], J - 1), H = D.hessian[j], Z = D.jacobian[j];
  $("matrices").hidden = !D.hessian.some(Boolean);
  if ($("matrices").hidden || $("matrices").dataset.shown === `${j} ${digits}`) return;
  $("matrices").dataset.shown = `${j} ${digits}`;
  const n = D.parameters, slots = D.rows > n ? `θ, ${D.slots.join(", ")}` : "θ";
  $("matrices-body").replaceChildren(...(H ? [
    matrixView(`∇²ℓ${subscript(j)} at θ${subscript(j)}`, H, n, "The Hessian of the inner loss. Line 14 multiplies V by it."),
    matrixView(`The step's Jacobian, ∂z${subscript(j + 1)}/∂z${subscript(j)}`, Z, D.rows, `z = (${slots}): rows what comes out, columns what goes in. It stretches by at most ${fmt(D.stretch[j])}.`),
  ] : [h("p", { class: "facts" }, "Not kept for this step.")]));
}
function drawMemory() {
  const now = E.line.map(() => [0, 0]);
  for (const [kind, , from, to] of D.held) for (let i = from; i < to; i++) now[i][kind === "graph" ? 1 : 0]++;
  const again = E.replay.reduce((a, r, i) => a + (r && E.line[i] === 5 ? 1 : 0), 0);
  const series = [["states stored", now.map((x) => x[0])], ["graphs kept", now.map((x) => x[1])]];
  const marker = curves({ series, x: "moment", height: 170, log: false, description: "Stored states and kept graphs at each moment" });
  const parts = [h("figure", null, h("h3", null, "Kept by the schedule"), legend(series), marker)], memory = E.memory.map((b, i) => (b ? b / 1048576 : null));
  growing.push({ at: (i) => marker.move(i), draw() {} });
  if (memory.some(Boolean)) {
    const chart = curves({ series: [["MiB", memory]], x: "moment", height: 120, log: false, description: "Memory of the whole process in MiB at each moment" });
    growing.push({ at: (i) => chart.move(i), draw() {} });
    parts.push(h("figure", null, h("h3", null, "Memory of the process, MiB"), chart));
  }
  $("schedule").textContent = `${D.schedule}: ${again ? `${again} gradients were computed again for the sweep.` : "no step was run twice."} The time line marks what is held now: squares are stored states, diamonds kept graphs.`;
  $("memory").replaceChildren(...parts);
}
function drawLesson() {
  const notes = D.notes;
  if (notes.summary) { $("summary").textContent = notes.summary; $("summary").hidden = false; }
  if (notes.sections) {
    $("lesson").hidden = false;
    $("lesson-body").replaceChildren(h("div", { class: "sections" }, ...notes.sections.map((part) => h("div", null, h("h3", null, ...typeset(part.heading)), h("p", null, ...typeset(part.text)),
      h("div", { class: "go" }, ...part.go.map(([text, line, j]) => h("button", { type: "button", click: () => { const to = findAny(line, j); if (to >= 0) { show(to, true); $("now").scrollIntoView({ block: "center" }); } } }, ...typeset(text))))))));
  }
  if (notes.charts && notes.charts.length) {
    $("charts").hidden = false;
    $("charts-body").replaceChildren(...notes.charts.map((c) => h("figure", null, h("h3", null, ...typeset(c.title)), legend(c.series), (c.x === "step j" ? track : (x) => x)(curves({ series: c.series, log: c.log, x: c.x, height: 230, cursor: c.x === "step j", description: `${c.title}. ${c.caption}` })), h("figcaption", null, ...typeset(c.caption)))));
  }
  if (notes.checks) { $("checks").hidden = false; drawChecks(); }
}
function drawChecks() {
  const tiny = (x) => x.toExponential(1).replace("e+0", "").replace(/-/g, "−");
  $("checks-body").replaceChildren(h("table", null,
    h("thead", null, h("tr", null, ...["", "quantity", "engine", "oracle", "difference", "allowed", "oracle from"].map((t, n) => h("th", { class: n > 1 && n < 6 ? "n" : null }, t)))),
    h("tbody", null, ...D.notes.checks.map(([name, engine, oracle, gap, allowed, source, agrees]) => h("tr", null,
      h("td", { class: agrees ? "ok" : "wrong" }, agrees ? "✓ agrees" : "✗ differs"), h("td", null, ...typeset(name)), h("td", { class: "n" }, fmt(engine)), h("td", { class: "n" }, fmt(oracle)), h("td", { class: "n" }, tiny(gap)), h("td", { class: "n" }, tiny(allowed)), h("td", null, ...typeset(source)))))));
}
