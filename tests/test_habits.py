"""What Keras users do by habit gives the right result, or one sentence before the work."""

from __future__ import annotations

import importlib
import pkgutil

import habits
import pytest

HABITS = {
    f"{theme.name}: {habit.writes}": habit
    for theme in pkgutil.iter_modules(habits.__path__)
    for habit in getattr(importlib.import_module(f"habits.{theme.name}"), "HABITS", ())
}


@pytest.mark.parametrize("habit", HABITS.values(), ids=HABITS)
def test_a_habit_is_right_or_told(habit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it may write
    habit.check()


def test_a_habit_that_is_silent_or_wrong_is_found():
    with pytest.raises(AssertionError, match="was not told"):
        habits.Habit("1 + 1", says="something").check()
    with pytest.raises(AssertionError, match="out=2"):
        habits.Habit("1 + 1", gives="out == 3").check()
    with pytest.raises(AssertionError, match="outcome"):
        habits.Habit("1 + 1").check()
    with pytest.raises(ZeroDivisionError):
        habits.Habit("1 / 0", says="a sentence of ours").check()
