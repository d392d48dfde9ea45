// The time line, the controls, and what happens when the moment changes.
let at = 0, timer = null;

function timeline(W) {
  const left = 74, right = 12, width = W - left - right, columns = J + 1;
  const X = (j) => left + (columns > 1 ? (j / (columns - 1)) * width : width / 2);
  const curve = (values, top, height, colour) => {
    const v = values.map(value), ok = v.filter((x) => Number.isFinite(x)), positive = ok.filter((x) => x > 0);
    if (!ok.length) return [];
    const log = positive.length === ok.length && Math.max(...ok) / Math.min(...ok) > 300, f = (x) => (log ? Math.log10(x) : x);
    const low = log ? f(Math.min(...positive)) : Math.min(0, ...ok), high = Math.max(...ok.map(f), low + 1e-300);
    const Y = (x) => top + (1 - (f(x) - low) / (high - low || 1)) * height;
    let line = "", pen = "M";
    v.forEach((x, j) => { if (Number.isFinite(x)) { line += `${pen}${X(j).toFixed(1)} ${Y(x).toFixed(1)}`; pen = "L"; } else pen = "M"; });
    return [s("path", { d: line, fill: "none", stroke: colour, "stroke-width": 2.5, "stroke-linejoin": "round" }), ...(columns <= 130 ? v.map((x, j) => Number.isFinite(x) ? s("circle", { cx: X(j), cy: Y(x), r: 3, fill: colour }) : null) : [])];
  };
  const held = s("g"), head = s("line", { class: "cursor", y1: 4, y2: 96 }), knob = s("circle", { r: 6, fill: "var(--mark-edge)", stroke: "var(--card)", "stroke-width": 2 });
  const lane = (text, y, colour) => s("text", { x: 0, y, style: { fill: colour, fontWeight: 600 } }, text);
  const shade = s("rect", { y: 0, height: 100, fill: "var(--mark-edge)", opacity: 0.08 });
  const svg = s("svg", { viewBox: `0 0 ${W} 112`, role: "img", "aria-label": "Time line: the forward unroll above, the backward sweep below", style: { cursor: "pointer" } },
    shade, lane("loss →", 22, "var(--forward)"), lane("held", 52, "var(--soft)"), lane("← ‖B‖", 82, "var(--backward)"),
    s("line", { x1: left, x2: W - right, y1: 48, y2: 48, class: "axis" }),
    ...curve(D.loss, 8, 26, "var(--forward)"), ...(D.q.B ? curve(D.q.B.norm, 64, 30, "var(--backward)") : []),
    held, head, knob,
    ...Array.from({ length: columns }, (_, j) => (columns <= 21 || j % Math.ceil(columns / 20) === 0 ? s("text", { x: X(j), y: 110, "text-anchor": "middle", class: "minor" }, j) : null)));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * W, y = ((event.clientY - box.top) / box.height) * 112;
    const j = Math.max(0, Math.min(J, Math.round(((x - left) / width) * (columns - 1))));
    const to = y < 50 ? (j < J ? find(6, j) : turn) : j < J ? findAny(14, j) : findAny(9, J);
    if (to >= 0 && to < count) show(to, true);
  });
  svg.move = (i) => {
    const j = E.j[i], back = backward(i), x = X(E.line[i] === 6 ? j + 0.5 > J ? J : j + 0.5 : j);
    head.setAttribute("x1", x); head.setAttribute("x2", x);
    knob.setAttribute("cx", x); knob.setAttribute("cy", back ? 79 : 21);
    shade.setAttribute("x", back ? x : left); shade.setAttribute("width", Math.max(0, back ? W - right - x : x - left));
    held.replaceChildren(...D.held.filter(([, , from, to]) => from <= i && i < to).map(([kind, k]) => kind === "graph"
      ? s("path", { d: `M${X(k)} 43l5 5l-5 5l-5 -5z`, fill: "var(--forward)" }) : s("rect", { x: X(k) - 4, y: 44, width: 8, height: 8, fill: "var(--soft)" })));
  };
  return svg;
}

