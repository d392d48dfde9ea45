// The optimizers that the twin knows: a step, and its pullback, entry by entry as in the engine.
const each_ = (n, f) => Array.from({ length: n }, (_, i) => f(i));
const RULES = {
  sgd: {
    slots: [],
    step: (x, s, G, o) => [x.map((v, i) => v - o.lr * G[i]), {}],
    pull: (x, s, G, o, t, B) => ({ V: B.map((b) => -o.lr * b), B, S: {}, A: { lr: -dot(B, G) } }),
  },
  momentum: {
    slots: ["momentum_buffer"],
    step(x, s, G, o) {
      const b = s.momentum_buffer.map((v, i) => v * o.momentum + G[i]);
      return [x.map((v, i) => v - o.lr * b[i]), { momentum_buffer: b }];
    },
    pull(x, s, G, o, t, B, S) {
      const b = s.momentum_buffer.map((v, i) => v * o.momentum + G[i]), V = B.map((v, i) => S.momentum_buffer[i] - o.lr * v);
      return { V, B, S: { momentum_buffer: V.map((v) => o.momentum * v) }, A: { lr: -dot(B, b), momentum: dot(V, s.momentum_buffer) } };
    },
  },
  adam: {
    slots: ["exp_avg", "exp_avg_sq"],
    moments(s, G, o, t) {
      const w = 1 - o.beta1, g2 = 1 - o.beta2;
      const mean = G.map((g, i) => { const from = s.exp_avg[i]; return w < 0.5 ? from + w * (g - from) : g - (g - from) * (1 - w); });
      const square = G.map((g, i) => s.exp_avg_sq[i] * o.beta2 + g * g2 * g);
      return { mean, square, c1: 1 - o.beta1 ** t, c2: 1 - o.beta2 ** t };
    },
    step(x, s, G, o, t) {
      const { mean, square, c1, c2 } = RULES.adam.moments(s, G, o, t);
      const to = x.map((v, i) => v + (mean[i] * -(o.lr / c1)) / (Math.sqrt(square[i]) / Math.sqrt(c2) + o.eps));
      return [to, { exp_avg: mean, exp_avg_sq: square }];
    },
    pull(x, s, G, o, t, B, S) {
      const { mean, square, c1, c2 } = RULES.adam.moments(s, G, o, t), pace = o.lr / c1, A = { lr: 0, beta1: 0, beta2: 0, eps: 0 };
      const V = [], first = [], second = [];
      each_(B.length, (i) => {
        const r = Math.sqrt(square[i]), d = r / Math.sqrt(c2) + o.eps, q = B[i] / d, u = q * mean[i], w = u / d;
        const slope = r > 0 ? ((1 / (2 * r)) * pace) / Math.sqrt(c2) : 0; // 0 at v = 0: the step is linear in G there
        const mBar = S.exp_avg[i] - q * pace, vBar = S.exp_avg_sq[i] + w * slope;
        V.push(mBar * (1 - o.beta1) + G[i] * vBar * 2 * (1 - o.beta2));
        first.push(mBar * o.beta1);
        second.push(vBar * o.beta2);
        A.lr -= u / c1;
        A.beta1 += mBar * (s.exp_avg[i] - G[i]) - u * ((pace / c1) * t * o.beta1 ** (t - 1));
        A.beta2 += vBar * (s.exp_avg_sq[i] - G[i] * G[i]) + w * r * ((pace * t * o.beta2 ** (t - 1)) / (2 * c2 ** 1.5));
        A.eps += w * pace;
      });
      return { V, B, S: { exp_avg: first, exp_avg_sq: second }, A };
    },
  },
};
