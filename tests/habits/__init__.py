"""What a Keras user writes by habit, and what comes out: one line each, one file a theme.

`tests/test_habits.py` runs them all. None is silent: a habit gives the right result without
a warning, or one sentence before the work.
"""

from habits.habit import Habit

__all__ = ["Habit"]
