"""Ask a model that TensorFlow Serving serves, over REST or gRPC.

    python tutorials/serving/client.py served/request.json
    python tutorials/serving/client.py served/request.json --grpc localhost:8500

REST needs Python alone; gRPC needs `pip install tensorflow-serving-api`.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any


def over_rest(url: str, name: str, body: dict[str, Any]) -> list[dict[str, float]]:
    request = urllib.request.Request(
        f"{url}/v1/models/{name}:predict",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        rows = json.load(response)["predictions"]
    return [dict(zip(row["classes"], row["scores"], strict=True)) for row in rows]


def over_grpc(address: str, name: str, body: dict[str, Any]) -> list[dict[str, float]]:
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = body["signature_name"]
    rows = np.array(body["instances"], "float32")
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(rows))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=10).outputs
    classes = tf.make_ndarray(outputs["classes"])
    scores = tf.make_ndarray(outputs["scores"])
    return [
        {name.decode(): float(score) for name, score in zip(*row, strict=True)}
        for row in zip(classes, scores, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("request", type=Path, help="JSON, as export_model.py writes it")
    parser.add_argument("--name", default="cancer", help="of the served model")
    parser.add_argument("--rest", default="http://localhost:8501")
    parser.add_argument("--grpc", help="HOST:PORT; asks over gRPC instead")
    options = parser.parse_args()
    body = json.loads(options.request.read_text())
    if options.grpc:
        answers = over_grpc(options.grpc, options.name, body)
    else:
        answers = over_rest(options.rest, options.name, body)
    for scores in answers:
        best = max(scores, key=lambda name: scores[name])
        print(best, " ".join(f"{name}={score:.4f}" for name, score in scores.items()))


if __name__ == "__main__":
    main()
