# %% [markdown]
# # Transfer: a pretrained backbone, its features, its kernel
#
# A network that has learnt from a million photographs, and a few hundred images of your
# own. What is usual: freeze the network, and fit something small on its features; or
# train its last block along. Here both are kernels. Three things are compared:
#
# 1. **frozen features + ridge**: the kernel of the last linear layer, solved by `fit_head`;
# 2. the **network**, its last block trained in the ordinary way;
# 3. **KARE**: the same block trained such that its *neural tangent kernel* generalises.
#
# You should know `compile`, `fit` and `predict`; `mnist_tfds.py` tells what KARE is.

# %%
import os
import time
import warnings

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer messages from TensorFlow

import keras
import numpy as np

import keras_kare as kk
from keras_kare.datasets import mnist_digits

ROWS = int(os.environ.get("KERAS_KARE_TUTORIAL_ROWS", "300"))
EPOCHS = int(os.environ.get("KERAS_KARE_TUTORIAL_EPOCHS", "20"))
PIXELS = int(os.environ.get("KERAS_KARE_TUTORIAL_PIXELS", "96"))
WEIGHTS = os.environ.get("KERAS_KARE_TUTORIAL_WEIGHTS", "imagenet")  # "none": drawn

begun = time.perf_counter()
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The images
#
# Sevens and nines, made as large and as colourful as the backbone wants them: three
# channels, numbers from -1 to 1. Targets are -1 and 1.

# %%
digits = mnist_digits()


def seven_or_nine(images, columns, start, count):
    """Some of the images of 7 and 9, `(count, 28, 28, 1)`, and -1 or 1, `(count, 1)`."""
    chosen = np.flatnonzero(np.isin(columns.argmax(axis=1), (7, 9)))[start : start + count]
    return images[chosen], np.where(columns[chosen, 9:] > 0, 1.0, -1.0).astype("float32")


def as_photographs(images):
    """Bring images to the size and the range of the backbone."""
    large = keras.ops.image.resize(images, (PIXELS, PIXELS))
    return np.repeat(2.0 * np.asarray(large) - 1.0, 3, axis=-1)


x, y = seven_or_nine(digits.x, digits.y, 0, ROWS)
x_valid, y_valid = seven_or_nine(digits.x, digits.y, ROWS, ROWS)
x_test, y_test = seven_or_nine(digits.x_test, digits.y_test, 0, 2 * ROWS)
print(f"{len(x)} training, {len(x_valid)} validation and {len(x_test)} test rows")

# %% [markdown]
# ## The backbone in two parts
#
# MobileNetV2 without its classifier; `weights="imagenet"` downloads 9 MB once. All but
# the last block is the **stem**: nothing in it will ever train, so that we run each image
# through it *once*, and keep what comes out. A kernel of all of the backbone would run the
# stem again in each step, for nothing.

# %%
backbone = keras.applications.MobileNetV2(
    input_shape=(PIXELS, PIXELS, 3),
    include_top=False,
    pooling="avg",
    weights=None if WEIGHTS == "none" else WEIGHTS,
)
cut = backbone.get_layer("block_15_add").output
stem, block = keras.Model(backbone.input, cut), keras.Model(cut, backbone.output)
h, h_valid, h_test = (
    stem.predict(as_photographs(images), verbose=0) for images in (x, x_valid, x_test)
)
print("kept of each image:", h.shape[1:])

# %% [markdown]
# ## 1. Frozen features
#
# The block is frozen, and one linear layer follows. What is the kernel of that? The
# network is linear in all that trains, so its gradient by these weights are the features
# themselves: `K(x, x') = φ(x)·φ(x') + 1`. No weight is left in it, so there is nothing for
# KARE to improve. Keras would not know, and run its epochs; `fit` here says so:

# %%
block.trainable = False
network = keras.Sequential([keras.Input(h.shape[1:]), block, keras.layers.Dense(1)])
model = kk.KAREModel(network)
model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="kare", metrics=["accuracy"])
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model.fit(h, y, epochs=1, validation_data=(h_valid, y_valid), verbose=0)
for warning in told:
    print("told:", warning.message)

# %% [markdown]
# What solves such a kernel at once is `fit_head`: ridge regression on the features. Its
# ridge is chosen on the validation rows.

# %%
model.fit_head(h, y, validation_data=(h_valid, y_valid))


def score(outputs):
    """The mean squared error on the test rows, and the share of right signs."""
    return np.mean((y_test - outputs) ** 2), np.mean((y_test > 0) == (outputs > 0))


scores = {"frozen features + ridge": score(model.predict(h_test, verbose=0))}

# %% [markdown]
# ## 2. The last block, trained in the ordinary way
#
# Unfreeze the layers of the block, but for its batch normalisations: their statistics
# belong to ImageNet and to millions of rows, and kernels do not move them in any case.
# With them frozen, the block computes the same for both of its trainings.

# %%
start = network.get_weights()
for layer in block.layers:
    layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
block_size = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
print(f"{block_size} parameters train")

network.compile(optimizer=keras.optimizers.Adam(1e-4), loss="mse")
best = keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
network.fit(
    h,
    y,
    epochs=EPOCHS,
    batch_size=32,
    validation_data=(h_valid, y_valid),
    callbacks=[best],
    verbose=0,
)
scores["network, fine-tuned"] = score(network.predict(h_test, verbose=0))

# %% [markdown]
# ## 3. The last block, trained with KARE
#
# From the same start. Other variables train than when `model` was compiled, so **compile
# again**, as always in Keras after a change of `trainable`: the optimizer has to know
# them. (`fit` refuses if you forget.) The kernel is another one, too, of half a million
# features and more, and it moves. One epoch is one step on the Gram matrix of all rows.

# %%
network.set_weights(start)
model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="kare", metrics=["accuracy"])
history = model.fit(
    h,
    y,
    epochs=EPOCHS,
    batch_size=len(h),
    validation_data=(h_valid, y_valid),
    callbacks=[
        keras.callbacks.EarlyStopping("val_loss", patience=5, restore_best_weights=True)
    ],
    verbose=0,
).history
print(f"KARE: {history['loss'][0]:.4f} in the first epoch, {history['loss'][-1]:.4f} last")
scores["KARE, last block"] = score(model.predict(h_test, verbose=0))

# %% [markdown]
# ## Compared
#
# The first line costs one linear system. Whether the others are worth more depends on how
# far your images are from those of the backbone, and on how many there are: look at the
# validation rows, and not at one run.

# %%
for name, (mse, accuracy) in scores.items():
    print(f"{name:24} test MSE {mse:.4f}, accuracy {accuracy:.1%}")
print(f"{time.perf_counter() - begun:.0f} seconds")