function algorithm() {
  const fill = { 5: 1, 6: 1, 8: 1, 9: 1, 11: 1, 12: 1, 13: 1, 14: 1, 16: 1 };
  $("algorithm").replaceChildren(...D.lines.map(([line, indent, text]) => h("li", { "data-line": line },
    h("button", { type: "button", disabled: !(fill[line] && E.line.includes(line)), click: () => toLine(line) }, h("span", { class: "no" }, line), h("span", { class: indent ? "in" : null }, ...typeset(text))))));
}
function toLine(line) {
  const same = E.line.findIndex((l, i) => l === line && E.j[i] === E.j[at] && backward(i) === (line > 7));
  const any = same >= 0 ? same : E.line.indexOf(line);
  if (any >= 0) show(any, true);
}

const MEANING = D.meaning;
function show(i, announce) {
  at = Math.max(0, Math.min(count - 1, i));
  const line = E.line[at], j = E.j[at];
  $("slider").value = at;
  $("slider").setAttribute("aria-valuetext", place(at));
  $("where").textContent = `${place(at)}${E.replay[at] ? " · replay" : ""}`;
  for (const li of $("algorithm").children) {
    if (Number(li.dataset.line) === line) li.setAttribute("aria-current", "step"); else li.removeAttribute("aria-current");
  }
  $("now-title").replaceChildren(line === 16 ? "Line 16, the result" : `Line ${line}, step ${j}`, h("span", { class: `tag ${backward(at) ? "backward" : "forward"}` }, sides(at)), E.replay[at] ? h("span", { class: "tag replay" }, "replay") : "");
  $("meaning").replaceChildren(...typeset(MEANING[line] || ""));
  const [symbols, numbers] = formula(at);
  $("formula").replaceChildren(h("div", { class: "symbols" }, ...symbols), h("div", { class: "numbers" }, ...numbers));
  $("cost").textContent = `${micro(E.us[at])} in the engine, ${bytes(E.bytes[at])} computed · moment ${at + 1} of ${count}`;
  drawQuantities(at);
  drawMatrices(at);
  track_.move(at);
  for (const chart of moving) chart.move(line === 6 ? j + 1 : j);
  for (const chart of followCharts) chart.move(at);
  for (const part of growing) part.at(at);
  $("back").disabled = $("first").disabled = at === 0;
  $("next").disabled = $("last").disabled = at === count - 1;
  if (announce && !timer) $("live").textContent = `${place(at)}: ${MEANING[line] || ""}. ${shown(at).filter(([, , fresh]) => fresh).map(([name, k]) => `norm of ${about(name)[0]} ${k}: ${fmt(norm(name, k))}`).join("; ")}`;
}
const icon = (path) => s("svg", { viewBox: "0 0 18 18", "aria-hidden": "true", class: "icon" }, s("path", { d: path, fill: "currentColor" }));
function play(on) {
  clearInterval(timer);
  timer = null;
  if (on) {
    if (at === count - 1) show(0, false);
    timer = setInterval(() => { if (at >= count - 1) play(false); else show(at + 1, false); }, Number($("speed").value));
  }
  $("play").replaceChildren(icon(on ? "M4 2h4v14H4zM10 2h4v14h-4z" : "M4 2l11 7l-11 7z"));
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
}
function sameLine(direction) {
  for (let i = at + direction; i >= 0 && i < count; i += direction) if (E.line[i] === E.line[at] && backward(i) === backward(at)) return i;
  return direction > 0 ? count - 1 : 0;
}

