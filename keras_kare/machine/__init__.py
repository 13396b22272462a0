"""The kernel machine: its problem, its ridge, its solution, its predictions."""

from keras_kare.machine import calibration
from keras_kare.machine.intercept import Intercept
from keras_kare.machine.machine import Machine, Settings
from keras_kare.machine.problem import Problem, Rows
from keras_kare.machine.ridge import Choice, register_way
from keras_kare.machine.state import State

__all__ = [
    "Choice",
    "Intercept",
    "Machine",
    "Problem",
    "Rows",
    "Settings",
    "State",
    "calibration",
    "register_way",
]
