// The moment, the controls, and what happens when it changes.
let at = 0, way = 1, timer = null, settle = null;
// The lines and what they mean stand in the document, for readers without a script.
const LINES = [...$("algorithm").children].map((li) => [Number(li.dataset.line), li.children[1].className === "in", rawText(li.children[1])]);
const MEANING = Object.fromEntries([...$("algorithm").children].map((li) => [li.dataset.line, li.children[2] ? rawText(li.children[2]) : ""]));
let drawMap = null, stripChart = null;

// The listing: a line of Algorithm 1 leads to the moment at which it ran.
function algorithm() {
  const runs = new Set([5, 6, 8, 9, 11, 12, 13, 14, 16]);
  $("algorithm").replaceChildren(...LINES.map(([line, indent, text]) => h("li", { "data-line": line },
    h("button", { type: "button", disabled: !(runs.has(line) && E.line.includes(line)), click: () => toLine(line) }, h("span", { class: "no" }, line), h("span", { class: indent ? "in" : null }, ...typeset(text))))));
}
function toLine(line) {
  const same = E.line.findIndex((l, i) => l === line && E.j[i] === E.j[at] && backward(i) === (line > 7));
  const any = same >= 0 ? same : E.line.indexOf(line);
  if (any >= 0) show(any, true);
}
let scrolled = false; // whether the reader moved the formula: to set its place lays the page out, each time
// The stage is drawn at once; the panels below it when the browser is free.
function show(i, announce) {
  const to = Math.max(0, Math.min(count - 1, i)), line = E.line[to];
  way = to < at ? -1 : 1;
  at = to;
  if (scrolled) { scrolled = false; $("formula").scrollTop = 0; }
  $("slider").value = at;
  $("slider").setAttribute("aria-valuetext", place(at));
  write("where", `${place(at)}${E.replay[at] ? " · replay" : ""}`);
  drawFormula(at);
  drawStage();
  for (const li of $("algorithm").children) {
    if (Number(li.dataset.line) === line) li.setAttribute("aria-current", "step"); else li.removeAttribute("aria-current");
  }
  $("back").disabled = $("first").disabled = at === 0;
  $("next").disabled = $("last").disabled = at === count - 1;
  markPlaces(at);
  if (sections.length && drawers[cardAt].follows) drawers[cardAt]();
  said = announce && !timer ? () => write("live", `${place(at)}: ${MEANING[line] || ""}. ${shown(at).filter(([, , fresh]) => fresh).map(([name, k]) => `norm of ${about(name)[0]} ${k}: ${fmt(norm(name, k))}`).join("; ")}`) : () => {};
  writeAddress();
  document.body.dataset.settled = "no";
  clearTimeout(settle);
  const mine = ++round;
  requestAnimationFrame(() => { settle = setTimeout(() => { if (mine === round) afterwards(); }); });
}
function drawStage() {
  drawMap(at);
  drawStep(at);
  stripChart.move(at);
}
// One part at a time, when the browser has nothing better to do, so that a key pressed meanwhile does not wait for all.
const idle = window.requestIdleCallback ? (act) => requestIdleCallback(act, { timeout: 500 }) : (act) => setTimeout(() => act({ timeRemaining: () => 0 }), 20);
const toBuild = [() => { if (D.notes.checks) drawChecks(); }, drawWhereItGrows, drawGrowth, drawTerms, drawMemory, drawCharts, drawFollow];
let round = 0, said = () => {};
function moveBelow() {
  const j = E.j[at];
  write("cost", `${micro(E.us[at])} in the engine, ${bytes(E.bytes[at])} computed · moment ${at + 1} of ${count}`);
  for (const chart of moving) chart.move(E.line[at] === 6 ? j + 1 : j);
  for (const chart of followCharts) chart.move(at);
  for (const part of growing) part.at(at);
}
// Once a step is on the screen: what is said of it, what the next key will show, and, at rest, the panels below.
let seenBelow = false;
new IntersectionObserver(([more]) => { seenBelow = more.isIntersecting; }).observe($("more"));
function afterwards() {
  said();
  const next = at + way;
  if (next >= 0 && next < count && E.line[next] !== E.line[at]) writeMoment(next);
  settle = setTimeout(drawBelow, seenBelow || toBuild.length ? 60 : 500);
}
function drawBelow() {
  const mine = ++round, parts = [() => drawQuantities(at), () => drawMatrices(at), moveBelow];
  const next = (left) => {
    if (mine !== round) return;
    do { const part = toBuild.length ? toBuild.shift() : parts.shift(); part(); } while (parts.length && left.timeRemaining() > 5);
    if (parts.length) idle(next); else document.body.dataset.settled = "yes";
  };
  idle(next);
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
function present(asked) {
  const on = asked || Boolean(D.opens); // a notebook's cell has room for nothing else
  if (on) scrollTo(0, 0);
  document.documentElement.classList.toggle("presentation", on);
  $("present").setAttribute("aria-pressed", String(on));
  layStage();
}
function layStage() {
  measureFormulas();
  sizes.clear();
  stripChart = strip();
  $("timeline").replaceChildren(stripChart);
  drawStage();
}
function header() {
  const hyper = Object.entries(D.hyper).filter(([, x]) => x !== 0).map(([k, x]) => `${k} = ${fmt(x)}`).join(", ");
  $("facts").textContent = `${J} steps of ${D.optimizer}${hyper ? ` (${hyper})` : ""} on ${D.parameters.toLocaleString("en")} parameters in ${D.count.tensors.toLocaleString("en")} ${D.count.tensors === 1 ? "tensor" : "tensors"}${D.tasks ? `, ${D.tasks} tasks` : ""}, ${D.dtype}${D.recurrence === "augmented" ? "" : `, recurrence ${D.recurrence}`}`;
  const said = [];
  if (D.error) said.push(`The run ended ${D.error.after}: ${D.error.kind}: ${D.error.message}`);
  if (D.extent !== "complete") said.push(`Not the whole run: ${D.extent}.`);
  if (D.count.leaves > D.A.length) said.push(`${D.A.length} of ${D.count.leaves.toLocaleString("en")} meta-parameters are shown.`);
  if (D.interventions.length) said.push(`Not the exact meta-gradient: ${D.interventions.join("; ")}.`);
  if (D.recurrence === "theta_only") said.push("An ablation: the optimizer's state has no adjoint here, so this is not the exact meta-gradient.");
  if (said.length) { $("banner").textContent = said.join(" "); $("banner").hidden = false; if (!D.error) $("banner").classList.add("note"); }
  const notes = D.notes, [number, of] = notes.number || [];
  if (number) {
    $("crumb").hidden = false;
    $("crumb").replaceChildren(...(notes.index ? [h("a", { href: notes.index }, "Lessons")] : ["Lesson"]), ` ${number} of ${of}`, ...(notes.next ? [" · next: ", notes.next.href ? h("a", { href: notes.next.href }, notes.next.title) : notes.next.title] : []));
  }
  $("summary").replaceChildren(...typeset(rawText($("summary"))));
}
function begin() {
  header();
  $("checks").hidden = !D.notes.checks;
  algorithm();
  if (!count) { toBuild[0](); return; }
  document.body.classList.remove("plain");
  for (const id of ["stage", "tools", "more"]) $(id).hidden = false;
  $("legend").replaceChildren(legendList());
  $("slider").max = count - 1;
  const icons = { first: "M3 2h2v14H3zM15 2v14L6 9z", back: "M13 2v14L3 9z", play: "M4 2l11 7l-11 7z", next: "M5 2v14l10-7z", last: "M13 2h2v14h-2zM3 2v14l9-7z" };
  for (const [id, path] of Object.entries(icons)) $(id).replaceChildren(icon(path));
  if (matchMedia("(max-width: 560px)").matches) $("digits").value = digits = 4;
  options = followOptions();
  measureFormulas();
  const [title, make] = MAPS[mapKind];
  $("map-title").textContent = title;
  $("map-legend").replaceChildren(...LEGENDS[mapKind].filter(([, text]) => text !== "changed" || X.vary.length || twin.ok).map(([colour, text]) => h("span", null, h("i", { style: { background: colour } }), ...typeset(text))));
  drawMap = make();
  stripChart = strip();
  $("timeline").replaceChildren(stripChart);
  buildCards();
  listeners.push(drawStage, writeAddress);
  for (const id of ["follow", "entry"]) $(id).replaceChildren(...options.map((o, k) => h("option", { value: k }, o.label)));
  $("entry-label").hidden = options.length < 3;
  $("tensor-label").hidden = D.tensors.length <= MANY;
  $("tensor").replaceChildren(...D.tensors.map((t, k) => h("option", { value: k }, t.name)));
  listen();
  show(D.error ? count - 1 : 0, false);
  readAddress(location.hash);
  if (D.opens) { document.documentElement.classList.add("cell"); present(true); show(findAny(D.opens.line, D.opens.j), false); } // one moment, for a notebook's cell
}
function listen() {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("formula", "scroll", () => { scrolled = true; });
  on("follow", "change", (e) => { followed = Number(e.target.value); drawFollow(); });
  on("entry", "change", (e) => { chosenEntry = Number(e.target.value); show(at, false); });
  on("tensor", "change", (e) => { chosen = Number(e.target.value); show(at, false); });
  on("digits", "change", (e) => { digits = Number(e.target.value); measureFormulas(); sizes.clear(); for (const part of growing) part.draw(); if (!toBuild.length) drawFollow(); if (sections.length) drawers[cardAt](); if (D.notes.checks) drawChecks(); show(at, false); });
  on("speed", "change", () => { if (timer) play(true); });
  on("slider", "input", (e) => show(Number(e.target.value), true));
  on("first", "click", () => show(0, true));
  on("back", "click", () => show(at - 1, true));
  on("next", "click", () => show(at + 1, true));
  on("last", "click", () => show(count - 1, true));
  on("play", "click", () => play(!timer));
  on("unfold", "click", () => unfold(!$("listing").classList.contains("open")));
  on("present", "click", () => present(!document.documentElement.classList.contains("presentation")));
  let size = `${innerWidth} ${innerHeight}`;
  addEventListener("resize", () => { const now = `${innerWidth} ${innerHeight}`; if (now !== size) { size = now; layStage(); if (sections.length) drawers[cardAt](); } });
  addEventListener("hashchange", (e) => readAddress(new URL(e.newURL).hash)); // the address itself may have been written anew since
  const keys = {
    ArrowRight: (e) => show(e.shiftKey ? sameLine(1) : at + 1, true), ArrowLeft: (e) => show(e.shiftKey ? sameLine(-1) : at - 1, true), Home: () => show(0, true), End: () => show(count - 1, true),
    " ": () => play(!timer), "[": () => openCard(cardAt - 1, true), "]": () => openCard(cardAt + 1, true), p: () => present(!document.documentElement.classList.contains("presentation")), Escape: () => { if (document.documentElement.classList.contains("presentation")) present(false); else unfold(false); },
  };
  // A field takes every key, a slider those that move it, a box the space that ticks it; the rest is the page's.
  const takes = (e) => e.target.type === "text" || (e.target.type === "checkbox" ? e.key === " " : /^(Arrow|Home$|End$)/.test(e.key) && !(e.target.id === "slider" && e.shiftKey));
  document.addEventListener("keydown", (e) => {
    const tag = e.target.tagName, act = keys[e.key] || keys[e.key.toLowerCase()];
    if (!act || e.ctrlKey || e.metaKey || e.altKey || tag === "SELECT" || tag === "TEXTAREA" || (tag === "INPUT" && takes(e))) return;
    if (e.key === " " && (tag === "BUTTON" || tag === "SUMMARY")) return;
    e.preventDefault();
    act(e);
  });
}
begin();
