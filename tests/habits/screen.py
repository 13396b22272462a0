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
    Habit(
        "import contextlib, io\n"
        "from keras_kare import _progress\n"
        "before, _progress.SHOW_AFTER = _progress.SHOW_AFTER, 0.0\n"
        "keras.utils.enable_interactive_logging()\n"
        "with contextlib.redirect_stdout(io.StringIO()) as screen:\n"
        "    model.fit(x, y)\n"
        "keras.utils.disable_interactive_logging()\n"
        "_progress.SHOW_AFTER = before\n"
        "screen.getvalue()",
        gives='"The kernel\'s graph is traced" in out',
    ),
    Habit("model(x)", says="has not been solved"),
    Habit(
        "lines = []\n"
        "model.fit_head(x, y).summary(print_fn=lambda line, **_: lines.append(line))\n"
        "'\\n'.join(lines)",
        gives="'(None, 8)' in out and 'solved on 60 rows' in out",
    ),
    Habit(
        "wide = keras.layers.Dense(1, dtype='float64');"
        "model = kk.KAREModel(keras.Sequential([keras.Input((4,)), wide]));"
        "model.fit_head(x, y).predict(x).dtype",
        gives="out == 'float64'",
    ),
]
