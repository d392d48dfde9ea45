// What the reader has changed, and the run that follows from it: by the twin, or the nearest recorded run of the engine.
const changedNow = { vary: byName(), nudge: null, closed: { curvature: false, state: false, early: false } };
const varied = (name) => X.vary.find((one) => one.name === name);
const isChanged = () => Object.keys(changedNow.vary).length > 0 || changedNow.nudge !== null;
const nearest = (one, x) => one.at.reduce((best, v, k) => (one.val[k] !== null && (best < 0 || Math.abs(v - x) < Math.abs(one.at[best] - x)) ? k : best), -1);
// The recorded values of a varied number, its own among them, in order.
const stopsOf = (one) => [...new Set([...one.at, one.value])].sort((a, b) => a - b);
const anyClosed = (closed) => closed.curvature || closed.state || closed.early;
const closedName = (closed) => ["curvature", "state", "early"].filter((k) => closed[k] && (k !== "state" || D.slots.length)).join("+");
const setting = (name) => (changedNow.vary[name] === undefined ? varied(name).value : changedNow.vary[name]);
const ofPlace = (A, one) => (A[leafName(one)] ? A[leafName(one)][one.index] : undefined);

// {path, val, A: {name: number}, source} for these settings, or null where no such run is known.
function follow(vary, nudge, closed = {}) {
  if (twin.ok) {
    const run = twin.run(vary, nudge), swept = twin.sweep(run, closed);
    return { path: run.thetas, val: run.val, losses: run.losses, A: Object.fromEntries(X.vary.map((one) => [one.name, ofPlace(swept.A, one)])), Bs: swept.Bs, source: "twin" };
  }
  if (nudge || anyClosed(closed)) return null;
  const names = Object.keys(vary);
  if (names.length !== 1) return null;
  const one = varied(names[0]), k = nearest(one, vary[one.name]);
  return k < 0 ? null : { path: one.path[k], val: one.val[k], A: { [one.name]: one.A[k] }, source: "recorded", at: one.at[k] };
}
// The run that the reader sees as a ghost; kept until something changes.
let ghostRun = null;
const ghost = () => ghostRun;
const recordedB = (j) => flat("B", j);
const closedB = (j, closed) => {
  const known_ = X.roads[closedName(closed)];
  return !closedName(closed) ? recordedB(j) : known_ && known_.B[j] ? known_.B[j] : twin.ok ? twin.sweep(twin.run(), closed).Bs[j] : null;
};
// A of a varied number with roads closed, at the recorded settings by the engine, elsewhere by the twin.
function closedA(one, closed) {
  const name = closedName(closed), atHome = !Object.keys(changedNow.vary).length;
  if (!name && atHome) { const leaf = D.A.find((l) => l.label === one.label); return leaf && leaf.final ? leaf.final.v[one.index] : null; }
  if (atHome && X.roads[name] && X.roads[name].A[one.label]) return X.roads[name].A[one.label][one.index];
  if (twin.ok) return follow(changedNow.vary, null, closed).A[one.name];
  const k = name ? -1 : nearest(one, setting(one.name));
  return k < 0 ? null : one.A[k];
}
const listeners = [];
function changed() {
  ghostRun = isChanged() ? follow(changedNow.vary, changedNow.nudge) : null;
  for (const one of listeners) one();
}
function putBack() {
  changedNow.vary = byName();
  changedNow.nudge = null;
  changed();
}
