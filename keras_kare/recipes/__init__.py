"""Kernels trained on small tables, so that they predict rows they have not seen.

KARE fools its optimiser: after training, neither it nor leave-one-out says how good a
kernel is, since both have been pleased. Only rows that did not train can. So:

1. **Cross-fitting.** The rows are cut into folds. On all but one of them kernels are
   trained, and their machines predict the rest, for several ridges: NTKs of a network after
   several numbers of steps on KARE; Laplace kernels whose metric is learnt from their own
   predictions, in several rounds (`recipes/rough.py`); and Laplace kernels of the L1
   distance, of several bandwidths. No prediction is of a row that trained.
2. **Choice.** A loss of those predictions chooses: squared error of numbers; of classes the
   share of wrong rows, too, since what is best by squared error is often too smooth to tell
   many classes apart. Of each kernel the best ridge; of those machines the best, and up to
   four more that are not worse by more than two standard errors of the difference.
3. **Refit.** Networks from several starts train on all rows for as many steps. Their
   kernels, each divided by its mean diagonal, are averaged: a sum of NTKs is an NTK. The
   machines' predictions are averaged: on few rows the best are hard to tell apart, and
   their mean is better than the one that came out first.
"""
