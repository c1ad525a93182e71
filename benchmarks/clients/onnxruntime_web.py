"""onnxruntime-web, WebAssembly under node: npm install --ignore-scripts onnxruntime-web.

    NODE_PATH=FOLDER/node_modules python benchmarks/clients/onnxruntime_web.py runs/clients

A node process for each file (`onnxruntime_web.js`) is sent images over its pipes.
"""

import subprocess
from pathlib import Path

import numpy as np
from common import Run, answer

SCRIPT = Path(__file__).with_suffix(".js")


def load(path: Path) -> Run:
    process = subprocess.Popen(["node", SCRIPT, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(images):
        process.stdin.write(np.array(images.shape, np.int32).tobytes() + images.tobytes())
        process.stdin.flush()
        count = np.frombuffer(process.stdout.read(4), np.int32)
        if not count.size:
            raise RuntimeError(f"node ended with {process.wait()}, see above")
        return np.frombuffer(process.stdout.read(4 * int(count[0])), np.float32).reshape(len(images), -1)

    return run


if __name__ == "__main__":
    version = subprocess.run(["node", SCRIPT, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    answer("onnxruntime-web", version, load, how="`ort.InferenceSession.create`, one thread of WebAssembly")
