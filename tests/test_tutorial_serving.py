"""`tutorials/serving`: the script that exports, and the client."""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

FOLDER = Path(__file__).parent.parent / "tutorials" / "serving"


def run(monkeypatch, capsys, file: str, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", [file, *map(str, arguments)])
    runpy.run_path(str(FOLDER / file), run_name="__main__")
    return capsys.readouterr().out


class StandIn(BaseHTTPRequestHandler):
    """TensorFlow Serving's REST API for one model, as its documentation tells it."""

    served: Path

    def do_POST(self):
        assert self.path == "/v1/models/cancer:predict"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        loaded = tf.saved_model.load(str(self.served))
        signature = loaded.signatures[body["signature_name"]]
        found = signature(inputs=tf.constant(body["instances"], tf.float32))
        rows = zip(
            found["classes"].numpy().astype(str).tolist(),
            found["scores"].numpy().tolist(),
            strict=True,
        )
        predictions = [{"classes": c, "scores": s} for c, s in rows]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"predictions": predictions}).encode())

    def log_message(self, *arguments):
        """Quiet."""


def test_export_and_ask(tmp_path, monkeypatch, capsys):
    out = ["--out", tmp_path, "--epochs", 3]
    told = run(monkeypatch, capsys, "export_model.py", *out)
    accuracy = re.search(r"did not train: ([\d.]+) %", told)
    assert accuracy, told
    assert float(accuracy[1]) > 90
    truth = re.findall(r"\(it is (\w+)\)", told)

    assert np.load(tmp_path / "rows.npy").shape == (3, 30)
    StandIn.served = tmp_path / "cancer" / "1"
    server = HTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        answers = run(
            monkeypatch,
            capsys,
            "client.py",
            tmp_path / "request.json",
            "--rest",
            f"http://127.0.0.1:{server.server_port}",
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    lines = answers.splitlines()
    assert len(lines) == len(truth) == 3
    scores = re.findall(r"benign=([-\d.]+) malignant=([-\d.]+)", answers)
    for line, (benign, malignant) in zip(lines, scores, strict=True):
        larger = "malignant" if float(malignant) > float(benign) else "benign"
        assert line.startswith(larger)
        assert float(malignant) + float(benign) == pytest.approx(1.0, abs=2e-4)


def test_commands_in_the_readme_name_files_that_exist():
    text = (FOLDER / "README.md").read_text()
    for name in re.findall(r"python tutorials/serving/(\w+\.py)", text):
        assert (FOLDER / name).exists()
