"""The fair comparison: every optimizer tuned by the same rule, and seen with several seeds.

design     tasks, optimizers, the budget of each, and the paper's claims as experiments
search     which learning rate and weight decay to try next, from what was tried
records    finished runs, a line of JSON each
measures   what the records say: intervals, speed-up to a target, sensitivity, profiles
claims     the paper's claims, each with a verdict
page       tables and figures
"""
