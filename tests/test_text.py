"""Text goes in, as strings of every kind: by layer rules, into files, or refused."""

from __future__ import annotations

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kare as kk
from keras_kare.kernels.structured.synthetic import described, synthetic_rows

SENTENCES = [
    "the good film",
    "a bad film",
    "good good fun, and naïve",
    "bad and dull",
    "fun",
    "a dull, dull film of no end that nobody has seen",
    "a good story",
    "words that none knows",
]
Y = np.array([1, -1, 1, -1, 1, -1, 1, -1], "float32")[:, None]
WORDS = ["good", "bad", "fun", "dull", "film", "naïve"]
PAIRS = np.array([["good", "film"], ["bad", "film"], ["fun", "?"], ["dull", "bad"]] * 2)


def sentences(*behind, shape=(), mask=True, length=4, **options):
    keras.utils.set_random_seed(0)
    words = layers.TextVectorization(
        vocabulary=WORDS, output_sequence_length=length, **options
    )
    table = layers.Embedding(words.vocabulary_size(), 3, mask_zero=mask)
    behind = behind or (layers.GlobalAveragePooling1D(), layers.Dense(1))
    return keras.Sequential([keras.Input(shape, dtype="string"), words, table, *behind])


def bags(mode):
    words = layers.TextVectorization(
        vocabulary=WORDS,
        output_mode=mode,
        idf_weights=[1.0, 0.5, 2.0, 1.5, 0.7, 3.0] if mode == "tf_idf" else None,
    )
    text = keras.Input((1,), dtype="string")
    h = layers.Dense(4, "gelu")(words(text))
    return keras.Model(text, layers.Dense(1)(h))


def pairs(*looking):
    text = keras.Input((2,), dtype="string")
    h = text
    for layer in looking:
        h = layer(h)
    return keras.Model(text, layers.Dense(1)(layers.Flatten()(h)))


NETWORKS = {
    "sentences": (sentences, SENTENCES),
    "a column": (lambda: sentences(shape=(1,)), SENTENCES),
    "open length": (lambda: sentences(length=None), SENTENCES),
    "without a mask": (lambda: sentences(mask=False), SENTENCES),
    "dense before pooling": (
        lambda: sentences(
            layers.Dense(4, "gelu"), layers.GlobalAveragePooling1D(), layers.Dense(1)
        ),
        SENTENCES,
    ),
    "recurrent": (lambda: sentences(layers.GRU(3), layers.Dense(1)), SENTENCES),
    "counts": (lambda: bags("count"), SENTENCES),
    "tf-idf": (lambda: bags("tf_idf"), SENTENCES),
    "looked up": (
        lambda: pairs(
            layers.StringLookup(vocabulary=WORDS), layers.Embedding(len(WORDS) + 1, 3)
        ),
        PAIRS,
    ),
    "hashed": (lambda: pairs(layers.Hashing(7), layers.Embedding(7, 3)), PAIRS),
}


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def solved(network=None, x=SENTENCES, **head):
    head = kk.NTKRidgeHead(ridge=0.1, **head)
    return kk.KAREModel(network or sentences(), head=head).fit_head(x, Y)


