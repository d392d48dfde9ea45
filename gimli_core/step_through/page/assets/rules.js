// The rules whose formulas are written out: lines 6, 11, 12 and 14 in the optimizer's own terms.
const lr = () => explained(word("lr"), "lr"), mu = () => mi("μ"), beta = (n) => sub("β", n), eps = () => word("eps");
const t_ = (j) => m("mn", String(j + 1));
const corrected = (letter, n, j) => over(sub(letter, j + 1), plain("1", "−", m("msubsup", mi("β"), m("mn", String(n)), t_(j))));
const denominator = (j) => sub("d", j);
const OWN = {
  sgd: {
    6: (j) => [plain(theta(j + 1), "=", theta(j), "−", lr(), "·", sub("G", j))],
    11: (j) => [plain(sub("V", j), "=", "−", lr(), "·", sub("B", j + 1))],
    12: (j) => [plain(sub("A", "lr"), "+=", "−", sub("B", j + 1), "·", sub("G", j))],
    14: (j) => [plain(sub("B", j), "=", sub("B", j + 1), "+", sub("V", j), "·", hessianOf(j))],
  },
  momentum: {
    6: (j) => [plain(sub("b", j + 1), "=", mu(), sub("b", j), "+", sub("G", j)), plain(theta(j + 1), "=", theta(j), "−", lr(), "·", sub("b", j + 1))],
    11: (j) => [plain(sub("V", j), "=", "−", lr(), "·", sub("B", j + 1), "+", sub("S", j + 1))],
    12: (j) => [plain(sub("A", "lr"), "+=", "−", sub("B", j + 1), "·", sub("b", j + 1)), plain(sub("A", "momentum"), "+=", sub("V", j), "·", sub("b", j))],
    14: (j) => [plain(sub("B", j), "=", sub("B", j + 1), "+", sub("V", j), "·", hessianOf(j)), plain(sub("S", j), "=", mu(), "·", sub("V", j))],
  },
  adam: {
    6: (j) => [
      plain(sub("m", j + 1), "=", beta(1), sub("m", j), "+", "(", "1", "−", beta(1), ")", sub("G", j)), plain(sub("v", j + 1), "=", beta(2), sub("v", j), "+", "(", "1", "−", beta(2), ")", m("msubsup", mi("G"), m("mn", String(j)), m("mn", "2"))),
      plain(denominator(j), "=", root(corrected("v", 2, j)), "+", eps()), plain(theta(j + 1), "=", theta(j), "−", lr(), "·", corrected("m", 1, j), "/", denominator(j))],
    11: (j) => [
      plain(sub("V", j), "=", "(", "1", "−", beta(1), ")", raised("m", j), "+", "2", "(", "1", "−", beta(2), ")", sub("G", j), raised("v", j)), ...bars(j)],
    12: (j) => [plain(sub("A", "lr"), "+=", "−", sub("B", j + 1), "·", corrected("m", 1, j), "/", denominator(j))],
    14: (j) => [plain(sub("B", j), "=", sub("B", j + 1), "+", sub("V", j), "·", hessianOf(j)), plain(m("msubsup", mi("S"), m("mn", String(j)), mi("m")), "=", beta(1), raised("m", j)), plain(m("msubsup", mi("S"), m("mn", String(j)), mi("v")), "=", beta(2), raised("v", j))],
  },
  adagrad: {
    6: (j) => [plain(sub("x", j + 1), "=", sub("x", j), "+", m("msubsup", mi("G"), m("mn", String(j)), m("mn", "2"))), plain(theta(j + 1), "=", theta(j), "−", rate(j), "·", over(sub("G", j), plain(root(sub("x", j + 1)), "+", eps())))],
    11: (j) => [plain(sub("V", j), "=", "−", over([rate(j), sub("B", j + 1)], plain(root(sub("x", j + 1)), "+", eps())), "+", "2", sub("G", j), "·", sub("S", j)), ...adagradState(j)],
    12: (j) => [plain(sub("A", "lr"), "+=", "−", sub("B", j + 1), "·", over(sub("G", j), plain(root(sub("x", j + 1)), "+", eps())), ...(D.hyper.lr_decay ? ["/", "(", "1", "+", m("mn", String(j)), "·", word("lr_decay"), ")"] : []))],
    14: (j) => [plain(sub("B", j), "=", sub("B", j + 1), "+", sub("V", j), "·", hessianOf(j)), ...adagradState(j)],
  },
};
const raised = (letter, j) => m("mover", sub(letter, j + 1), mo("‾"));
// What reaches Adam's moments of step j + 1: their own adjoints, and B through the step. Line 11 shows it.
const bars = (j) => [
  plain(raised("m", j), "=", m("msubsup", mi("S"), m("mn", String(j + 1)), mi("m")), "−", over([lr()], [plain("(", "1", "−", m("msubsup", mi("β"), m("mn", "1"), t_(j)), ")", denominator(j))]), sub("B", j + 1)),
  plain(raised("v", j), "=", m("msubsup", mi("S"), m("mn", String(j + 1)), mi("v")), "+", lr(), "·", corrected("m", 1, j), "·", over(sub("B", j + 1), m("msup", denominator(j), m("mn", "2"))), "·", partial(denominator(j), sub("v", j + 1)))];
const rate = (j) => (D.hyper.lr_decay ? over([lr()], [plain("1", "+", m("mn", String(j)), "·", word("lr_decay"))]) : lr());
const adagradState = (j) => [plain(sub("S", j), "=", sub("S", j + 1), "+", over([rate(j), sub("G", j), sub("B", j + 1)], plain("2", root(sub("x", j + 1)), sup(plain("(", root(sub("x", j + 1)), "+", eps(), ")"), 2))))];

// Line 6 with this step's numbers in the rule's own formula; null where they are not on the page.
function ownStep(j) {
  const h_ = D.hyper, at = (name, k) => entriesOf(name, k), to = at("theta", j + 1), from = at("theta", j), G = at("G", j), note = entryNote();
  if (!to || !from || !G || h_.lr === undefined) return null;
  if (D.rule === "sgd") return [plain(...note, vector(to), "=", vector(from), "−", mn(h_.lr), "·", vector(G))];
  if (D.rule === "momentum") {
    const b = at("s.momentum_buffer", j + 1);
    return [plain(...note, vector(b), "=", mn(h_.momentum), "·", vector(at("s.momentum_buffer", j)), "+", vector(G)), plain(vector(to), "=", vector(from), "−", mn(h_.lr), "·", vector(b))];
  }
  if (D.rule === "adam") {
    const first = at("s.exp_avg", j + 1), second = at("s.exp_avg_sq", j + 1), d = second.map((v) => Math.sqrt(v / (1 - h_.beta2 ** (j + 1))) + h_.eps);
    return [...each([[sub("m", j + 1), "s.exp_avg", j + 1], [sub("v", j + 1), "s.exp_avg_sq", j + 1]]), plain(denominator(j), "=", vector(d)), plain(vector(to), "=", vector(from), "−", mn(h_.lr), "·", vector(first), "/", "(", mn(1 - h_.beta1 ** (j + 1)), "·", denominator(j), ")")];
  }
  const x = at("s.sum", j + 1);
  return [...each([[sub("x", j + 1), "s.sum", j + 1]]), plain(vector(to), "=", vector(from), "−", mn(h_.lr / (1 + j * (h_.lr_decay || 0))), "·", vector(G), "/", vector(x.map((v) => Math.sqrt(v) + h_.eps)))];
}
