"""Kernels trained on small tables, so that they predict rows they have not seen.

KARE fools its optimiser: after training, neither it nor leave-one-out says how good a
kernel is, since both have been pleased. Only rows that did not train can. So:

1. **Cross-fitting.** The rows are cut into folds. On all but one of them a network is
   trained, and its kernel's machine predicts the rest, after several numbers of steps, for
   several ridges, and for kernels into which more or less of a Laplace kernel is mixed. No
   prediction is of a row that trained.
2. **Choice.** The squared error of those predictions chooses: of each number of steps and
   share of the Laplace kernel, the best ridge; of those machines, the best few.
3. **Refit.** Networks from several starts train on all rows for as many steps. Their
   kernels, each divided by its mean diagonal, are averaged: a sum of NTKs is an NTK. The
   machines' predictions are averaged: on few rows the best are hard to tell apart, and
   their mean is better than the one that came out first.
"""
