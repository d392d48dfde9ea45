// What changes from step to step is sketched first, then set where it differs from what stands there: a step lays out
// and paints no more than it changed. A part that is not there now is null, and keeps its place among its siblings.
const sketch = (space, tag, attributes, children) => ({ space, tag, attributes: attributes || {}, children: children.flat() });
const sv = (tag, attributes, ...children) => sketch(SVG, tag, attributes, children);
const hv = (tag, attributes, ...children) => sketch(null, tag, attributes, children);
function patch(parent, children) {
  let node = parent.firstChild;
  for (const child of children) {
    const fresh = drawn(node, child);
    if (fresh !== node) { if (node) parent.replaceChild(fresh, node); else parent.append(fresh); }
    node = fresh.nextSibling;
  }
  while (node) { const next = node.nextSibling; node.remove(); node = next; }
}
// The node for a sketch: `node` itself where it is of the kind asked for.
function drawn(node, child) {
  if (child === null || child === undefined || typeof child !== "object") {
    const text = child === null || child === undefined ? "" : String(child);
    if (!node || node.nodeType !== Node.TEXT_NODE) return document.createTextNode(text);
    if (node.data !== text) node.data = text;
    return node;
  }
  const element = node && node.sketched && node.localName === child.tag && node.sketched.space === child.space ? node : child.space ? document.createElementNS(child.space, child.tag) : document.createElement(child.tag);
  if (element.sketched === child) return element;
  const before = element === node ? node.sketched.attributes : {};
  for (const [key, x] of Object.entries(child.attributes)) {
    if (typeof x === "function") { if (!before[key]) element.addEventListener(key, (event) => element.sketched.attributes[key]?.(event)); } else if (x !== before[key]) { if (x === null || x === undefined || x === false) element.removeAttribute(key); else element.setAttribute(key, x); }
  }
  for (const key in before) if (!(key in child.attributes)) element.removeAttribute(key);
  element.sketched = child;
  patch(element, child.children);
  return element;
}
const write = (id, ...children) => patch($(id), children);
// An opaque ground of a drawing: what changes on it is painted anew, and the browser need not put its layers together again.
const ground = (width, height) => sv("rect", { width, height, fill: "var(--card)" });
