"""Gradient-based methods: what adapts to a task by inner steps, and is learned through them by `unroll`."""
