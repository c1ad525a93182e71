"""The model card: README.md of a shipped folder, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

import math
from typing import Any

import yaml

from evit_nas.console import millions
from evit_nas.errors import first_few
from evit_nas.latency import Latency
from evit_nas.shipped import FP32, INT8, PREDICT, Shipped, ShippedGraph
from evit_nas.stats import binomial_error
from evit_nas.training.recipe import Recipe

CLASSES = 20  # named in the card; config.json has them all
DECIDED = ("epochs", "batch_size", "optimiser")  # of the recipe, shown in the card
RATE = ("learning_rate", "batch_size")  # the first is for a batch of another size


def card(shipped: Shipped) -> str:
    """The card of a shipped network as Markdown."""
    parts = (_title, _figures, _preprocessing, _usage, _training, _limits)
    front = yaml.safe_dump(_front_matter(shipped), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n" + "".join(f"\n{part(shipped)}\n" for part in parts)


def _front_matter(shipped: Shipped) -> dict[str, Any]:
    trained = shipped.trained
    return {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "onnx", "efficientvit", "neural-architecture-search", "evit_nas"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": trained.name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": trained.data_name, "type": trained.data_name},
                        "metrics": [{"type": "accuracy", "name": "Top-1", "value": round(shipped.top1 / 100, 4)}],
                    }
                ],
            }
        ],
    }


def _title(shipped: Shipped) -> str:
    trained = shipped.trained
    names = first_few(trained.classes, CLASSES)
    channels, height, width = trained.preprocessing.input_size
    return (
        f"# {trained.name}\n\n"
        "An EfficientViT (cascaded group attention, arXiv 2305.07027) that classifies images "
        f"of {channels} x {height} x {width} into {len(trained.classes)} classes of {trained.data_name}: {names}.\n\n"
        f"{millions(shipped.params)} parameters, {millions(shipped.macs)} MACs, architecture key `{trained.arch.key}`."
    )


def _figures(shipped: Shipped) -> str:
    trained, latency = shipped.trained, shipped.fp32.latency
    rows = [
        "| | top-1 | latency | p90 | file |",
        "| --- | --- | --- | --- | --- |",
        f"| PyTorch | {_top1(shipped.top1, shipped.images)} | | | model.safetensors |",
        _row("ONNX, fp32", shipped.fp32, FP32, shipped.images),
    ]
    if shipped.int8:
        file = "not shipped" if shipped.int8_refusal else INT8
        rows.append(_row("ONNX, 8 bits", shipped.int8, file, shipped.images))
    lines = [
        "\n".join(rows),
        f"Accuracy on {shipped.images:,} validation images of {trained.data_name}, ± the standard error that so many "
        f"images leave. Latency is the median of one inference on {latency.machine} when it is quiet "
        f"({latency.conditions}; {latency.runtime}), ± its uncertainty{_as_it_was(latency)}.",
    ]
    if shipped.int8 and not shipped.int8_refusal:
        lines.append(
            f"Open {INT8} with the session entry `session.x64quantprecision` set to `1`, as `{PREDICT}` does: on "
            "processors without VNNI it computes something else without."
        )
    if shipped.int8_refusal:
        lines.append(f"There is no 8-bit file: {shipped.int8_refusal.removesuffix('.')}.")
    if noise := {graph.latency.doubts for graph in (shipped.fp32, shipped.int8) if graph} - {""}:
        lines.append(f"Latencies are estimates: {'; '.join(sorted(noise))}.")
    return "## Figures\n\n" + "\n\n".join(lines)


def _as_it_was(latency: Latency) -> str:
    if latency.wall_ms is None:
        return ""
    return f"; by the wall clock, as the machine was, it took {latency.wall_ms:.2f} ms (p90 {latency.wall_p90_ms:.2f})"


def _row(name: str, graph: ShippedGraph, file: str, images: int) -> str:
    where = f"{file} ({graph.megabytes:.1f} MB)"
    return f"| {name} | {_top1(graph.top1, images)} | {graph.latency} | {graph.latency.p90_ms:.2f} ms | {where} |"


def _top1(percent: float, images: int) -> str:
    return f"{percent:.2f} ± {binomial_error(percent, images):.2f} %"


def _preprocessing(shipped: Shipped) -> str:
    steps = shipped.trained.preprocessing
    channels, height, width = steps.input_size
    high, wide = (math.floor(side / steps.crop_pct) for side in (height, width))
    resized = f"shorter side resized to {high}" if high == wide else f"scaled until it covers {high} x {wide}"
    return (
        f"## From an image to an input\n\n{_mode(channels)}, {resized} pixels "
        f"({steps.interpolation}), centre crop of {height} x {width}, pixels from 0 to 1, minus "
        f"{_numbers(steps.mean)}, divided by {_numbers(steps.std)}; float32, (1, {channels}, {height}, {width})."
    )


def _mode(channels: int) -> str:
    return "Gray image" if channels == 1 else "RGB image"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _usage(shipped: Shipped) -> str:
    mode = "L" if shipped.trained.preprocessing.input_size[0] == 1 else "RGB"
    return f"""## Use

