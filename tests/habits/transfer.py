"""Frozen backbones, unfrozen layers, adapters, quantised networks, layers of noise."""

from habits import Habit

_FROZEN = """
network.layers[0].trainable = False
model.compile(keras.optimizers.SGD(0.1), loss="kare")
"""

HABITS = [
    Habit(
        _FROZEN + "model.fit(x, y, epochs=2)",
        says="does not depend on any weight that trains",
    ),
    Habit(
        _FROZEN + "model.fit_head(x, y).predict(x).std()",
        gives="out > 0.1 and model.head.report['rows'] == 60",
    ),
    Habit(
        "network.layers[1].trainable = False\n"
        "before = network.get_weights()\n"
        "model.fit(x, y)\n"
        "[bool((a != b).any()) for a, b in zip(before, network.get_weights())]",
        gives="out == [True, True, False, False]",
    ),
    Habit(
        "network.layers[1].trainable = False\n"
        "model.fit(x, y)\n"
        "network.layers[1].trainable = True\n"
        "model.fit(x, y)",
        says="Call `compile` again",
    ),
    Habit(
        "network.layers[1].trainable = False\n"
        "model.fit(x, y)\n"
        "network.layers[1].trainable = True\n"
        "model.compile(keras.optimizers.SGD(0.1), loss='kare')\n"
        "before = network.get_weights()\n"
        "model.fit(x, y)\n"
        "[bool((a != b).any()) for a, b in zip(before, network.get_weights())]",
        gives="out == [True, True, True, False]",  # of the last bias KARE knows nothing
    ),
    Habit(
        "model.fit_head(x, y)\nnetwork.layers[1].trainable = False\nmodel.predict(x)",
        gives="np.allclose(out, kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))"
        ".fit_head(x, y).predict(x), atol=1e-5)",
        says="no longer train",
    ),
    Habit(
        "model.fit_head(x, y)\n"
        "network.layers[0].kernel.trainable = False\n"
        "keras.models.clone_model(model).network.layers[0].kernel.trainable",
        gives="out is False",
    ),
    Habit(
        "network.layers[0].enable_lora(2)\nkk.KAREModel(network).fit_head(x, y).predict(x)",
        gives="out.shape == (60, 1)",
        says="lora_kernel_a",
    ),
    Habit(
        "network.quantize('int8')\nkk.KAREModel(network).fit_head(x, y)",
        says="it is that of 9 of 49 parameters",
    ),
    Habit(
        "network = keras.Sequential([*network.layers[:1], keras.layers.Dropout(0.5), "
        "keras.layers.BatchNormalization(name='norm'), network.layers[1]])\n"
        "model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))\n"
        "model.compile(keras.optimizers.SGD(0.1), loss='kare')\n"
        "model.fit(x, y)",
        gives="len(model.history.epoch) == 1",
        says="moving statistics stay as they are (norm)",
    ),
    Habit(
        "network = keras.Sequential([*network.layers[:1], keras.layers.Dropout(0.0), "
        "network.layers[1]])\n"
        "model = kk.KAREModel(network, head=kk.NTKRidgeHead(ridge=0.1))\n"
        "model.compile(keras.optimizers.SGD(0.1), loss='kare')\n"
        "model.fit(x, y)",
        gives="len(model.history.epoch) == 1",
    ),
]
