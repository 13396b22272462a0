"""Text in the network: strings as people have them, and where none are taken."""

from habits import Habit

_NETWORK = """
lines = ["good film", "a bad film", "so good", "bad", "no fun", "fun and good"] * 3
y = np.where([("good" in line) for line in lines], 1.0, -1.0)
words = keras.layers.TextVectorization(output_sequence_length=4)
words.adapt(lines)
network = keras.Sequential([
    keras.Input((), dtype="string"),
    words,
    keras.layers.Embedding(words.vocabulary_size(), 3, mask_zero=True),
    keras.layers.GlobalAveragePooling1D(),
    keras.layers.Dense(1),
])
model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))
model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="kare")
"""

HABITS = [
    Habit(
        f"{_NETWORK}model.fit(lines, y, epochs=1, verbose=0).history['loss']",
        gives="np.isfinite(out).all()",
    ),
    Habit(
        f"{_NETWORK}model.fit_head(np.array(lines), y).predict(['good fun'], verbose=0)",
        gives="out.shape == (1, 1)",
    ),
    Habit(
        f"{_NETWORK}d = tf.data.Dataset.from_tensor_slices((lines, y)).batch(6)\n"
        "model.fit_head(d).evaluate(d, verbose=0)",
        gives="out < 1.0",
    ),
    Habit(
        f"{_NETWORK}import pandas as pd\nmodel.fit_head(pd.Series(lines), y)",
        gives="out.predict(lines, verbose=0).shape == (18, 1)",
    ),
    Habit(
        f"{_NETWORK}kernel = kk.kernels.NTK(network)\nkernel.cross(lines[:2], lines)",
        gives="tuple(out.shape) == (2, 18)",
    ),
    Habit(
        f"{_NETWORK}model.fit_head([*lines[:-1], None], y)",
        says="must hold text in every row",
    ),
    Habit(
        f"{_NETWORK}model.fit_head(np.arange(18.0), y)",
        says="must hold text for the network",
    ),
    Habit("model.fit_head(np.array([['a'] * 4] * 60), y)", says="`x` must hold numbers"),
]
