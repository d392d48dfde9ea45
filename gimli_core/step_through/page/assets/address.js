// The state in the address: a link leads to a moment (#line=14&j=4), a card, settings, a nudge and closed roads.
const ROADS = ["curvature", "state", "early"];
function addressOf() {
  const parts = [`line=${E.line[at]}`, `j=${E.j[at]}`];
  if (E.replay[at]) parts.push(`moment=${at}`);
  if (sections.length && cardAt) parts.push(`card=${cardAt + 1}`);
  for (const [name, x] of Object.entries(changedNow.vary)) parts.push(`${encodeURIComponent(`set.${name}`)}=${x}`);
  if (changedNow.nudge) parts.push(`nudge=${[changedNow.nudge.j, ...changedNow.nudge.delta.map((x) => x || 0)].join(",")}`);
  const closed = ROADS.filter((k) => changedNow.closed[k]);
  if (closed.length) parts.push(`closed=${closed.join(",")}`);
  return `#${parts.join("&")}`;
}
let written = "", writing = null;
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const text = addressOf();
    if (text === written) return;
    written = text;
    try { history.replaceState(null, "", text); } catch { /* a notebook's frame has no address of its own */ }
  }, 120);
}
// Anything that is not a number or a name of this run is passed over.
function readAddress(hash) {
  const asked = new URLSearchParams(hash.slice(1));
  if (!asked.size) return;
  clearTimeout(writing);
  const whole = (name) => (/^\d{1,6}$/.test(asked.get(name) || "") ? Number(asked.get(name)) : null);
  if (whole("card") !== null && whole("card") >= 1) openCard(whole("card") - 1, false);
  changedNow.vary = byName();
  for (const one of X.vary) {
    const text = asked.get(`set.${one.name}`), x = text === null || text === "" ? NaN : Number(text);
    if (Number.isFinite(x)) changedNow.vary[one.name] = Math.max(stopsOf(one)[0], Math.min(stopsOf(one).at(-1), x));
  }
  const nudge = (asked.get("nudge") || "").split(",").map(Number);
  changedNow.nudge = twin.ok && nudge.length === D.parameters + 1 && nudge.every(Number.isFinite) && Number.isInteger(nudge[0]) && nudge[0] >= 0 && nudge[0] <= J ? { j: nudge[0], delta: nudge.slice(1) } : null;
  if (changedNow.nudge) changedNow.vary = byName();
  const closed = (asked.get("closed") || "").split(",");
  for (const key of ROADS) changedNow.closed[key] = closed.includes(key) && (key !== "state" || D.slots.length > 0);
  changed();
  const to = whole("moment") !== null && whole("moment") < count ? whole("moment") : whole("line") !== null ? findAny(whole("line"), whole("j") || 0) : -1;
  if (to >= 0) show(to, false);
}
