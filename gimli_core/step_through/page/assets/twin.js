// A twin of the engine for the reader's hand: the same run in plain numbers, at any setting. It is believed only where
// it gives the recorded run again, to a relative 1e-12 in every number; else its handles stay hidden, with the reason.
const X = D.experiments || { vary: [], roads: {} };
const TWIN_TOLERANCE = 1e-12;
const twin = (() => {
  const spec = X.twin;
  if (!spec) return { ok: false, why: "Between the recorded runs nothing can be dragged: the page knows no formula for this loss." };
  const rule = RULES[D.rule], loss = LOSSES[spec.loss.kind] && LOSSES[spec.loss.kind](spec.loss), val = LOSSES[spec.val.kind] && LOSSES[spec.val.kind](spec.val);
  if (!rule || !loss || !val) return { ok: false, why: `Between the recorded runs nothing can be dragged: the page has no twin of ${rule ? "this loss" : D.optimizer}.` };
  const start = flat("theta", 0), hyper = D.hyper, phi = spec.phi || {};
  const settingsOf = (changed = {}) => {
    const all = { hyper: { ...hyper }, phi: Object.fromEntries(Object.entries(phi).map(([k, v]) => [k, [...v]])) };
    for (const one of X.vary) {
      if (!Object.hasOwn(changed, one.name)) continue;
      if (one.label.startsWith("phi_opt")) all.hyper[one.name] = changed[one.name]; else all.phi[leafName(one)][one.index] = changed[one.name];
    }
    return all;
  };
  // The forward unroll; a nudge {j, delta} is added to θ_j before its step.
  function run(changed, nudge) {
    const settings = settingsOf(changed), thetas = [start], states = [Object.fromEntries(rule.slots.map((k) => [k, flat(`s.${k}`, 0)]))], gradients = [], losses = [];
    const moved = (j, x) => (nudge && nudge.j === j ? x.map((v, i) => v + (nudge.delta[i] || 0)) : x);
    thetas[0] = moved(0, start);
    for (let j = 0; j < J; j++) {
      losses.push(loss.value(thetas[j], settings.phi));
      gradients.push(loss.gradient(thetas[j], settings.phi));
      const [x, s_] = rule.step(thetas[j], states[j], gradients[j], settings.hyper, j + 1);
      thetas.push(moved(j + 1, x));
      states.push(s_);
    }
    return { settings, thetas, states, gradients, losses, val: val.value(thetas[J], settings.phi) };
  }
  // The sweep, with roads closed: {curvature, state, early}.
  function sweep(r, closed = {}) {
    const none = Object.fromEntries(rule.slots.map((k) => [k, start.map(() => 0)])), last = closed.early ? Math.max(0, J - X.kept_steps) : 0;
    let B = val.gradient(r.thetas[J], r.settings.phi), S = none;
    const Bs = [], Ss = [], A = byName();
    const add = (name, k, x) => { const sum = (A[name] = A[name] || []); sum[k] = (sum[k] || 0) + x; };
    Bs[J] = B; Ss[J] = S;
    for (let j = J - 1; j >= last; j--) {
      const p = rule.pull(r.thetas[j], r.states[j], r.gradients[j], r.settings.hyper, j + 1, B, S);
      for (const [k, x] of Object.entries(p.A)) add(k, 0, x);
      for (const [k, xs] of Object.entries(loss.mixed(r.thetas[j], r.settings.phi, p.V))) xs.forEach((x, i) => add(k, i, x));
      const bent = closed.curvature ? null : loss.product(r.thetas[j], r.settings.phi, p.V);
      B = bent ? p.B.map((b, i) => b + bent[i]) : p.B;
      S = closed.state ? none : p.S;
      Bs[j] = B; Ss[j] = S;
    }
    for (let j = last - 1; j >= 0; j--) { Bs[j] = B; Ss[j] = S; }
    return { Bs, Ss, A };
  }
  // Against the recorded run, number by number.
  function check() {
    const r = run(), sw = sweep(r);
    let worst = 0, where = "";
    const compare = (mine, engine, what) => {
      const size = Math.max(...engine.map((x) => Math.abs(value(x))));
      mine.forEach((x, i) => { const gap = Math.abs(x - value(engine[i])), relative = gap === 0 ? 0 : gap / size; if (!(relative <= worst)) { worst = relative; where = what; } });
    };
    for (let j = 0; j <= J; j++) {
      compare(r.thetas[j], flat("theta", j), `θ${subscript(j)}`);
      compare(sw.Bs[j], flat("B", j), `B${subscript(j)}`);
      if (j < J) compare(r.gradients[j], flat("G", j), `G${subscript(j)}`);
      for (const k of rule.slots) { compare(r.states[j][k], flat(`s.${k}`, j), `s${subscript(j)}`); compare(sw.Ss[j][k], flat(`S.${k}`, j), `S${subscript(j)}`); }
    }
    compare([r.val], [D.val.loss], "L_val");
    for (const leaf of D.A) compare(sw.A[leafName(leaf)] || leaf.final.v.map(() => 0), leaf.final.v, `A of ${leafName(leaf)}`);
    return [worst, where];
  }
  try {
    if (D.error || D.extent !== "complete" || D.interventions.length || D.recurrence !== "augmented") throw new Error("the run was changed, or is not whole");
    const [worst, where] = check();
    if (!(worst <= TWIN_TOLERANCE)) return { ok: false, worst, why: `Nothing can be dragged freely: the page's own formulas differ from the engine by ${worst.toExponential(1)} in ${where}. Recorded runs of the engine are shown instead.` };
    return { ok: true, worst, run, sweep, loss, why: `The page's own formulas gave the recorded run again: the largest relative difference is ${worst === 0 ? "0" : worst.toExponential(1)}.` };
  } catch (error) {
    return { ok: false, why: `Nothing can be dragged freely: ${error.message}.` };
  }
})();