Class and probability of pictures, with ONNX Runtime; `{PREDICT}` does it where evit-nas is not installed (it needs
onnxruntime, numpy and Pillow, and holds every step from a picture to an answer):

```
evit-nas predict . image.png
python {PREDICT} image.png
```

With timm (importing the package evit-nas makes the architecture known to it):

```python
import evit_nas
import timm
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()  # this folder, or hf-hub:YOU/NAME
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = transform(Image.open("image.png").convert("{mode}")).unsqueeze(0)
label = model.pretrained_cfg["label_names"][model(image).argmax()]
```

With transformers, which finds the architecture in timm, so that evit-nas must be imported here too:

```python
import evit_nas
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(".").eval()  # this folder, or YOU/NAME
label = model.config.id2label[int(model(image).logits.argmax())]
```

With ONNX Runtime alone (`image` as above, or by the steps of the last section, as {PREDICT} takes them):

```python
import onnxruntime

session = onnxruntime.InferenceSession("{FP32}")
(logits,) = session.run(["logits"], {{"input": image.numpy()}})
```

With evit-nas:

```python
from evit_nas.network.saved import open_saved

saved = open_saved(".")  # saved.model, saved.classes, saved.preprocessing
```

`evit-nas verify .` checks every file of this folder."""


def _training(shipped: Shipped) -> str:
    trained = shipped.trained
    settings = [f"{name} {trained.recipe[name]}" for name in DECIDED if name in trained.recipe]
    if all(name in trained.recipe for name in RATE):
        peak = Recipe.model_validate({name: trained.recipe[name] for name in RATE}).peak_rate
        settings.append(f"learning rate up to {peak:.3g}")
    teacher = f"; distilled from {trained.teacher}" if trained.teacher else ""
    weights = "moving average of the weights" if trained.averaged else "weights"
    versions = ", ".join(f"{name} {number}" for name, number in shipped.versions.items())
    commands = "\n".join(dict.fromkeys(command for command in (trained.command, shipped.command) if command))
    return (
        f"## How it was made\n\nTrained on {trained.data_name}, from {trained.init}{teacher}; {', '.join(settings)}; "
        f"{weights} after epoch {trained.epoch}, seed {trained.seed}. The whole recipe is in shipped.json.\n\n"
        f"```\n{commands}\n```\n\nShipped with {versions}."
    )


def _limits(shipped: Shipped) -> str:
    lines = [
        f"- Its accuracy is that on {shipped.trained.data_name}; how it does on other images was not tried. The epoch "
        "was chosen on the same validation images, so the figure is slightly favourable.",
        "- Latency belongs to the machine above; measure on yours: `evit-nas measure model.onnx`.",
        "- The ONNX files take one image at a time.",
        "- No licence is stated here: add `license:` to the front matter before you publish.",
    ]
    if INT8 in shipped.graphs:
        lines.insert(
            2,
            f"- The 8-bit file was calibrated on {shipped.calibration_images} training images. Processors without "
            "8-bit dot products (VNNI, or dot product on ARM) run it slower, and older x86 ones less accurately.",
        )
    return "## Limits\n\n" + "\n".join(lines)
