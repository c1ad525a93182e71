"""A network of a supernet as it is, in a folder like that of a training: what `ship` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evit_nas import __version__
from evit_nas.errors import RunError
from evit_nas.evaluation import evaluate
from evit_nas.network.saved import efficientvit, open_saved
from evit_nas.network.supernet import Supernet
from evit_nas.runs import installed_versions
from evit_nas.trained import WEIGHTS, Trained, parted
from evit_nas.training.checkpoint import save_weights

FOLDER = "networks"  # below the supernet's


def inherit(text: str, command: str, note: Callable[[str], None]) -> Path:
    """The folder of the network that SUPERNET#ARCH names, validated on the data of the supernet.

    Args:
        command: what the record says was typed.
        note: told about the data.

    Raises:
        UsageError: supernet, network or data cannot be used.
        RunError: the folder cannot be written.
    """
    parts = parted(text)
    assert parts is not None
    supernet, saved = Supernet.load(parts[0]), open_saved(text)
    model = efficientvit(saved)
    arch = model.arch
    out = parts[0] / FOLDER / f"{saved.name}-{arch.key}"
    if (out / WEIGHTS).is_file():
        return out
    [found] = evaluate([text], supernet.data, note=note)
    trained = Trained(
        name=saved.name,
        arch=arch,
        classes=supernet.classes,
        preprocessing=supernet.preprocessing,
        data=supernet.data,
        data_name=supernet.data_name,
        recipe=supernet.recipe,
        init=f"weights that it shared in {parts[0]}, not trained further",
        seed=supernet.seed,
        epoch=supernet.epoch,
        averaged=supernet.averaged,
        top1=found.top1,
        top5=found.top5,
        loss=found.cross_entropy,
        validation_images=found.images,
        doubts=("its weights are shared ones: a training of its own that starts from them (--init) makes it better",),
        command=command,
        versions={"evit_nas": __version__, **installed_versions()},
    )
    origin = {"evit_nas.arch": arch.model_dump_json(), "evit_nas.version": __version__}
    try:
        out.mkdir(parents=True, exist_ok=True)
        trained.save(out)
        save_weights(out / WEIGHTS, model.state_dict(), origin)  # last: it says that the folder is whole
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}.") from None
    return out
