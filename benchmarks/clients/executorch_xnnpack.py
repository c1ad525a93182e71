"""ExecuTorch with XNNPACK, from the exported program: pip install executorch, of the release that fits torch."""

from importlib.metadata import version
from pathlib import Path

import torch
from common import Run, answer
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime


def load(path: Path) -> Run:
    lowered = to_edge_transform_and_lower(torch.export.load(path), partitioner=[XnnpackPartitioner()])
    written = path.with_suffix(".pte")
    written.write_bytes(lowered.to_executorch().buffer)
    method = Runtime.get().load_program(written).load_method("forward")
    return lambda images: method.execute([torch.from_numpy(images)])[0].numpy()


if __name__ == "__main__":
    how = "`to_edge_transform_and_lower(torch.export.load('model.pt2'), [XnnpackPartitioner()])`"
    answer("ExecuTorch", version("executorch"), load, forms=("model.pt2",), how=how)
