// The losses that the twin knows, as plain numbers: value, gradient, Hessian times v, and V·∇φ∇θ for each φ_loss.
// Operations stand in the order in which the recorded run made them, so that a chaotic run too can be followed.
const dot = (a, b) => a.reduce((t, x, i) => t + x * b[i], 0);
const times = (H, x) => H.map((row) => dot(row, x));
const axpy = (a, x, y) => y.map((v, i) => v + a * x[i]);
const LOSSES = {
  // ½(θ−c)ᵀH(θ−c) + Σ_k φ_k·(a_k·θ) + ½·penalty·‖θ‖²
  quadratic({ H, center, linear = {}, penalty = null }) {
    const from = (x) => (center ? x.map((v, i) => v - center[i]) : x), weight = (phi) => (penalty ? phi[penalty][0] : 0);
    return {
      value: (x, phi) => dot(from(x), times(H, from(x))) / 2 + Object.entries(linear).reduce((t, [k, a]) => t + phi[k][0] * dot(a, x), 0) + (weight(phi) * dot(x, x)) / 2,
      gradient(x, phi) {
        let g = times(H, from(x));
        for (const [k, a] of Object.entries(linear)) g = axpy(phi[k][0], a, g);
        return penalty ? axpy(weight(phi), x, g) : g;
      },
      product: (x, phi, v) => (penalty ? axpy(weight(phi), v, times(H, v)) : times(H, v)),
      mixed: (x, phi, V) => ({ ...Object.fromEntries(Object.entries(linear).map(([k, a]) => [k, [dot(a, V)]])), ...(penalty ? { [penalty]: [dot(V, x)] } : {}) }),
    };
  },
  // Σ_i scale_i·(θ_i² − 1)²/4
  wells({ scale }) {
    return {
      value: (x) => x.reduce((t, v, i) => t + scale[i] * (v * v - 1) ** 2, 0) / 4,
      gradient: (x) => x.map((v, i) => 0.25 * scale[i] * (2 * (v * v - 1)) * (2 * v)),
      product: (x, phi, v) => x.map((u, i) => scale[i] * (3 * u * u - 1) * v[i]),
      mixed: () => ({}),
    };
  },
  // Σ_i ε_i·½(a_i·θ − b_i)²
  examples({ a, b, weights }) {
    const rest = (x) => a.map((row, i) => dot(row, x) - b[i]);
    const sum = (coefficients) => a[0].map((_, k) => coefficients.reduce((t, c, i) => t + c * a[i][k], 0));
    return {
      value: (x, phi) => rest(x).reduce((t, r, i) => t + (phi[weights][i] * r * r) / 2, 0),
      gradient: (x, phi) => sum(rest(x).map((r, i) => phi[weights][i] * r)),
      product: (x, phi, v) => sum(a.map((row, i) => phi[weights][i] * dot(row, v))),
      mixed: (x, phi, V) => ({ [weights]: rest(x).map((r, i) => r * dot(a[i], V)) }),
    };
  },
  // The mean squared error of a network with one hidden layer of tanh; θ = (in.weight, in.bias, out.weight, out.bias).
  network({ hidden: K, x: xs, y: ys }) {
    const split = (t) => [t.slice(0, K), t.slice(K, 2 * K), t.slice(2 * K, 3 * K), t[3 * K]], n = xs.length;
    const layer = ([w, b], x) => w.map((wk, k) => Math.tanh(wk * x + b[k]));
    const predict = (t, x) => { const parts = split(t); return dot(layer(parts, x), parts[2]) + parts[3]; };
    return {
      predict,
      value: (t) => xs.reduce((sum, x, i) => sum + (predict(t, x) - ys[i]) ** 2, 0) / n,
      gradient(t) {
        const parts = split(t), u = parts[2], g = new Array(t.length).fill(0);
        xs.forEach((x, i) => {
          const hs = layer(parts, x), r = (2 * (dot(hs, u) + parts[3] - ys[i])) / n;
          hs.forEach((hk, k) => { const d = r * u[k] * (1 - hk * hk); g[k] += d * x; g[K + k] += d; g[2 * K + k] += r * hk; });
          g[3 * K] += r;
        });
        return g;
      },
      product(t, phi, v) {
        const parts = split(t), u = parts[2], [vw, vb, vu, vc] = split(v), out = new Array(t.length).fill(0);
        xs.forEach((x, i) => {
          const hs = layer(parts, x), r = (2 * (dot(hs, u) + parts[3] - ys[i])) / n;
          const dh = hs.map((hk, k) => (1 - hk * hk) * (vw[k] * x + vb[k])), dr = (2 * (dot(dh, u) + dot(hs, vu) + vc)) / n;
          hs.forEach((hk, k) => {
            const slope = 1 - hk * hk, d = dr * u[k] * slope + r * vu[k] * slope - 2 * r * u[k] * hk * dh[k];
            out[k] += d * x; out[K + k] += d; out[2 * K + k] += dr * hk + r * dh[k];
          });
          out[3 * K] += dr;
        });
        return out;
      },
      mixed: () => ({}),
    };
  },
};