let track_ = null;
function drawTimeline() {
  track_ = timeline(Math.max(300, $("timeline").clientWidth || 1000));
  $("timeline").replaceChildren(track_);
}
function begin() {
  $("title").textContent = D.title;
  const hyper = Object.entries(D.hyper).filter(([, x]) => x !== 0).map(([k, x]) => `${k} = ${fmt(x)}`).join(", ");
  $("facts").textContent = `${J} steps of ${D.optimizer}${hyper ? ` (${hyper})` : ""} on ${D.parameters.toLocaleString("en")} parameters in ${D.count.tensors.toLocaleString("en")} ${D.count.tensors === 1 ? "tensor" : "tensors"}, ${D.dtype}${D.recurrence === "augmented" ? "" : `, recurrence ${D.recurrence}`}`;
  const said = [];
  if (D.error) said.push(`The run ended ${D.error.after}: ${D.error.kind}: ${D.error.message}`);
  if (D.extent !== "complete") said.push(`Not the whole run: ${D.extent}.`);
  if (D.count.leaves > D.A.length) said.push(`${D.A.length} of ${D.count.leaves.toLocaleString("en")} meta-parameters are shown.`);
  if (D.interventions.length) said.push(`Not the exact meta-gradient: ${D.interventions.join("; ")}.`);
  if (D.recurrence === "theta_only") said.push("An ablation: the optimizer's state has no adjoint here, so this is not the exact meta-gradient.");
  if (said.length) { $("banner").textContent = said.join(" "); $("banner").hidden = false; if (!D.error) $("banner").classList.add("note"); }
  drawLesson();
  if (!count) { for (const id of ["controls", "now", "quantities"]) $(id).hidden = true; algorithm(); return; }
  $("slider").max = count - 1;
  const icons = { first: "M3 2h2v14H3zM15 2v14L6 9z", back: "M13 2v14L3 9z", play: "M4 2l11 7l-11 7z", next: "M5 2v14l10-7z", last: "M13 2h2v14h-2zM3 2v14l9-7z" };
  for (const [id, path] of Object.entries(icons)) $(id).replaceChildren(icon(path));
  if (matchMedia("(max-width: 560px)").matches) $("digits").value = digits = 4;
  drawTimeline();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawTimeline(); track_.move(at); } });
  algorithm();
  drawGrowth();
  drawTerms();
  drawMemory();
  options = followOptions();
  $("follow").replaceChildren(...options.map((o, k) => h("option", { value: k }, o.label)));
  drawFollow();
  $("tensor-label").hidden = D.tensors.length <= MANY;
  $("tensor").replaceChildren(...D.tensors.map((t, k) => h("option", { value: k }, t.name)));

  $("follow").addEventListener("change", (e) => { followed = Number(e.target.value); drawFollow(); });
  $("tensor").addEventListener("change", (e) => { chosen = Number(e.target.value); show(at, false); });
  $("digits").addEventListener("change", (e) => { digits = Number(e.target.value); for (const part of growing) part.draw(); drawFollow(); if (D.notes.checks) drawChecks(); show(at, false); });
  $("speed").addEventListener("change", () => { if (timer) play(true); });
  $("slider").addEventListener("input", (e) => show(Number(e.target.value), true));
  $("first").addEventListener("click", () => show(0, true));
  $("back").addEventListener("click", () => show(at - 1, true));
  $("next").addEventListener("click", () => show(at + 1, true));
  $("last").addEventListener("click", () => show(count - 1, true));
  $("play").addEventListener("click", () => play(!timer));
  document.addEventListener("keydown", (e) => {
    const tag = e.target.tagName;
    if (e.ctrlKey || e.metaKey || e.altKey || tag === "SELECT" || (tag === "INPUT" && !e.shiftKey)) return;
    const keys = { ArrowRight: () => show(e.shiftKey ? sameLine(1) : at + 1, true), ArrowLeft: () => show(e.shiftKey ? sameLine(-1) : at - 1, true), Home: () => show(0, true), End: () => show(count - 1, true), " ": () => play(!timer) };
    if (!keys[e.key] || (e.key === " " && (tag === "BUTTON" || tag === "SUMMARY"))) return;
    e.preventDefault();
    keys[e.key]();
  });
  show(D.error ? count - 1 : 0, false);
}
begin();
