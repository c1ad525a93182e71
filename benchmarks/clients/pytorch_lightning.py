"""Lightning trains the network, and its checkpoint computes what was trained: pip install lightning."""

import tempfile
import warnings

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from common import compared
from torch.utils.data import DataLoader, TensorDataset
from torch_clients import network, tried

EPOCHS = 3


class Classifier(lightning.LightningModule):
    def __init__(self, folder):
        super().__init__()
        self.save_hyperparameters()
        self.network, self.losses = network(folder), []

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


def fit(folder, images, logits):
    answer = compared(Classifier(folder).eval()(images).detach().numpy(), logits)
    labels = torch.arange(len(images)) % logits.shape[1]  # others than the network knows: it has to learn
    model = Classifier(folder).train()
    with tempfile.TemporaryDirectory() as place:
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, default_root_dir=place, accelerator="cpu", logger=False, enable_progress_bar=False
        )
        trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=20, shuffle=True))
        again = Classifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path, weights_only=False)
    with torch.inference_mode():
        restored = compared(again.eval()(images).numpy(), model.eval()(images).numpy())
    losses = np.reshape(model.losses, (EPOCHS, -1)).mean(axis=1)
    if not losses[-1] < losses[0] or restored["difference"] != 0:
        raise ValueError(f"losses {losses}, and its checkpoint is {restored['difference']:.1e} away")
    return answer | {"loss": [losses[0], losses[-1]]}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # that few workers load the data
    tried("Lightning", lightning.__version__, fit, how="`Trainer.fit`, `load_from_checkpoint`")
