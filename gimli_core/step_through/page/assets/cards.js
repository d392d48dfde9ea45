// The cards: one at a time, each sets the stage; what can be tried in them is in widgets.js.
const OWN_RUN = [
  ["ask", "Ask", "Should this be larger or smaller? Move it: the path and L_val follow. The slope of the curve is what Algorithm 1 computes."],
  ["roads", "Two roads", "θ_j reaches θ_j₊₁ directly, and through its gradient: moving θ_j turns the slope G_j, and the slope moves θ_j₊₁. The picture of the step shows both."],
  ["turn", "Turn it round", "The same arrows, read backwards. B_j₊₁ comes in at the right; line 11 lights the arrow to G_j, and line 14 adds what arrives at θ_j by both roads."],
  ["back", "Roll back", "Repeat it down to B_0. At each step line 12 drops its term onto A_opt, and line 13 its term onto A_loss."],
  ["close", "Close a road", "Leave a road out and the gradient is another one. The recorded runs of the engine say by how much."],
  ["say", "Say it", "Explain line 14 to a friend, in your own words; then compare."],
];
const TAB = { ask: "Ask", nudge: "Nudge", roads: "Roads", turn: "Turn", back: "Roll", close: "Close", say: "Say it" };
const SETS = {
  ask: () => [6, J - 1], nudge: () => [14, nudgeStep()], roads: () => [6, Math.min(nudgeStep(), J - 1)], turn: () => [14, Math.min(nudgeStep(), J - 1)], back: () => [14, J - 1], close: () => [14, 0], say: () => [16, 0],
};
let sections = [], cardAt = 0;
const cardKind = () => (sections.length ? sections[cardAt].kind : "");
const nudgeStep = () => (changedNow.nudge ? changedNow.nudge.j : Math.min(Math.max(0, J - 1), J >> 1));
const nudging = () => ["nudge", "roads", "close"].includes(cardKind()) && changedNow.nudge !== null || cardKind() === "nudge";
const drawers = []; // of the widgets, by card

function buildCards() {
  sections = (D.notes.sections && D.notes.sections.length ? D.notes.sections : OWN_RUN.filter(([kind]) => (kind !== "ask" || X.vary.length) && (kind !== "close" || Object.keys(X.roads).length) && E.line.includes(14)).map(([kind, heading, text]) => ({ kind, heading, text, go: [] })));
  if (!sections.length) { $("cards").hidden = true; return; }
  if (!$("card-list").querySelector("article")) {
    $("card-list").replaceChildren(...sections.map((part, n) => h("article", { class: "page-card", id: `card${n + 1}`, "data-kind": part.kind }, h("h2", { tabindex: -1 }, part.heading), h("p", { class: "words" }, part.text))));
  }
  [...$("card-list").children].forEach((article, n) => {
    const part = sections[n], seen = new Set();
    article.querySelector("h2").replaceChildren(...typeset(part.heading));
    for (const p of article.querySelectorAll(".words")) p.replaceChildren(...typeset(rawText(p), seen));
    for (const summary of article.querySelectorAll("summary")) summary.replaceChildren(...typeset(rawText(summary)));
    const places = part.go.length ? h("div", { class: "go" }, ...part.go.map(([text, line, j]) => h("button", { type: "button", "data-go": `${line} ${j}`, click: () => { const to = findAny(line, j); if (to >= 0) show(to, true); } }, ...typeset(text)))) : null;
    const widget = WIDGETS[part.kind] ? WIDGETS[part.kind](part) : null;
    drawers[n] = widget ? () => widget.draw() : () => {};
    drawers[n].follows = ["turn", "back", "say"].includes(part.kind);
    const why = article.querySelector(".why");
    if (places) article.insertBefore(places, why);
    if (widget && widget.nodes.length) article.insertBefore(h("div", { class: "try" }, ...widget.nodes), why);
  });
  $("tabs").hidden = false;
  $("tabs").replaceChildren(...sections.map((part, n) => h("button", { type: "button", "aria-label": `Card ${n + 1}: ${part.heading}`, title: part.heading, click: () => openCard(n, true) }, String(n + 1), h("span", { class: "word" }, sections.length <= 7 && TAB[part.kind] ? ` ${TAB[part.kind]}` : ""))));
  listeners.push(() => drawers[cardAt]());
  openCard(0, false);
}
// Show a card; with `sets` it also sets the stage, as it asks.
function openCard(n, sets) {
  cardAt = Math.max(0, Math.min(sections.length - 1, n));
  [...$("card-list").children].forEach((article, k) => { article.hidden = k !== cardAt; });
  [...$("tabs").children].forEach((tab, k) => { if (k === cardAt) tab.setAttribute("aria-current", "step"); else tab.removeAttribute("aria-current"); });
  unfold(false);
  $("card-list").scrollTop = 0;
  const kind = cardKind();
  if (sets) {
    if (["nudge", "roads", "close"].includes(kind) && twin.ok && !changedNow.nudge && kind !== "close") startNudge();
    if (kind !== "close" && anyClosed(changedNow.closed)) for (const k of Object.keys(changedNow.closed)) changedNow.closed[k] = false;
    if (["turn", "back", "say"].includes(kind) && isChanged()) { changedNow.vary = byName(); changedNow.nudge = null; }
    changed();
    const place_ = sections[cardAt].go.length && kind !== "nudge" && kind !== "roads" ? sections[cardAt].go[0].slice(1) : SETS[kind] ? SETS[kind]() : null, to = place_ ? findAny(...place_) : -1;
    if (to >= 0) show(to, false);
    $("live").textContent = `Card ${cardAt + 1} of ${sections.length}: ${sections[cardAt].heading}`;
  }
  drawers[cardAt]();
}
function markPlaces(i) {
  for (const button of document.querySelectorAll(".go button")) {
    if (button.dataset.go === `${E.line[i]} ${E.j[i]}`) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
  }
}
function unfold(open) {
  $("listing").classList.toggle("open", open);
  $("unfold").setAttribute("aria-expanded", String(open));
}
