"""Model-based methods: what adapts is a memory or fast weights, not the parameters: J = 0 of Algorithm 1."""
