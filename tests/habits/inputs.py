"""Rows in the forms that people have them, and what cannot be rows."""

from habits import Habit

HABITS = [
    Habit(
        "model.fit_head(x.tolist(), y.tolist())", gives="out.predict(x).shape == (60, 1)"
    ),
    Habit("model.fit_head(list(x), [y])", gives="out.head.anchors.shape == x.shape"),
    Habit("model.fit_head([x], y).predict([x])", gives="out.shape == (60, 1)"),
    Habit("kk.kernels.NTK(network).gram(x[:3].tolist())", gives="out.shape == (3, 3)"),
    Habit(
        "model.fit_head(tf.Variable(x), tf.Variable(y))", gives="out.head.dual is not None"
    ),
    Habit(
        "import pandas\nf = pandas.DataFrame(x).astype('Float32')\n"
        "model.fit_head(f, pandas.Series(y[:, 0])).predict(f)",
        gives="out.shape == (60, 1)",
    ),
    Habit(
        "model.fit_head(x, y).predict((x[i:i + 20] for i in (0, 20, 40)), steps=3)",
        gives="out.shape == (60, 1)",
    ),
    Habit(
        "model.fit_head(x, y).evaluate(iter([(x, y), (x, y)]), steps=2, verbose=0)",
        gives="np.isfinite(out)",
    ),
    Habit(
        "columns = keras.layers.Flatten(), keras.layers.Dense(4, 'gelu')\n"
        "flat = keras.Sequential([keras.Input((4, 1)), *columns, keras.layers.Dense(1)])\n"
        "model = kk.KAREModel(flat)\nmodel.compile()\n"
        "model.fit(x[..., None], y, validation_data=(x, y))\n"
        "[model.predict(x[..., None]), model.predict(x), model.predict_on_batch(x)]",
        gives="np.allclose(out[0], out[1]) and np.allclose(out[0], out[2], atol=1e-5)",
    ),
    Habit(
        "one, two = keras.Input((3,), name='one'), keras.Input((1,), name='two')\n"
        "both = keras.layers.Dense(1)(keras.layers.Concatenate()([one, two]))\n"
        "rows = {'one': x[:, :3].tolist(), 'two': x[:, 3].tolist()}\n"
        "model = kk.KAREModel(keras.Model({'one': one, 'two': two}, both))\n"
        "model.fit_head(rows, y).predict({'one': x[:, :3], 'two': x[:, 3]})",
        gives="out.shape == (60, 1)",
    ),
    Habit(
        "words = keras.Sequential([keras.Input((5,), dtype='int32'),"
        " keras.layers.Embedding(9, 3), keras.layers.Dense(1)])\n"
        "kk.KAREModel(words).fit_head(np.arange(300).reshape(60, 5) % 9, y)",
        says="Pool or flatten before the last layer",
        gives="out.head.anchors.dtype == 'int32'",
    ),
    Habit(
        "one, two = keras.Input((4,)), keras.Input((4,))\n"
        "both = keras.layers.Dense(1)(keras.layers.Add()([one, two]))\n"
        "kk.KAREModel(keras.Model([one, two], both)).fit_head([x], y)",
        says="must have as many arrays as the network has inputs",
    ),
    Habit(
        "model.fit(np.ones_like(x), y)",
        says="The 60 rows of `x` are all the same",
        gives="True",
    ),
    Habit("kk.KAREModel(model)", says="is a kernel machine already: pass its `network`"),
    Habit("kk.kernels.NTK(network).gram(x, x)", says="are `cross(x1, x2)`"),
    Habit("model.fit(iter([(x, y)]))", says="a generator can be read only once"),
    Habit("model.fit_head(x, y).variance(iter([x]))", says="must be arrays here"),
    Habit(
        "model.fit(tf.data.Dataset.from_tensor_slices((x, y)))", says="yields single rows"
    ),
    Habit("model.fit(x, [y, y])", says="side by side as columns"),
    Habit("model.fit(x, {'a': y, 'b': y})", says="side by side as columns"),
    Habit("model.fit(tf.sparse.from_dense(x), y)", says="must be dense"),
    Habit("model.fit(x, y, sample_weight=np.full(60, 1 / 60))", says="more than one row"),
]
