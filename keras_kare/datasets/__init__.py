"""The data of the papers that this library is compared with, as NumPy arrays.

`simulation` makes its rows. `higgs`, `load_uci` and `uci_names` read folders, named by
their argument or by the environment variable `KERAS_KARE_DATA`. `mnist` and
`mnist_digits` go through tensorflow-datasets: `pip install "keras_kare[tutorials]"`.
Nothing here loads scikit-learn or tensorflow-datasets before a function that needs it is
called.
"""

from keras_kare.datasets.higgs import higgs
from keras_kare.datasets.mnist import mnist, mnist_digits
from keras_kare.datasets.preparation import preprocess, signed_one_hot
from keras_kare.datasets.simulation import simulation
from keras_kare.datasets.split import Split
from keras_kare.datasets.uci import UCIDataset, load_uci, uci_names

__all__ = [
    "Split",
    "UCIDataset",
    "higgs",
    "load_uci",
    "mnist",
    "mnist_digits",
    "preprocess",
    "signed_one_hot",
    "simulation",
    "uci_names",
]
