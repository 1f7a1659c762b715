"""The fair comparison: every optimizer is tuned by the same rule and run with several seeds.

design     tasks, optimizers, the budget of each, and the paper's claims as experiments
search     the learning rate and weight decay to try next, from those tried
records    finished runs, one line of JSON each
measures   measures of the records: intervals, step multiplier, speed-up to a target, sensitivity
claims     the paper's claims, each with a verdict
page       tables and figures
"""
