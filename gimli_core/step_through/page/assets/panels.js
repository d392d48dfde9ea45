// The panels below the stage: each draws itself for the whole run, and follows the moment.
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
      const chart = curves({ series: [["increment", inc], ["sum so far", after]], bars: true, y: "A", description: `Increments of A for ${leafName(leaf)} by step, and their sum` });
      holder.replaceChildren(h("ul", { class: "legend" }, h("li", null, "bars: each step's term"), h("li", null, "line: the sum so far, from the right")), chart);
      holder.at = (i) => {
        const line = E.line[i], done = backward(i) ? (line === 16 ? 0 : line >= (leaf.kind === "A_opt" ? 12 : 13) ? E.j[i] : E.j[i] + 1) : J + 1;
        for (const r of chart.querySelectorAll("[data-j]")) r.style.fillOpacity = Number(r.dataset.j) >= done ? 1 : 0.22;
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
  if (D.unchanged) figures.unshift(besideUnchanged());
  $("growth").hidden = !figures.length || !D.events.line.includes(12);
  $("growth-body").replaceChildren(...figures);
}
// A run with an intervention, and the same run without it.
function besideUnchanged() {
  const end = (leaf) => (leaf.final ? (leaf.final.v && leaf.final.v.length === 1 ? leaf.final.v[0] : leaf.final.n) : null), rows = [["L_val", D.unchanged.val, D.val.loss], ...D.A.map((leaf) => [`${leaf.shape.reduce((a, b) => a * b, 1) === 1 ? "" : "norm of "}A of ${leafName(leaf)}`, D.unchanged.A[leaf.label], end(leaf)]), ["‖B_0‖", D.unchanged.B[0], norm("B", 0)]];
  return h("figure", { "data-unchanged": "" }, h("h3", null, "Beside the run without the change"), h("table", { class: "sums", "aria-label": "The run without the change, and with it" }, h("thead", null, h("tr", null, ...["", "unchanged", "changed", "difference"].map((t, n) => h(n ? "th" : "td", { class: n ? "n" : null, scope: n ? "col" : null }, t)))), h("tbody", null, ...rows.map(([name, exact, now]) => h("tr", null, h("td", null, ...typeset(name)), h("td", { class: "n" }, fmt(exact)), h("td", { class: "n" }, fmt(now)), h("td", { class: "n" }, fmt(typeof exact === "number" && typeof now === "number" ? now - exact : null)))))));
}
function drawTerms() {
  const series = [["‖optimizer term‖", D.q.direct], ["‖curvature term‖", D.q.curvature]].filter(([, q]) => q).map(([label, q]) => [label, q.norm.slice(0, J)]);
  const B = D.q.B ? [["‖B_j‖", D.q.B.norm]] : [];
  const exact = D.unchanged ? [["‖B_j‖ without the change", D.unchanged.B]] : [], all = [...series, ...B, ...exact];
  if (!series.length) { $("terms").replaceChildren(h("p", { class: "facts" }, "The run did not come to line 14.")); return; }
  const where = h("div");
  const chart = track(curves({ series: all, y: "norm", description: "Norms of the optimizer term, the curvature term and B by step" }));
  growing.push({ at: (i) => where.replaceChildren(legend(all, backward(i) ? Math.min(E.j[i], J - 1) : undefined)), draw() {} });
  $("terms").replaceChildren(where, chart, h("p", { class: "facts" }, "Read from right to left, as the sweep runs. Where the curvature term is small, second order hardly matters; where it is as large as the optimizer term, dropping it is wrong."));
}
function followOptions() {
  const options = [];
  D.tensors.forEach((tensor, t) => {
    const size = tensor.shape.reduce((a, b) => a * b, 1), whole = D.q.theta.cells.every((c) => !c || c[t].v);
    for (let k = 0; whole && k < size && options.length < 300; k++) {
      options.push({ label: tensor.shape.length ? tensor.name + position(k, tensor.shape) : tensor.name, at: (name, j) => { const c = cells(name, j); return c ? c[t].v[k] : null; } });
    }
  });
  const known = new Set(options.map((o) => o.label));
  for (const one of D.follow) if (!known.has(one.label)) options.push({ label: one.label, at: (name, j) => (one.q[name] ? one.q[name][j] : null) });
  return options;
}
let followed = 0;
const followCharts = [];
function drawFollow() {
  const one = options[followed];
  followCharts.length = 0;
  const rows = [["θ", "theta", J + 1], ["G", "G", J], ["B", "B", J + 1], ["V", "V", J]].filter(([, name]) => D.q[name]).map(([symbol, name, length]) => {
    const values = Array.from({ length }, (_, j) => one.at(name, j)), text = h("span", { class: "value" });
    const chart = curves({ series: [[symbol, values]], height: 92, y: symbol, description: `${symbol} of ${one.label} by step` });
    followCharts.push({ move(i) { const hit = shown(i).find(([n]) => n === name); const j = hit ? hit[1] : Math.min(E.j[i], length - 1); chart.move(j); text.textContent = `${symbol}${subscript(j)} = ${fmt(values[j])}`; } });
    return h("div", null, text, chart);
  });
  $("follow-body").replaceChildren(...rows);
  for (const chart of followCharts) chart.move(at);
}
function matrixView(title, values, n, caption) {
  const rows = values.length / n, peak = Math.max(...values.map((x) => Math.abs(value(x))).filter(Number.isFinite), 0);
  const mix = (x) => `color-mix(in srgb, var(--${value(x) < 0 ? "negative" : "positive"}) calc(var(--tint) * ${depth(value(x), peak).toFixed(3)}), transparent)`;
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
function drawCharts() {
  const charts = D.notes.charts || [];
  $("charts").hidden = !charts.length;
  $("charts-body").replaceChildren(...charts.map((c) => {
    const description = `${c.title}. ${c.caption}`, grouped = c.bars && c.bars.length, drawn = grouped ? barChart({ series: c.series, labels: c.bars, x: c.x, y: c.y, description }) : curves({ series: c.series, log: c.log, x: c.x, y: c.y, xs: c.xs && c.xs.length ? c.xs : null, height: 230, cursor: c.x === "step j", description });
    return h("figure", null, h("h3", null, ...typeset(c.title)), legend(c.series), c.x === "step j" && !grouped ? track(drawn) : drawn, h("figcaption", null, ...typeset(c.caption)));
  }));
}
function drawChecks() {
  const tiny = (x) => x.toExponential(1).replace("e+0", "").replace(/-/g, "−");
  $("checks-body").replaceChildren(h("table", null,
    h("thead", null, h("tr", null, ...["verdict", "quantity", "engine", "oracle", "difference", "allowed", "oracle from"].map((t, n) => h("th", { class: n > 1 && n < 6 ? "n" : null }, t)))),
    h("tbody", null, ...D.notes.checks.map(([name, engine, oracle, gap, allowed, source, agrees]) => h("tr", null,
      h("td", { class: agrees ? "ok" : "wrong" }, agrees ? "✓ agrees" : "✗ differs"), h("td", null, ...typeset(name)), h("td", { class: "n" }, fmt(engine)), h("td", { class: "n" }, fmt(oracle)), h("td", { class: "n" }, tiny(gap)), h("td", { class: "n" }, tiny(allowed)), h("td", null, ...typeset(source)))))));
}
