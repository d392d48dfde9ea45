"""Second-order products of lines 13 and 14 by a choice of means, which agree to rounding.

    reverse_over_reverse    keeps the graph of G_j, and goes back through it once
    forward_over_reverse    the derivative of the gradient in direction V_j, from theta_j alone
    reverse_over_forward    the gradient of the loss's derivative in direction V_j, from theta_j alone

These files and derivatives.py under them are the only production callers of autograd.
"""

from gimli_core.derivatives.second_order import reverse_over_reverse
from gimli_core.derivatives.second_order.choose import ASKED, BY_GRAPH, MEANS, Choice, choose, from_a_point, probing
from gimli_core.derivatives.second_order.gaps import tell_gap
from gimli_core.derivatives.second_order.products import Products

__all__ = [
    "ASKED",
    "BY_GRAPH",
    "MEANS",
    "Choice",
    "Products",
    "choose",
    "from_a_point",
    "probing",
    "reverse_over_reverse",
    "tell_gap",
]
