// L_val over one meta-parameter, with its tangent: the slope is what the page computes.
const SAMPLES = 161;
let plots_ = 0;
function curvePlot(one) {
  const holder = h("div", { class: "plot" }), cache = new Map(), clip = `clip${plots_++}`;
  let zoom = 1, centre = one.value;
  const stops = stopsOf(one), first = stops[0], last = stops[stops.length - 1];
  const range = () => { const half = (last - first) / 2 / zoom || 1, mid = zoom === 1 ? (first + last) / 2 : centre; return [mid - half, mid + half]; };
  function samples() {
    const [low, high] = range(), others = Object.fromEntries(Object.entries(changedNow.vary).filter(([k]) => k !== one.name)), key = JSON.stringify([low, high, others]);
    if (!cache.has(key)) {
      if (cache.size > 20) cache.clear();
      cache.set(key, twin.ok ? Array.from({ length: SAMPLES }, (_, k) => { const x = low + (k / (SAMPLES - 1)) * (high - low); return [x, twin.run({ ...others, [one.name]: x }).val]; }) : one.at.map((x, k) => [x, value(one.val[k])]).filter(([x, v]) => x >= low && x <= high && Number.isFinite(v)));
    }
    return cache.get(key);
  }
  function draw() {
    const [W, H] = sizeOf(holder), left = 54, right = 8, top = 8, bottom = 30, [low, high] = range(), points = samples(), finite = points.map((p) => p[1]).filter(Number.isFinite).sort((a, b) => a - b);
    if (!finite.length) { holder.replaceChildren(h("p", { class: "facts" }, "No run here ended in a finite number.")); return; }
    const now = setting(one.name), at_ = ghost() && ghost().source === "recorded" ? ghost().at : now, here = Object.keys(changedNow.vary).length ? (ghost() ? ghost().val : null) : D.val.loss;
    const floor = Math.min(finite[0], here === null ? Infinity : here), usual = Math.min(finite[finite.length - 1], floor + 8 * (finite[finite.length >> 1] - floor) || Infinity), ceiling = Math.max(usual, here === null || !Number.isFinite(here) ? -Infinity : here), span = ceiling - floor || Math.abs(floor) || 1, y0 = floor - 0.08 * span, y1 = ceiling + 0.08 * span;
    const X_ = (x) => left + ((x - low) / (high - low)) * (W - left - right), Y_ = (y) => top + ((y1 - Math.max(y0 - span, Math.min(y1 + span, y))) / (y1 - y0)) * (H - top - bottom);
    const tangent = (slope, style) => {
      if (slope === null || slope === undefined || here === null || !Number.isFinite(slope)) return null;
      const reach = Math.min(0.3 * (high - low), slope === 0 ? Infinity : (0.8 * (y1 - y0)) / Math.abs(slope));
      return s("line", { class: `tangent ${style}`, x1: X_(at_ - reach), y1: Y_(here - reach * slope), x2: X_(at_ + reach), y2: Y_(here + reach * slope) });
    };
    const tick = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e4) ? v.toExponential(1).replace("e+", "e") : String(Number(v.toPrecision(zoom > 1 ? 9 : 3)))).replace("-", "−");
    const inside = (x) => x >= low && x <= high;
    let d = "";
    for (const [x, y] of points) d += Number.isFinite(y) ? `${d ? "L" : "M"}${X_(x).toFixed(1)} ${Y_(y).toFixed(1)}` : "";
    holder.replaceChildren(NS(s("svg", { role: "img", "aria-label": `L_val over ${one.name}, at ${fmt(now)} with slope ${fmt(closedA(one, {}))}` },
      s("clipPath", { id: clip }, s("rect", { x: left, y: top, width: W - left - right, height: H - top - bottom })),
      s("line", { class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom }), s("line", { class: "axis", x1: left, x2: left, y1: top, y2: H - bottom }),
      s("text", { x: left - 5, y: top + 10, "text-anchor": "end" }, tick(y1)), s("text", { x: left - 5, y: H - bottom, "text-anchor": "end" }, tick(y0)), drawn(null, sv("text", { x: left - 5, y: (top + H - bottom) / 2 + 4, "text-anchor": "end", style: "fill: var(--ink)" }, ...svgSymbols("L_val"))),
      s("text", { x: left, y: H - bottom + 13 }, tick(low)), s("text", { x: W - right, y: H - bottom + 13, "text-anchor": "end" }, tick(high)), s("text", { x: (left + W - right) / 2, y: H - 5, "text-anchor": "middle", style: { fill: "var(--ink)" } }, one.name),
      s("g", { "clip-path": `url(#${clip})` }, s("path", { class: "curve", d }), ...(zoom === 1 ? one.at.map((x, k) => (typeof one.val[k] === "number" && inside(x) ? s("circle", { cx: X_(x), cy: Y_(one.val[k]), r: 1.7, fill: "var(--forward)" }) : null)).filter(Boolean) : []),
        tangent(closedA(one, {}), ""), anyClosed(changedNow.closed) ? tangent(closedA(one, changedNow.closed), "off") : null),
      here !== null && inside(at_) ? s("circle", { cx: X_(at_), cy: Y_(here), r: 5, fill: anyClosed(changedNow.closed) ? "none" : "var(--mark-edge)", stroke: "var(--mark-edge)", "stroke-width": 2 }) : null), W, H));
  }
  const zooms = twin.ok ? h("label", { class: "line" }, "zoom ", h("select", { "aria-label": `Zoom of the curve over ${one.name}`, change: (e) => { zoom = Number(e.target.value); centre = setting(one.name); draw(); } }, ...[1, 10, 100, 1e4, 1e6].map((z) => h("option", { value: z }, z === 1 ? "whole" : `×${z.toLocaleString("en")}`)))) : null;
  return { nodes: [holder, zooms].filter(Boolean), draw };
}
