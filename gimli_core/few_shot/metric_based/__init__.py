"""Metric-based methods: the case J = 0 of Algorithm 1, in which nothing adapts and theta is the embedding."""
