"""EigenPro of scikit-learn-extra on rows in an `.npz` file; prints a line of JSON.

python -m venv /tmp/eigenpro
/tmp/eigenpro/bin/pip install -r benchmarks/peers/eigenpro.txt
EIGENPRO_PYTHON=/tmp/eigenpro/bin/python python benchmarks/solvers.py mnist
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
from sklearn_extra.kernel_methods import EigenProClassifier

rows = np.load(sys.argv[1])
model = EigenProClassifier(n_epoch=5, kernel="rbf", gamma=0.02, random_state=0)
begun = time.perf_counter()
model.fit(rows["x"], rows["y"])
seconds = time.perf_counter() - begun
wrong = float(np.mean(model.predict(rows["xt"]) != rows["yt"]))
unit = 1.0 if sys.platform == "darwin" else 1024.0
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
print(json.dumps({"seconds": seconds, "test_error": wrong, "peak_gb": peak}))
