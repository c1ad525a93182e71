"""OpenCV's dnn module: pip install opencv-python-headless.

OpenCV 5 has two engines, and chooses the new one; only the classic one knows 8 bits.
"""

from pathlib import Path

import cv2
from common import INT8, Run, answer


def load(path: Path) -> Run:
    engine = cv2.dnn.ENGINE_CLASSIC if path.name in INT8 else cv2.dnn.ENGINE_AUTO
    network = cv2.dnn.readNetFromONNX(str(path), engine)

    def run(images):
        network.setInput(images)
        return network.forward()

    return run


if __name__ == "__main__":
    answer("OpenCV", cv2.__version__, load, how="`cv2.dnn.readNetFromONNX`, 8 bits with `ENGINE_CLASSIC`")
