"""The engine's pure steps, compiled once for a problem and its shapes. `compile=` of `meta_gradient` leads here."""
