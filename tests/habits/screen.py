"""What is read on the screen: sentences, not graphs."""

from habits import Habit

HABITS = [
    Habit(
        "model.fit(x, y, sample_weight=np.full(60, 0.05), verbose=0)",
        says="The weights sum to less",
    ),
    Habit(
        "model.fit_head(x, y).predict(tf.data.Dataset.from_tensors(x * np.nan))",
        says="An input of the kernel holds NaN",
    ),
    Habit(
        "model.compile(keras.optimizers.SGD(1e25))\nmodel.fit(x, y, epochs=9, verbose=0)",
        says="smaller learning rate",
    ),
    Habit("model(x)", says="has not been solved"),
]
