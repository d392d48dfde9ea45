// The map: contours of ℓ with the path and the rings of L_val, or data with the fit, or the loss by step.
const NS = (svg, w, h_) => { svg.setAttribute("viewBox", `0 0 ${w} ${h_}`); return svg; };
const em = () => { if (!sizes.has("em")) sizes.set("em", parseFloat(getComputedStyle(document.documentElement).fontSize) / 16); return sizes.get("em"); }; // the reader's font size, over the usual one
const sizes = new Map(); // read once: a size asked for after each change would lay the page out again
function sizeOf(holder) {
  if (!sizes.has(holder)) {
    if (!holder.clientWidth) return [300, 120]; // not shown
    sizes.set(holder, [Math.max(120, holder.clientWidth), Math.max(70, holder.clientHeight)]);
  }
  return sizes.get(holder);
}
// Marching squares: the lines at which a grid of values crosses a level, as a path.
function contour(grid, columns, rows, level, Xg, Yg) {
  let d = "";
  const cross = (a, b) => (level - a) / (b - a);
  for (let r = 0; r < rows - 1; r++) for (let c = 0; c < columns - 1; c++) {
    const k = r * columns + c, v = [grid[k], grid[k + 1], grid[k + columns + 1], grid[k + columns]];
    if (!v.every(Number.isFinite)) continue;
    const ends = [];
    if (v[0] < level !== v[1] < level) ends.push([c + cross(v[0], v[1]), r]);
    if (v[1] < level !== v[2] < level) ends.push([c + 1, r + cross(v[1], v[2])]);
    if (v[2] < level !== v[3] < level) ends.push([c + 1 - cross(v[2], v[3]), r + 1]);
    if (v[3] < level !== v[0] < level) ends.push([c, r + 1 - cross(v[3], v[0])]);
    for (let n = 0; n + 1 < ends.length; n += 2) d += `M${Xg(ends[n][0]).toFixed(1)} ${Yg(ends[n][1]).toFixed(1)}L${Xg(ends[n + 1][0]).toFixed(1)} ${Yg(ends[n + 1][1]).toFixed(1)}`;
  }
  return d;
}
const levels = (grid, n) => { const ok = grid.filter(Number.isFinite), low = Math.min(...ok), high = Math.max(...ok); return Array.from({ length: n }, (_, k) => low + (high - low) * ((k + 0.6) / (n + 1)) ** 2); };
const smallest = (grid) => grid.reduce((best, v, k) => (v < grid[best] ? k : best), 0);
function arrow(x, y, dx, dy, style, what) {
  const length = Math.hypot(dx, dy);
  if (!(length > 1)) return null;
  const [ux, uy] = [dx / length, dy / length], head = Math.min(9, 0.6 * length + 2), tip = [x + dx, y + dy];
  const wing = (side) => `${(tip[0] - head * ux + side * 0.5 * head * uy).toFixed(1)} ${(tip[1] - head * uy - side * 0.5 * head * ux).toFixed(1)}`;
  return sv("g", { class: `arrow ${style}`, "data-arrow": style }, sv("title", null, what), sv("path", { d: `M${x.toFixed(1)} ${y.toFixed(1)}L${tip[0].toFixed(1)} ${tip[1].toFixed(1)}M${wing(1)}L${tip[0].toFixed(1)} ${tip[1].toFixed(1)}L${wing(-1)}` }));
}
const star = (x, y, size) => `M${x - size} ${y}H${x + size}M${x} ${y - size}V${y + size}M${x - 0.7 * size} ${y - 0.7 * size}l${1.4 * size} ${1.4 * size}M${x - 0.7 * size} ${y + 0.7 * size}l${1.4 * size} ${-1.4 * size}`;

// The step at which the map points: θ_j before its step, θ_{j+1} after it.
const pointAt = (i) => (E.line[i] === 6 ? E.j[i] + 1 : E.line[i] === 16 ? 0 : Math.min(J, E.j[i]));
const pathLine = (points, X_, Y_) => points.map((p, n) => `${n ? "L" : "M"}${X_(p[0]).toFixed(1)} ${Y_(p[1]).toFixed(1)}`).join("");

