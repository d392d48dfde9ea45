"""The commands of a session, as `help` and `gimli step --help` list them."""

__all__ = ["HELP"]

HELP = """\
next [N]       n   one line on, or N lines          back [N]      b   one line back, or N lines
line N             to the next time on line N       step J            to step J
run            r   on to a breakpoint or the end    end               to the end
print NAME     p   a quantity or an expression      follow NAME[I]    one scalar parameter through the run
watch EXPR         show it at every moment          unwatch           forget all watches and followed entries
break line N       stop there; also: break step J, break norm(B) > 1e3, break not finite(B)
breaks             list breakpoints                 clear             forget all breakpoints
change NAME[ENTRY] = VALUE   intervene: change G['w'][0] = 0.5     change V = 0
exact EXPR         print every entry to its last digit; exact result: the meta-gradient
result             the meta-gradient, at the end    help              this text      quit   q
Names: theta s G V B S direct curvature A_opt A_loss dA_opt dA_loss loss line j; B_next (B_{j+1}) and, at line 14,
growth (the norm of B_j over that of B_{j+1}); and norm(), finite(), largest()."""
