// What can be tried on each card.
const says = () => h("p", { class: "said" });
const signed = (x, print = fmt) => (x === null || x === undefined ? "–" : (x > 0 ? "+" : "") + print(x));
const sourceOf = (run) => (run.source === "twin" ? "by the page's twin" : "a recorded run of the engine");

// A slider for one varied number.
function slider(one) {
  const stops = stopsOf(one), low = stops[0], high = stops[stops.length - 1], out = h("output", null);
  // With a twin any value; without one only those that the engine ran.
  const ends = twin.ok ? [low, high, (high - low) / 800] : [0, stops.length - 1, 1];
  const input = h("input", { type: "range", min: ends[0], max: ends[1], step: ends[2], "aria-label": one.name, "data-vary": one.name });
  input.addEventListener("input", () => {
    const x = twin.ok ? Number(input.value) : stops[Number(input.value)];
    changedNow.nudge = null;
    if (!twin.ok) changedNow.vary = byName();
    if (Math.abs(x - one.value) <= (twin.ok ? (high - low) / 1600 : 0)) delete changedNow.vary[one.name]; else changedNow.vary[one.name] = x;
    changed();
  });
  return { node: h("label", null, one.name, input, out), draw() { const x = setting(one.name); input.value = twin.ok ? x : stops.reduce((best, v, k) => (Math.abs(v - x) < Math.abs(stops[best] - x) ? k : best), 0); input.setAttribute("aria-valuetext", brief(x)); out.textContent = brief(x); } };
}
function curvesAndSliders() {
  const sliders = X.vary.map(slider), plots = X.vary.map(curvePlot), said = says();
  let chosen = 0;
  const pick = X.vary.length > 1 ? h("label", { class: "line" }, "curve over ", h("select", { change: (e) => { chosen = Number(e.target.value); draw(); } }, ...X.vary.map((one, n) => h("option", { value: n }, one.name)))) : null;
  const holder = h("div");
  function draw() {
    for (const one of sliders) one.draw();
    if (holder.firstChild !== plots[chosen].nodes[0]) holder.replaceChildren(...plots[chosen].nodes);
    plots[chosen].draw();
    const one = X.vary[chosen], run = ghost(), loss = Object.keys(changedNow.vary).length ? (run ? run.val : null) : D.val.loss, A = closedA(one, {});
    said.dataset.val = loss;
    said.dataset.slope = A;
    said.replaceChildren(h("span", { class: "value" }, ...typeset(`L_val = ${fmt(loss)}`)), run && Object.keys(changedNow.vary).length ? ` (${sourceOf(run)})` : " (the engine's run)", h("br"), h("span", { class: "value" }, `slope A of ${one.name} = ${fmt(A)}`), ...typeset(A < 0 ? ": a larger one lowers L_val." : A > 0 ? ": a smaller one lowers L_val." : ": no first-order effect."));
  }
  const back = h("button", { type: "button", click: putBack }, "Put back");
  return { nodes: [...sliders.map((one) => one.node), holder, pick, said, back].filter(Boolean), draw };
}
const START_NUDGE = () => (X.plane ? 0.08 * Math.min(X.plane.x[1] - X.plane.x[0], X.plane.y[1] - X.plane.y[0]) : 0.1);
function startNudge() {
  const delta = new Array(D.parameters).fill(0);
  delta[D.parameters === 2 ? 1 : 0] = -START_NUDGE();
  changedNow.vary = byName();
  changedNow.nudge = { j: nudgeStep(), delta };
}
function setNudge(j, delta) {
  changedNow.vary = byName(); // a nudge is one of the recorded run, whose prices the page knows
  changedNow.nudge = { j, delta };
  changed();
}
// What a nudge does, run again, beside what B_j·δ says of it; with roads closed too.
function nudgeSums() {
  const nudge = changedNow.nudge, run = ghost();
  if (!nudge || !run) return null;
  const priced = (B) => (B ? dot(B.map(value), nudge.delta.map((x) => x || 0)) : null);
  return { moved: run.val - D.val.loss, says: priced(recordedB(nudge.j)), closed: anyClosed(changedNow.closed) ? priced(closedB(nudge.j, changedNow.closed)) : null };
}
const WIDGETS = {
  ask() {
    if (!X.vary.length) return null;
    const one = X.vary[0], inner = curvesAndSliders(), answer = h("p", { class: "said", "aria-live": "polite" });
    const guess = (larger) => () => {
      const A = closedA(one, {}), right = larger === A < 0;
      answer.replaceChildren(h("b", null, A === 0 ? "Neither. " : right ? "Right. " : "No. "), ...typeset(`A of ${one.name} is ${fmt(A)}: ${A === 0 ? "the slope is exactly 0." : `where ${one.name} grows by a little δ, L_val moves by ${fmt(A)}·δ.`} Move the slider and see.`));
    };
    return { nodes: [h("div", { class: "row" }, h("button", { type: "button", "data-guess": "larger", click: guess(true) }, `${one.name} larger`), h("button", { type: "button", "data-guess": "smaller", click: guess(false) }, `${one.name} smaller`)), answer, ...inner.nodes], draw: inner.draw };
  },
  nudge() {
    if (!twin.ok) return { nodes: [h("p", { class: "facts" }, twin.why)], draw() {} };
    const said = says(), few = D.parameters <= 2;
    let size = 1, entry = 0;
    const step = h("select", { "aria-label": "Step whose θ is nudged", change: (e) => { const delta = (changedNow.nudge || {}).delta || []; const to = findAny(Number(e.target.value) < J ? 14 : 9, Number(e.target.value)); setNudge(Number(e.target.value), delta); if (to >= 0) show(to, false); } }, ...Array.from({ length: J + 1 }, (_, j) => h("option", { value: j }, `θ${subscript(j)}`)));
    const move = (k, x) => { const delta = Array.from({ length: D.parameters }, (_, n) => (changedNow.nudge && changedNow.nudge.delta[n]) || 0); delta[k] = x; setNudge(nudgeStep(), delta); };
    const reach = 4 * START_NUDGE();
    const make = (k) => { const input = h("input", { type: "range", min: -1, max: 1, step: 0.01, "aria-label": `δ of ${few ? entryNames[k] : "the entry"}`, "data-delta": k, input: () => move(few ? k : entry, Number(input.value) * reach * size) }), out = h("output", null); return { node: h("label", null, few ? `δ of ${entryNames[k]}` : "δ", input, out), input, out, k }; };
    const pads = (few ? [...entryNames.keys()] : [0]).map(make);
    const which = few ? null : h("label", { class: "line" }, "entry ", h("select", { change: (e) => { entry = Number(e.target.value); setNudge(nudgeStep(), new Array(D.parameters).fill(0)); } }, ...entryNames.map((name, k) => h("option", { value: k }, name))));
    const sizes = h("label", { class: "line" }, "size ", h("select", { "aria-label": "Size of the nudge", change: (e) => { const to = Number(e.target.value), delta = changedNow.nudge ? changedNow.nudge.delta.map((x) => (x || 0) * (to / size)) : []; size = to; setNudge(nudgeStep(), delta); } }, ...[1, 0.1, 0.01].map((z) => h("option", { value: z }, `×${z}`))));
    function draw() {
      step.value = nudgeStep();
      for (const pad of pads) { const x = (changedNow.nudge && changedNow.nudge.delta[few ? pad.k : entry]) || 0; pad.input.value = x / reach / size; pad.out.textContent = brief(x); }
      const sums = nudgeSums();
      said.dataset.moved = sums ? sums.moved : "";
      said.dataset.says = sums ? sums.says : "";
      said.replaceChildren(...(!sums ? ["Move a slider, or drag the ring on the map."] : [h("span", { class: "value" }, ...typeset(`L_val moved by ${signed(sums.moved)}`)), " (run again);", h("br"), h("span", { class: "value" }, `B${subscript(nudgeStep())}·δ says ${signed(sums.says)}`), `. They part by ${fmt(Math.abs(sums.moved - sums.says))}: for a tenth of the nudge by about a hundredth of that.`]));
    }
    return { nodes: [h("div", { class: "row" }, h("label", { class: "line" }, "nudge ", step), which, sizes), ...pads.map((p) => p.node), said, h("button", { type: "button", click: putBack }, "Put back")].flat().filter(Boolean), draw };
  },
  roads() {
    const table = h("div"), note = h("p", { class: "facts" });
    return { nodes: [table, note], draw() {
      const two = twoRoads(), nudge = changedNow.nudge;
      if (!two) { table.replaceChildren(); note.replaceChildren(...typeset(twin.ok ? "First nudge a θ_j before the last, on the card before this one." : "")); return; }
      const shown_ = D.parameters <= 2 ? [0, 1].slice(0, D.parameters) : two.all.map((x, k) => k).sort((a, b) => Math.abs(two.all[b]) - Math.abs(two.all[a])).slice(0, 4).sort((a, b) => a - b), pick = (xs) => shown_.map((k) => xs[k]);
      const print = addingUp(pick(two.all), [pick(two.straight), pick(two.bent)]), ghostRun_ = ghost(), landed = ghostRun_ ? ghostRun_.path[nudge.j + 1].map((x, k) => x - value(flat("theta", nudge.j + 1)[k])) : null;
      const row = (name, xs, style, p = print) => h("tr", { class: style || null }, h("td", null, ...typeset(name)), ...pick(xs).map((x, i) => h("td", { class: "n" }, p(x, i))));
      table.replaceChildren(h("table", { class: "sums", "aria-label": "The two roads" }, h("thead", null, h("tr", null, h("th", { scope: "col" }, `what reaches θ${subscript(nudge.j + 1)}`), ...shown_.map((k) => h("th", { class: "n", scope: "col" }, entryNames[k])))), h("tbody", null, row("the straight road", two.straight), row("through the slope, O·∇²ℓ·δ", two.bent), row("together", two.all, "total"), landed ? row("run again", landed, "", (x) => fmt(x)) : null)));
      note.textContent = D.slots.length ? "What the optimizer remembers of the nudge is felt later: it is the third road, through s." : "Where ℓ is a quadratic the two roads give the rerun exactly; else they give its first order.";
    } };
  },
  turn() {
    const question = h("p", { class: "said" }), input = h("input", { type: "text", inputmode: "decimal", "aria-label": "Your value for the entry of B_j" }), verdict = h("p", { class: "said", "aria-live": "polite" });
    const numbers = () => { const j = E.line[at] === 16 ? 0 : Math.min(E.j[at], J - 1); return { j, d: options[chosenEntry].at("direct", j), c: options[chosenEntry].at("curvature", j), b: options[chosenEntry].at("B", j) }; };
    const check = () => {
      const { j, d, c, b } = numbers(), mine = Number(input.value.trim().replace("−", "-").replace(",", ".")), close = Math.abs(mine - b) <= 0.006 * Math.max(Math.abs(d), Math.abs(c), Math.abs(b)), print = addingUp([b], [[d], [c]]);
      verdict.replaceChildren(h("b", null, input.value.trim() && close ? "Right. " : "The sum is this. "), `${print(b)} = ${print(d)} + ${print(c)}. `, ...typeset("Line 14 is one sentence: what arrives directly, plus what arrives through the gradient."));
      const to = findAny(14, j);
      if (to >= 0) show(to, false);
    };
    input.addEventListener("keydown", (e) => { if (e.key === "Enter") check(); });
    let asked = "";
    return { nodes: [question, h("div", { class: "row" }, h("label", { class: "line" }, "your value ", input), h("button", { type: "button", "data-check": "", click: check }, "Check")), verdict], draw() {
      const { j, d, c } = numbers();
      if (asked !== `${j} ${chosenEntry} ${digits}`) { asked = `${j} ${chosenEntry} ${digits}`; verdict.replaceChildren(); input.value = ""; }
      question.replaceChildren(...typeset(`At θ_j, step ${j}, entry ${options[chosenEntry].label}: ${brief(d)} arrives directly and ${brief(c)} through the gradient. What is B_j there?`));
    } };
  },
  back() {
    const table = h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Terms of A" });
    const go = (direction) => () => { const from = E.line[at] === 14 && backward(at) ? E.j[at] : direction < 0 ? J : -1, to = findAny(14, Math.max(0, Math.min(J - 1, from + direction))); if (to >= 0) show(to, true); };
    return { nodes: [h("div", { class: "row" }, h("button", { type: "button", "data-roll": "back", click: go(-1) }, "← one step back"), h("button", { type: "button", click: go(1) }, "undo one →")), table], draw() {
      const leaf = stripLeaf();
      if (!leaf) { table.replaceChildren(h("p", { class: "facts" }, "No meta-parameter of this run is one number.")); return; }
      const done = !backward(at) ? J : E.line[at] >= (leaf.kind === "A_opt" ? 12 : 13) ? (E.line[at] === 16 ? 0 : E.j[at]) : E.j[at] + 1, rows = leaf.inc.map((x, j) => [j, single(x), single(leaf.after[j])]).filter(([j, x]) => j >= done && typeof x === "number");
      const start = single(leaf.start), print = rows.length ? addingUp([rows[0][2]], [[start], ...rows.map((r) => [r[1]])]) : fmt;
      table.replaceChildren(h("table", { class: "sums", "aria-label": `Terms of A of ${leafName(leaf)} so far` }, h("thead", null, h("tr", null, h("th", { scope: "col" }, "step"), h("th", { class: "n", scope: "col" }, `its term of A ${leafName(leaf)}`))), h("tbody", null, ...(start !== 0 && typeof start === "number" ? [h("tr", null, h("td", null, "line 8"), h("td", { class: "n" }, print(start)))] : []), ...[...rows].reverse().map(([j, x]) => h("tr", null, h("td", null, j), h("td", { class: "n" }, print(x)))), h("tr", { class: "total" }, h("td", null, "sum so far"), h("td", { class: "n" }, rows.length ? print(rows[0][2]) : fmt(start))))));
    } };
  },
  close() {
    const names = [["curvature", "no curvature (first order)"], ...(D.slots.length ? [["state", "no state (θ alone)"]] : []), ...(J > 1 ? [["early", `no early steps (the last ${X.kept_steps || "half"} only)`]] : [])];
    const boxes = names.map(([key, text]) => { const input = h("input", { type: "checkbox", "data-road": key, change: () => { changedNow.closed[key] = input.checked; changed(); } }); return { key, input, node: h("label", { class: "line" }, input, ` ${text}`) }; });
    const table = h("div"), inner = X.vary.length ? curvesAndSliders() : { nodes: [], draw() {} };
    return { nodes: [...boxes.map((b) => b.node), table, ...inner.nodes], draw() {
      for (const b of boxes) b.input.checked = changedNow.closed[b.key];
      const any = anyClosed(changedNow.closed), rows = X.vary.map((one) => [`A of ${one.name}`, closedA(one, {}), any ? closedA(one, changedNow.closed) : null]), sums = nudgeSums(), B0 = recordedB(0), off = any ? closedB(0, changedNow.closed) : null;
      if (B0 && !Object.keys(changedNow.vary).length) rows.push(...B0.slice(0, 2).map((x, k) => [`B_0, ${entryNames[k]}`, x, off ? off[k] : null]));
      if (sums) rows.push([`B_${nudgeStep()}·δ`, sums.says, sums.closed]);
      table.replaceChildren(h("table", { class: "sums", "aria-label": "Exact, and with roads closed" }, h("thead", null, h("tr", null, ...["", "exact", "roads closed"].map((t, n) => h(n ? "th" : "td", { class: n ? "n" : null, scope: n ? "col" : null }, t)))), h("tbody", null, ...rows.map(([name, exact, closed]) => h("tr", null, h("td", null, ...typeset(name)), h("td", { class: "n" }, fmt(exact)), h("td", { class: "n", "data-closed": name }, any ? fmt(closed) : "–"))))));
      inner.draw();
    } };
  },
  say() {
    const model = h("p"), code = h("pre", { tabindex: 0 }), notes = D.notes, next = notes.next;
    const links = h("p", null, ...(next ? (next.href ? ["Next: ", h("a", { href: next.href }, next.title), ". "] : [`Next: ${next.title} (`, h("code", null, `gimli trace ${next.name} --out ${next.name}.html`), "). "]) : []), notes.index ? h("a", { href: notes.index }, "All lessons") : null);
    return { nodes: [h("textarea", { "aria-label": "Line 14 in your own words", placeholder: "Line 14 says …" }), h("details", null, h("summary", null, "A model answer, in this run's numbers"), model), h("p", { class: "facts" }, twin.why), h("details", null, h("summary", null, "The same in Python, at this moment"), code), links], draw() {
      const j = E.line[at] === 16 ? 0 : Math.min(E.j[at], J - 1), [b, d, c] = ["B", "direct", "curvature"].map((name) => entriesOf(name, j));
      if (b && d && c) { const print = addingUp(b, [d, c]); model.replaceChildren(...typeset(`A nudge of θ_j at step ${j} reaches θ_j₊₁ by itself, and by turning the slope that the step follows. The first road is worth ${vectorText(d, print)}, the second ${vectorText(c, print)}; together B_j = ${vectorText(b, print)}. Nothing else can happen to it${D.slots.length ? ", but that the optimizer remembers the slope: S_j₊₁ brings that in through V_j" : ""}.`)); }
      code.textContent = `import gimli_core as gimli\n\n${notes.name ? `walk = gimli.lessons.${notes.name}().walk()` : "walk = gimli.step_through(problem, theta_0, ...)"}\nfor moment in walk:\n    if (moment.line, moment.j) == (${E.line[at]}, ${E.j[at]}):\n        print(moment.values)\nprint(walk.result)`;
    } };
  },
};
