"""Labels as people have them, the metrics they compile, and files of `ModelCheckpoint`."""

from habits import Habit

FIT = "model.fit(x, {}); "
COMPILE = "model.compile('adam', 'kare', metrics=[{}]); "
FIT_AND_ASK = FIT + "model.predict_classes(x)"
FLOATS = "bits.astype('float32')"
TOLD = "which are taken for numbers"

HABITS = [
    Habit(FIT_AND_ASK.format("bits"), gives="(out == bits).mean() > 0.9"),
    Habit(FIT_AND_ASK.format("codes"), gives="(out == codes).mean() > 0.7"),
    Habit(FIT_AND_ASK.format("words"), gives="(out == words).mean() > 0.7"),
    Habit(FIT_AND_ASK.format("bits == 1"), gives="out.dtype == bool"),
    Habit(
        FIT_AND_ASK.format("words.tolist()"), gives="set(out) <= {'no', 'perhaps', 'yes'}"
    ),
    Habit(FIT_AND_ASK.format("2 * bits - 1"), gives="set(out) == {-1, 1}"),
    Habit(
        FIT_AND_ASK.format("keras.utils.to_categorical(codes).astype(int)"),
        gives="set(out) <= {0, 1, 2}",
    ),
    Habit(FIT.format(FLOATS), says=TOLD, gives="model.classes is None"),
    Habit(FIT.format("keras.utils.to_categorical(codes)"), says=TOLD, gives="True"),
    Habit(
        "net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]);"
        "kk.KAREModel(net).fit_head(x, codes.astype('float32'))",
        says=TOLD,
        gives="True",
    ),
    Habit(
        f"kk.KAREModel(network, task='classification').fit_head(x, {FLOATS})",
        gives="out.classes.tolist() == [0.0, 1.0] and (out.predict_proba(x) > 0).all()",
    ),
    Habit(
        "kk.KAREModel(network, task='regression').fit_head(x, codes)",
        gives="out.classes is None and out.predict(x).shape == (60, 1)",
    ),
    Habit("model.fit(x, np.arange(60))", says="60 different whole numbers", gives="True"),
    Habit("kk.KAREModel(network, task='classify')", says="`task` must be one of"),
    Habit("model.fit(x, y); model.predict_proba(x)", says="There are no classes"),
    Habit(COMPILE.format("'AUC'") + "model.fit(x, y)", says="metrics of classes"),
    Habit(
        COMPILE.format("'accuracy'") + f"model.fit(x, {FLOATS})",
        says="metrics of classes, and `y` numbers",
    ),
    Habit(
        COMPILE.format("'mae'") + "model.fit(x, codes + 1)",
        says="metrics of numbers are wanted (mae)",
        gives="True",
    ),
    Habit(
        "def own(y, p): return keras.ops.mean(keras.ops.abs(y - p), axis=-1)\n"
        "model.compile('adam', 'kare', metrics=[own]); model.fit(x, bits)\n"
        "model.save('m.keras')\n"
        "keras.saving.load_model('m.keras', custom_objects={'own': own}).evaluate(x, bits)",
        gives="np.allclose(out, model.evaluate(x, bits))",
    ),
    Habit(FIT.format("bits") + "model.evaluate(x, bits.astype(str))", says="Received: '"),
    Habit(
        COMPILE.format("'AUC'") + "model.fit(x, bits); model.evaluate(x, bits)[1]",
        gives="out > 0.95",
    ),
    Habit(
        COMPILE.format("'accuracy', 'binary_accuracy'")
        + "model.fit(x, bits); model.evaluate(x, bits)",
        gives="out[1] == out[2] > 0.9",
    ),
    Habit(
        COMPILE.format("'sparse_categorical_accuracy', 'categorical_accuracy'")
        + "model.fit(x, words); model.evaluate(x, words)",
        gives="out[1] == out[2] > 0.7",
    ),
    Habit(
        COMPILE.format("keras.metrics.F1Score(threshold=0.5)")
        + "model.fit(x, bits); model.evaluate(x, bits)[1]",
        gives="0.9 < out[0] <= 1.0",
    ),
    Habit(
        "model.fit(x, words, class_weight={'no': 1.0, 'perhaps': 2.0, 'yes': 1.0})",
        gives="model.classes.tolist() == ['no', 'perhaps', 'yes']",
    ),
    Habit("model.fit(x, words, class_weight={'yes': 2.0}); 1", gives="out == 1"),
    Habit(
        "order = np.argsort(bits)\nmodel.fit(x[order], bits[order], validation_split=0.2)",
        says="are all of one of 2 classes: shuffle rows",
        gives="True",
    ),
    Habit(
        "model.compile('adam', 'kare', metrics='accuracy')\n"
        "model.fit(x, bits).history['accuracy']",
        gives="0.0 <= out[0] <= 1.0",
    ),
    Habit("model.fit(x, bits, epochs=2.5)", says="`epochs` must be a whole number"),
    Habit(
        COMPILE.format("'accuracy', 'AUC', 'Precision'")
        + "stops = [keras.callbacks.EarlyStopping('val_' + name, restore_best_weights=True)"
        " for name in ('accuracy', 'AUC', 'Precision')];"
        "model.fit(x, bits, validation_split=0.2, epochs=2, callbacks=stops).history",
        gives="len(out['val_AUC']) == 2",
    ),
    Habit(
        "class Ask(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, *_):\n"
        "        self.model.predict_proba(x, verbose=0)\n"
        "model.fit(x, bits, validation_split=0.2, callbacks=[Ask()])\n"
        "model.head.report['calibrated_by']",
        gives="out == 'validation data'",
    ),
    Habit(
        "rows = tf.data.Dataset.from_tensor_slices((x, words)).batch(30)\n"
        "model.fit(rows).model.classes.tolist()",
        gives="out == ['no', 'perhaps', 'yes']",
    ),
    Habit(
        "model.fit(np.repeat(x, 4, 0), np.random.default_rng(1).poisson(30, 240))",
        says="29 different whole numbers",
        gives="True",
    ),
    Habit(
        "model.fit(x, y * [1.0, 1000.0])",
        says="Columns of `y` have standard deviations from",
        gives="True",
    ),
    Habit("model.fit(x, bits, class_weight={2: 9.0})", says="must name classes of `y`"),
    Habit(FIT.format("bits") + "model.evaluate(x, words)", says="none of the 2 classes"),
    Habit(
        "data = tf.data.Dataset.from_tensor_slices((x, words)).batch(30);"
        "model.fit(data); model.evaluate(data), model.predict_classes(x)",
        gives="set(out[1]) <= {'no', 'perhaps', 'yes'} and out[0] < 1.0",
    ),
    Habit(
        FIT.format("words") + "model.save('m.keras');"
        "keras.saving.load_model('m.keras').predict_classes(x)",
        gives="np.array_equal(out, model.predict_classes(x))",
    ),
    Habit(
        "best = keras.callbacks.ModelCheckpoint('m.keras', save_best_only=True);"
        "model.fit(x[:40], y[:40], validation_data=(x[40:], y[40:]), callbacks=[best]);"
        "keras.saving.load_model('m.keras').predict(x)",
        gives="np.allclose(out, model.predict(x), atol=1e-6)",
    ),
    Habit(
        "keep = keras.callbacks.ModelCheckpoint('m.weights.h5', save_weights_only=True);"
        "model.fit(x[:40], y[:40], validation_data=(x[40:], y[40:]), callbacks=[keep]);"
        "model.load_weights('m.weights.h5')",
        says="a validation during training",
        gives="True",
    ),
]
