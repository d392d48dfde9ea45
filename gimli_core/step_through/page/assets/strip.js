// The strip: every step with its loss, ‖B‖ on a printed scale, and its term of A. A click goes there.
const stripLeaf = () => D.A.find((leaf) => leaf.inc.some((x) => x && x.v)) || null;
function strip() {
  const holder = $("timeline"), [W, H] = sizeOf(holder), left = 104 * em(), right = 18 * em(), width = W - left - right, columns = J + 1, lane = (H - 16 * em()) / 3;
  const X_ = (j) => left + (columns > 1 ? (j / (columns - 1)) * width : width / 2);
  const label = (text, y, colour) => s("text", { x: 0, y, style: { fill: colour, fontWeight: 600 } }, text);
  const short = (v) => (v !== 0 && (Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3) ? v.toExponential(0).replace("e+", "e") : String(Number(v.toPrecision(2)))).replace(/-/g, "−");
  const scale = (values, top, height, force) => {
    const ok = values.map(value).filter(Number.isFinite), positive = ok.filter((x) => x > 0);
    if (!ok.length) return null;
    const log = !force && positive.length === ok.length && Math.max(...ok) / Math.min(...ok) > 300, f = (x) => (log ? Math.log10(x) : x);
    const low = log ? Math.min(...ok) : Math.min(0, ...ok), high = Math.max(...ok, force ? 0 : -Infinity), span = f(high) - f(low) || 1;
    return { log, low, high, Y: (x) => top + (1 - (f(x) - f(low)) / span) * height };
  };
  const marks = (sc, top, height) => (sc ? [s("text", { x: left - 18, y: top + 9, "text-anchor": "end" }, short(sc.high)), height > 24 ? s("text", { x: left - 18, y: top + height + 1, "text-anchor": "end" }, short(sc.low)) : null, s("line", { class: "axis", x1: left - 14, x2: W - right + 14, y1: top + height, y2: top + height })] : []);
  const line = (values, sc, colour, style) => {
    if (!sc) return [];
    let d = "", pen = "M";
    values.map(value).forEach((x, j) => { if (Number.isFinite(x)) { d += `${pen}${X_(j).toFixed(1)} ${sc.Y(x).toFixed(1)}`; pen = "L"; } else pen = "M"; });
    return [s("path", { d, fill: "none", stroke: colour, "stroke-width": 2, "stroke-linejoin": "round", ...style }), ...(columns <= 130 && !style ? values.map((x, j) => (typeof x === "number" ? s("circle", { cx: X_(j), cy: sc.Y(x), r: 2.6, fill: colour }) : null)) : [])];
  };
  const inner = lane - 7, B = D.q.B ? D.q.B.norm : [], leaf = stripLeaf(), terms = leaf ? leaf.inc.map((x) => single(x)) : [];
  const lossScale = scale(D.loss, 2, inner), BScale = scale(B, lane + 2, inner), AScale = scale(terms, 2 * lane + 2, inner, true);
  const wide = Math.max(1.5, Math.min(26, (width / columns) * 0.6)), shade = s("rect", { y: 0, height: H - 14, fill: "var(--mark-edge)", "fill-opacity": 0.09 });
  const bars = terms.map((v, j) => (typeof v === "number" ? s("rect", { x: X_(j) - wide / 2, y: Math.min(AScale.Y(v), AScale.Y(0)), width: wide, height: Math.max(0.8, Math.abs(AScale.Y(v) - AScale.Y(0))), fill: `var(--${v < 0 ? "negative" : "positive"})`, "data-bar": j }, s("title", null, `step ${j}: ${fmt(v)}`)) : null));
  const head = s("line", { class: "cursor", y1: 0, y2: H - 14 }), knob = s("circle", { r: 5, fill: "var(--mark-edge)", stroke: "var(--card)", "stroke-width": 2 }), held = s("g"), ghostLine = s("path", { class: "ghost" });
  const every = Math.max(1, Math.ceil((columns * 26) / width));
  const svg = NS(s("svg", { role: "img", "aria-label": `Strip of ${J} steps: the loss, the norm of B ${BScale && BScale.log ? "on a logarithmic scale" : ""}, and each step's term of A`, style: { cursor: "pointer" } },
    drawn(null, ground(W, H)), shade, ...marks(lossScale, 2, inner), ...marks(BScale, lane + 2, inner), ...marks(AScale, 2 * lane + 2, inner),
    label("ℓ →", 12, "var(--forward)"), label("← ‖B‖", lane + 12, "var(--backward)"), BScale && BScale.log ? s("text", { x: 0, y: lane + (lane < 30 ? 21 : 25), class: "log" }, "log") : null, label(leaf ? `← A ${leafName(leaf)}`.slice(0, 12) : "", 2 * lane + 12, "var(--ink)"),
    ...bars, ...line(D.loss, lossScale, "var(--forward)"), ghostLine, ...line(B, BScale, "var(--backward)"), held, head, knob,
    ...Array.from({ length: columns }, (_, j) => (j % every === 0 ? s("text", { x: X_(j), y: H - 2, "text-anchor": "middle" }, j) : null)), s("text", { x: left - 18, y: H - 2, "text-anchor": "end" }, "step j")), W, H);
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * W, y = ((event.clientY - box.top) / box.height) * H;
    const j = Math.max(0, Math.min(J, Math.round(((x - left) / width) * (columns - 1))));
    const to = y < lane ? (j < J ? find(6, j) : turn) : j < J ? (y > 2 * lane && leaf ? findAny(leaf.kind === "A_opt" ? 12 : 13, j) : findAny(14, j)) : findAny(9, J);
    if (to >= 0 && to < count) show(to, true);
  });
  svg.move = (i) => {
    const j = E.line[i] === 16 ? 0 : E.j[i], back = backward(i), x = X_(Math.min(J, E.line[i] === 6 ? j + 0.5 : j));
    head.setAttribute("x1", x); head.setAttribute("x2", x);
    knob.setAttribute("cx", x); knob.setAttribute("cy", back ? lane * 1.5 : lane / 2);
    shade.setAttribute("x", back ? x : left); shade.setAttribute("width", Math.max(0, back ? W - right - x : x - left));
    const done = !back ? J + 1 : E.line[i] >= (leaf && leaf.kind === "A_loss" ? 13 : 12) ? j : j + 1;
    bars.forEach((bar_, k) => { if (bar_) bar_.classList.toggle("to-come", k < done); });
    patch(held, D.held.filter(([, , from, to]) => from <= i && i < to).map(([kind, k]) => sv("path", kind === "graph" ? { d: `M${X_(k)} ${lane - 4}l4 4l-4 4l-4 -4z`, fill: "var(--forward)" } : { d: `M${X_(k) - 3} ${lane - 3}h6v6h-6z`, fill: "var(--soft)" })));
    const run = ghost();
    ghostLine.setAttribute("d", run && run.losses && lossScale ? run.losses.map((v, k) => `${k ? "L" : "M"}${X_(k).toFixed(1)} ${Math.max(-4, Math.min(lane, lossScale.Y(Math.max(v, lossScale.log ? 1e-300 : -Infinity)))).toFixed(1)}`).join("") : "");
  };
  return svg;
}
