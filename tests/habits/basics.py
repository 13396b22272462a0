"""The commonest things: compile, fit, evaluate, predict."""

from habits import Habit

HABITS = [
    Habit("model.fit(x, y, epochs=1).history['loss']", gives="np.isfinite(out).all()"),
    Habit("kk.KAREModel(network).fit_head(x, y)", gives="out.predict(x).shape == (60, 1)"),
    Habit("model.predict(x)", says="has not been solved"),
]