function planeMap() {
  const P = X.plane, holder = $("map").querySelector(".draw"), ell = P.ell.map(value), val = P.val.map(value);
  const [kx, ky] = P.entries, path = Array.from({ length: J + 1 }, (_, j) => flat("theta", j)).map((v) => v && [v[kx], v[ky]]);
  let W, H, scale, X_, Y_, laid = "", dots = [];
  const svg = s("svg", { role: "group" }), backdrop = s("g"), moving_ = s("g");
  svg.append(backdrop, moving_);
  const toTheta = (px, py) => [P.x[0] + (px - X_(P.x[0])) / scale, P.y[0] - (py - Y_(P.y[0])) / scale];
  function lay() {
    [W, H] = sizeOf(holder);
    const left = 40, bottom = 30, top = 6, right = 8, wide = P.x[1] - P.x[0], high = P.y[1] - P.y[0];
    scale = Math.min((W - left - right) / wide, (H - top - bottom) / high); // the same for both axes: slopes stand square on contours
    const w = scale * wide, h_ = scale * high, x0 = left + Math.max(0, (W - left - right - w) / 2), y0 = top + Math.max(0, (H - top - bottom - h_) / 2);
    X_ = (v) => x0 + (v - P.x[0]) * scale;
    Y_ = (v) => y0 + (P.y[1] - v) * scale;
    const Xg = (c) => x0 + (c / (P.columns - 1)) * w, Yg = (r) => y0 + h_ - (r / (P.rows - 1)) * h_;
    const aim = smallest(val), tick = (v) => String(Number(v.toPrecision(3))).replace("-", "−");
    backdrop.replaceChildren(
      s("rect", { x: x0, y: y0, width: w, height: h_, fill: "none", class: "axis", stroke: "var(--line)" }),
      ...levels(ell, 12).map((v) => s("path", { class: "contour", d: contour(ell, P.columns, P.rows, v, Xg, Yg) })),
      ...levels(val, 5).slice(0, 4).map((v) => s("path", { class: "ring", d: contour(val, P.columns, P.rows, v, Xg, Yg) })),
      s("path", { d: star(Xg(aim % P.columns), Yg(Math.floor(aim / P.columns)), 5), stroke: "var(--backward)", "stroke-width": 1.6 }, s("title", null, "the smallest L_val on this map")),
      ...[P.x[0], P.x[1]].map((v, n) => s("text", { x: X_(v), y: y0 + h_ + 13, "text-anchor": n ? "end" : "start" }, tick(v))),
      ...[P.y[0], P.y[1]].map((v, n) => s("text", { x: x0 - 5, y: Y_(v) + (n ? 10 : 0), "text-anchor": "end" }, tick(v))),
      s("text", { x: x0 + w / 2, y: y0 + h_ + 14, "text-anchor": "middle" }, P.labels[0]),
      s("text", { x: x0 - 6, y: y0 + h_ / 2 + 4, "text-anchor": "end" }, P.labels[1]));
    const dot_ = (j, here) => { const p = clip(path[j]); return sv("circle", { cx: X_(p[0]), cy: Y_(p[1]), r: here ? 6 : 3, fill: here ? "var(--mark-edge)" : "var(--forward)" }, sv("title", null, `θ${subscript(j)} = ${vectorText(flat("theta", j))}`)); };
    dots = path.map((p, j) => (p ? [dot_(j, false), dot_(j, true)] : [null, null]));
    NS(svg, W, H);
    holder.replaceChildren(svg);
  }
  const clip = (p) => [Math.max(P.x[0], Math.min(P.x[1], p[0])), Math.max(P.y[0], Math.min(P.y[1], p[1]))];
  return function draw(i) {
    const [w, h_] = sizeOf(holder);
    if (laid !== `${w} ${h_} ${digits}`) { lay(); laid = `${w} ${h_} ${digits}`; }
    const shownTo = backward(i) ? J : pointAt(i), ahead = path.slice(shownTo).filter(Boolean).map(clip), k = pointAt(i), here = path[k], run = ghost();
    const points = path.slice(0, shownTo + 1).filter(Boolean).map(clip);
    const rest = ahead.length > 1 ? [sv("path", { class: "rest", d: pathLine(ahead, X_, Y_) }, sv("title", null, "the steps that follow")), sv("circle", { cx: X_(ahead.at(-1)[0]), cy: Y_(ahead.at(-1)[1]), r: 3.5, fill: "none", stroke: "var(--forward)", "stroke-width": 1.5 }, sv("title", null, `θ${subscript(J)}, where the run ends`))] : [];
    const ghosts = run && run.path ? [sv("path", { class: "ghost", d: pathLine(run.path.map((p) => clip([p[kx], p[ky]])), X_, Y_) }), ...run.path.map((p) => clip([p[kx], p[ky]])).map((p) => sv("circle", { cx: X_(p[0]), cy: Y_(p[1]), r: 2.4, fill: "var(--positive)" }))] : [];
    const B = backward(i) ? (E.line[i] > 9 && E.line[i] < 14 ? flat("B", E.j[i] + 1) : flat("B", k)) : null;
    const from = E.line[i] > 9 && E.line[i] < 14 ? path[E.j[i] + 1] : here;
    let price = null;
    if (B && from) {
      const [bx, by] = [value(B[kx]), value(B[ky])], size = Math.hypot(bx, by), reach = 0.15 * Math.min(w, h_) + 6;
      if (size > 0) price = arrow(X_(clip(from)[0]), Y_(clip(from)[1]), (reach * bx) / size, (-reach * by) / size, "adjoint", `B points where L_val rises; its length here says nothing`);
    }
    svg.setAttribute("aria-label", mapSays(i));
    patch(moving_, [sv("g", null, rest), sv("g", null, sv("path", { class: "path", d: pathLine(points, X_, Y_) })), sv("g", null, dots.slice(0, shownTo + 1).map((pair, j) => pair[j === k ? 1 : 0])), sv("g", null, ghosts), price, sv("g", null, roads(kx, ky, path, X_, Y_)), twin.ok && nudging() ? handle(path, kx, ky, X_, Y_, toTheta) : null]);
  };
}
const mapSays = (i) => `Map of ${X.plane.labels.join(" and ")}: contours of the inner loss, the path to θ${subscript(pointAt(i))} at ${vectorText(flat("theta", pointAt(i)) || [NaN])}${ghost() && ghost().path ? `, and the changed path to ${vectorText(ghost().path[J])}` : ""}`;
// The nudge's two roads from θ_j to θ_{j+1}: straight on, and through the slope.
function twoRoads() {
  const nudge = changedNow.nudge;
  if (!D.rule || !nudge || nudge.j >= J || !D.jacobian[nudge.j]) return null;
  const n = D.parameters, d = nudge.delta.map((x) => x || 0), rows = D.rows, Z = D.jacobian[nudge.j];
  const all = d.map((_, r) => d.reduce((t, x, c) => t + value(Z[r * rows + c]) * x, 0));
  const H = D.hessian[nudge.j], O = flat("O", nudge.j);
  // For an elementwise rule the road through the slope is O·H·δ; what is left is the straight one.
  const bent = d.map((_, r) => value(O[r]) * d.reduce((t, x, c) => t + value(H[r * n + c]) * x, 0));
  return { all, bent, straight: all.map((x, r) => x - bent[r]) };
}
function roads(kx, ky, path, X_, Y_) {
  const two = nudging() ? twoRoads() : null, nudge = changedNow.nudge;
  if (!two || cardKind() === "nudge") return [];
  const [x, y] = path[nudge.j + 1], at_ = (dx, dy) => [X_(x + dx), Y_(y + dy)], origin = at_(0, 0), mid = at_(two.straight[kx], two.straight[ky]), end = at_(two.all[kx], two.all[ky]);
  return [
    changedNow.closed.early ? null : arrow(...origin, mid[0] - origin[0], mid[1] - origin[1], "straight", "the straight road: δ arrives as it is"),
    changedNow.closed.curvature ? null : arrow(...mid, end[0] - mid[0], end[1] - mid[1], "bent", "the road through the slope: −lr·H·δ"),
  ];
}
function handle(path, kx, ky, X_, Y_, toTheta) {
  const nudge = changedNow.nudge || { j: nudgeStep(), delta: [] }, base = path[nudge.j], at_ = [base[0] + (nudge.delta[kx] || 0), base[1] + (nudge.delta[ky] || 0)];
  const drag = (e) => {
    e.preventDefault();
    const svg = $("map").querySelector(".draw"), move = (event) => {
      const box = svg.getBoundingClientRect(), [x, y] = toTheta(event.clientX - box.left, event.clientY - box.top), delta = new Array(D.parameters).fill(0);
      delta[kx] = x - base[0];
      delta[ky] = y - base[1];
      setNudge(nudge.j, delta);
    };
    const end = () => { removeEventListener("pointermove", move); removeEventListener("pointerup", end); };
    addEventListener("pointermove", move);
    addEventListener("pointerup", end);
  };
  return sv("circle", { class: "handle", cx: X_(at_[0]), cy: Y_(at_[1]), r: 10, pointerdown: drag }, sv("title", null, `Drag θ${subscript(nudge.j)}`));
}
function fitMap() {
  const holder = $("map").querySelector(".draw"), fits = X.fit;
  const svg = s("svg", { role: "img" });
  return function draw(i) {
    if (!svg.isConnected) holder.replaceChildren(svg);
    const [W, H] = sizeOf(holder), k = pointAt(i), run = ghost(), grid = fits[0].x, left = 36, bottom = 28, all = [...fits.flatMap((f) => f.y), ...fits[0].support.map((p) => p[1]), ...fits[0].query.map((p) => p[1])];
    const low = Math.min(...all), high = Math.max(...all), X_ = (v) => left + ((v - grid[0]) / (grid[grid.length - 1] - grid[0])) * (W - left - 10), Y_ = (v) => 6 + ((high - v) / (high - low)) * (H - bottom - 6);
    const line = (ys) => grid.map((x, n) => `${n ? "L" : "M"}${X_(x).toFixed(1)} ${Y_(ys[n]).toFixed(1)}`).join(""), predict = twin.ok && twin.loss.predict;
    const parts = [
      ...[low, 0, high].map((v) => sv("text", { x: left - 5, y: Y_(v) + 4, "text-anchor": "end" }, v === 0 ? "0" : brief(v, 2))), sv("line", { class: "axis", x1: left, x2: W - 10, y1: Y_(0), y2: Y_(0) }),
      sv("text", { x: (left + W) / 2, y: H - 4, "text-anchor": "middle" }, "input x (y upwards)"), ...[grid[0], grid[grid.length - 1]].map((v, n) => sv("text", { x: X_(v), y: H - 4, "text-anchor": n ? "end" : "start" }, brief(v))),
      sv("path", { d: line(fits[0].y), fill: "none", stroke: "var(--edge)", "stroke-width": 1.5 }, sv("title", null, "the network at θ₀")),
      sv("path", { class: "path", d: line(fits[k].y) }, sv("title", null, `the network at θ${subscript(k)}`)),
      run && run.path && predict ? sv("path", { class: "ghost", d: line(grid.map((x) => predict(run.path[J], x))) }, sv("title", null, "the changed run at its end")) : null,
      ...fits[0].support.map(([x, y]) => sv("circle", { cx: X_(x), cy: Y_(y), r: 3.6, fill: "var(--negative)" }, sv("title", null, "a training point"))),
      ...fits[0].query.map(([x, y]) => sv("circle", { cx: X_(x), cy: Y_(y), r: 3.6, fill: "none", stroke: "var(--backward)", "stroke-width": 1.6 }, sv("title", null, "a validation point"))),
    ];
    NS(svg, W, H).setAttribute("aria-label", `The data and the network's curve at θ${subscript(k)}`);
    patch(svg, parts);
  };
}
function lossMap() {
  const holder = $("map").querySelector(".draw"), series = [["ℓ_j", D.loss]];
  let chart = null;
  return function draw(i) {
    if (!chart) { const [W, H] = sizeOf(holder); chart = curves({ series, height: Math.max(90, (520 * H) / W - 14), x: "step j", y: "ℓ_j", description: "The inner loss by step" }); holder.replaceChildren(chart); }
    chart.move(pointAt(i));
  };
}
const MAPS = { plane: ["Map", planeMap], fit: ["Data and fit", fitMap], loss: ["The inner loss", lossMap] };
const mapKind = X.plane && entryNames.length ? "plane" : X.fit ? "fit" : "loss";
const LEGENDS = { plane: [["var(--contour)", "ℓ"], ["var(--backward)", "L_val, B"], ["var(--forward)", "path"], ["var(--positive)", "changed"]], fit: [["var(--negative)", "train"], ["var(--backward)", "val"], ["var(--edge)", "θ_0"], ["var(--forward)", "θ_j"], ["var(--positive)", "changed"]], loss: [] };