@pytest.mark.parametrize("first", ["eager", "graph"])
@pytest.mark.parametrize("name", NETWORKS)
def test_layer_rules_serve_it(float64, name, first):
    make, x = NETWORKS[name]
    kernel, x = kk.kernels.NTK(make()), tf.constant(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a fallback is announced
        if first == "eager":
            gram = kernel.gram(x)
        else:
            spec = tf.TensorSpec([None, *x.shape[1:]], tf.string)
            gram = tf.function(kernel.gram, input_signature=[spec], autograph=False)(x)
    plain = kk.kernels.NTK(kernel.network, method="jacobian").gram(x)
    np.testing.assert_allclose(gram, plain, rtol=1e-9, atol=1e-9 * np.max(plain))


def test_padding_to_the_longest_without_a_mask_is_refused():
    kernel = kk.kernels.NTK(sentences(mask=False, length=None))
    spec = tf.TensorSpec([None], tf.string)
    for use in (
        lambda: kernel.gram(SENTENCES),
        tf.function(kernel.gram, input_signature=[spec]).get_concrete_function,
    ):
        with pytest.raises(ValueError, match="depend on the other rows"):
            use()


KINDS = {
    "list": SENTENCES,
    "tuple": tuple(SENTENCES),
    "unicode": np.array(SENTENCES),
    "objects": np.array(SENTENCES, object),
    "bytes": np.array([s.encode() for s in SENTENCES]),
    "tensor": tf.constant(SENTENCES),
    "column": np.array(SENTENCES)[:, None],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_strings(kind):
    x, expected = KINDS[kind], solved().predict(SENTENCES)
    model = solved(x=x)
    for found in (model.predict(x), model.predict_on_batch(x), model(tf.constant(x))):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    kernel = model.kernel
    gram = kernel.gram(x)
    np.testing.assert_allclose(kernel.cross(x, SENTENCES), gram, atol=1e-6)
    np.testing.assert_allclose(kernel.diag(x), np.diag(gram), atol=1e-6)
    assert "fallback" in str(kernel.plan(x))
    assert model.variance(x).shape == (8, 1)
    model.compile(keras.optimizers.Adam(0.01), loss="kare")
    history = model.fit(x, Y, epochs=2, verbose=0, validation_data=(x, Y)).history
    assert history["loss"][1] < history["loss"][0]
    measured = np.mean((model.predict(SENTENCES) - Y) ** 2)
    assert model.evaluate(x, Y, verbose=0) == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("solver", ["cholesky", "primal", "nystrom", "cg"])
def test_datasets_and_solvers(solver):
    batches = tf.data.Dataset.from_tensor_slices((SENTENCES, Y)).batch(4)
    model = solved(solver=solver)
    other = kk.KAREModel(model.kernel, head=kk.NTKRidgeHead(ridge=0.1, solver=solver))
    found = other.fit_head(batches).predict(batches)
    np.testing.assert_allclose(found, model.predict(SENTENCES), atol=1e-3)
    assert other.evaluate(batches, verbose=0) < 1.0


def text_beside_numbers():
    title = keras.Input((), dtype="string", name="title")
    age = keras.Input((1,), dtype="int32", name="age")
    size = keras.Input((2,), name="size")
    words = layers.TextVectorization(vocabulary=WORDS, output_sequence_length=4)
    table = layers.Embedding(words.vocabulary_size(), 3, mask_zero=True)
    parts = [
        layers.GlobalAveragePooling1D()(table(words(title))),
        layers.CategoryEncoding(4, "one_hot")(
            layers.IntegerLookup(vocabulary=[7, 8, 9])(age)
        ),
        layers.Normalization(mean=[1.0, 2.0], variance=[2.0, 1.0])(size),
        layers.CategoryEncoding(3, "multi_hot")(layers.Discretization([0.0, 1.0])(size)),
    ]
    h = layers.Dense(5, "gelu")(layers.Concatenate()(parts))
    return keras.Model({"title": title, "age": age, "size": size}, layers.Dense(1)(h))


def test_text_beside_numbers(tmp_path):
    rng = np.random.default_rng(0)
    x = {
        "title": SENTENCES,
        "age": rng.integers(6, 10, (8, 1)),
        "size": rng.normal(size=(8, 2)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = solved(text_beside_numbers(), x)
    model.compile(keras.optimizers.Adam(0.01), loss="kare")
    model.fit(x, Y, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    found = keras.saving.load_model(tmp_path / "m.keras").predict(x)
    np.testing.assert_array_equal(found, model.predict(x))


LOADS = """
import sys, warnings
import keras, numpy as np
import keras_kare
warnings.simplefilter("error", UserWarning)  # a fallback is announced
model = keras.saving.load_model(sys.argv[1] + "/m.keras")
x = np.load(sys.argv[1] + "/x.npy")
found = model.predict(x, verbose=0)
assert model.machine.is_fresh()
np.save(sys.argv[1] + "/found.npy", found)
np.save(sys.argv[1] + "/gram.npy", model.kernel.gram(model.head.anchors))
"""


def test_a_fresh_process_predicts_the_same(tmp_path):
    model = solved(form="dual")
    x = np.array(SENTENCES)
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    run = subprocess.run(
        [sys.executable, "-c", LOADS, tmp_path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), model.predict(x))
    np.testing.assert_allclose(
        np.load(tmp_path / "gram.npy"), model.kernel.gram(x), atol=1e-6
    )


def test_strings_of_any_bytes_survive_a_file(tmp_path):
    strings = ["", "naïve", "a\0b", "one\ntwo", "\N{SNOWMAN}"] + ["longer " * 9] * 3
    network = pairs(layers.Hashing(7), layers.Embedding(7, 3))
    x = np.array(list(zip(strings, reversed(strings), strict=True)), object)
    model = solved(network, x, form="dual")
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    held = np.asarray(loaded.head.anchors)
    assert [[s.decode() for s in row] for row in held] == x.tolist()
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    model.save_weights(tmp_path / "m.weights.h5")
    other = kk.KAREModel(model.kernel, head=kk.NTKRidgeHead(ridge=0.1, form="dual"))
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(x), model.predict(x))


def test_another_vocabulary_makes_the_head_stale():
    words = layers.TextVectorization(output_sequence_length=4, max_tokens=6)
    words.adapt(SENTENCES)
    network = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            words,
            layers.Embedding(6, 3, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model = solved(network)
    before = model.predict(SENTENCES)
    assert model.machine.is_fresh()
    words.adapt(["none knows story end"])
    assert not model.machine.is_fresh()
    found = model.predict(SENTENCES)  # solved again
    assert model.machine.is_fresh()
    np.testing.assert_allclose(found, solved(network).predict(SENTENCES), atol=1e-6)
    assert np.max(np.abs(found - before)) > 1e-2


def test_a_file_of_tiles_knows_other_strings(tmp_path):
    kernel, file = kk.kernels.NTK(sentences()), str(tmp_path / "gram.npy")
    first = np.array(kernel.gram(SENTENCES, out=file))
    again = kernel.gram(tf.constant(SENTENCES), out=file)  # other objects, equal strings
    np.testing.assert_array_equal(again, first)
    with pytest.raises(ValueError, match="out"):
        kernel.gram(SENTENCES[::-1], out=file)


def numbers_only():
    return keras.Sequential([keras.Input((4,)), layers.Dense(1)])


X = np.ones((8, 4), "float32")
REFUSED = {
    "text where numbers go": (
        lambda: kk.kernels.NTK(numbers_only()).gram(np.array([["a"] * 4] * 8)),
        "`x` must hold numbers, unless",
    ),
    "into a network that was not built": (
        lambda: kk.kernels.NTK(keras.Sequential([layers.Dense(1)])).gram(SENTENCES),
        "`x` must hold numbers, unless",
    ),
    "to predict": (
        lambda: kk.KAREModel(numbers_only()).fit_head(X, Y).predict(SENTENCES),
        "`x` must hold numbers, unless",
    ),
    "to validate": (
        lambda: kk.KAREModel(numbers_only()).fit_head(
            X * np.arange(8)[:, None], Y, validation_data=(np.array([["a"] * 4] * 8), Y)
        ),
        "`validation x` must hold numbers, unless",
    ),
    "numbers where text goes": (
        lambda: kk.kernels.NTK(sentences()).gram(np.arange(8.0)),
        "`x` must hold text for the network's input",
    ),
    "a missing sentence": (
        lambda: solved(x=[*SENTENCES[:-1], None]),
        "`x` must hold text in every row .* an entry None of type NoneType",
    ),
    "an object NaN": (
        lambda: solved(x=np.array([*SENTENCES[:-1], np.nan], object)),
        "`x` must hold text in every row .* an entry nan of type float",
    ),
}


@pytest.mark.filterwarnings("ignore:.*leave-one-out.*")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence(name):
    use, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        use()


def test_made_up_text_knows_the_vocabulary():
    network = pairs(
        layers.StringLookup(vocabulary=["one", "two"], num_oov_indices=0),
        layers.Embedding(2, 3),
    )
    made = synthetic_rows(described(tf.constant(PAIRS)), network, seed=1)
    assert {bytes(word) for word in made.numpy().flat} == {b"one", b"two"}
    made = synthetic_rows(described(tf.constant(SENTENCES)), sentences(), seed=1)
    words = " ".join(row.decode() for row in made.numpy()).split()
    assert set(words) & set(WORDS)
    assert set(words) - set(WORDS)
    assert len({len(row.split()) for row in made.numpy()}) > 2


def test_how_text_is_split_is_part_of_a_kernel():
    """Networks of the same vocabulary that split in other ways are others."""
    known = [
        kk.kernels.NTK(
            keras.Sequential(
                [
                    keras.Input((), dtype="string"),
                    keras.layers.TextVectorization(
                        vocabulary=["a", "b"], output_sequence_length=4, split=split
                    ),
                    keras.layers.Embedding(4, 2),
                    keras.layers.Flatten(),
                    keras.layers.Dense(1),
                ]
            )
        ).architecture()
        for split in ("whitespace", "character", "whitespace")
    ]
    assert known[0] == known[2] != known[1]
