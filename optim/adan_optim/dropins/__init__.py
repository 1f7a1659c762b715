"""Other packages' Adans, by their own arguments and conventions, computed by ours: a module for each package.

Nothing is imported from them, and none of their names is taken: `from adan_optim.dropins.optimi import Adan`
in place of `from optimi import Adan`. docs/dropins.md says in what results differ, and why.
"""
