"""OpenCV's dnn module: pip install opencv-python-headless."""

from pathlib import Path

import cv2
from common import Run, answer


def load(path: Path) -> Run:
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(images):
        network.setInput(images)
        return network.forward()

    return run


if __name__ == "__main__":
    answer("OpenCV", cv2.__version__, load, how="`cv2.dnn.readNetFromONNX`")
