"""Shows how training goes: the norms of gradients, weights and activations, and a progress bar.

Samples are in samples.py, speed in throughput.py.
"""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.progress_bar import ProgressBar
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from lm.durations import format_duration
from lm.model.transformer import TransformerLM
from lm.monitoring.progress import validation_lines
from lm.optim.clipping import joint_norm

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # tqdm's, without the time left


class Norms(Callback):
    """Logs norms of gradients, weights and activations, part by part: a run that goes wrong shows it here first.

    Gradients (before clipping) and weights by their l2 norm; each layer's output by its root mean square, for the first
    batch of every validation.

    Args:
        every_n_steps: optimizer steps from one measurement of gradients and weights to the next; 0 measures nothing.
    """

    def __init__(self, every_n_steps: int = 100):
        if every_n_steps < 0:
            raise ValueError(f"norms.every_n_steps is {every_n_steps}; it must be at least 0, which measures nothing")
        self.every_n_steps = every_n_steps
        self.activations: dict[str, Tensor] = {}
        self.hooks: list[Any] = []

    def _log(self, trainer: Trainer, values: dict[str, Tensor], step: int) -> None:
        whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in whole.items()}, step)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step + 1
        if not self.every_n_steps or step % self.every_n_steps:
            return
        norms = {}
        for name, part in parts(pl_module.model).items():  # type: ignore[arg-type]
            weights: list[Tensor] = list(part.parameters())
            norms[f"weight_norm/{name}"] = joint_norm(weights)
            norms[f"gradient_norm/{name}"] = joint_norm([weight.grad for weight in weights if weight.grad is not None])
        self._log(trainer, norms, step)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not self.every_n_steps or batch_idx or trainer.state.fn != "fit" or trainer.sanity_checking:
            return

        def watch(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                self.activations[f"activation_rms/{name}"] = output.float().square().mean().sqrt()

            return hook

        layers = parts(pl_module.model)  # type: ignore[arg-type]
        watched = layers.keys() - {"lm_head", "skips", "value_embeddings"}  # the last two are called by each layer
        self.hooks = [layers[name].register_forward_hook(watch(name)) for name in layers if name in watched]

    def on_validation_batch_end(self, *_: Any) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._log(trainer, self.activations, trainer.global_step)
        self.activations = {}


def parts(model: TransformerLM) -> dict[str, nn.Module]:
    """Returns the parts of a model by name, from the embedding to the logits."""
    layers = {f"layers.{number}": layer for number, layer in enumerate(model.layers)}
    additions = {name: getattr(model, name) for name in ("smear", "bigrams", "skips", "value_embeddings")}
    ends = {"ln_final": model.ln_final, "lm_head": model.lm_head}
    named = {"token_embeddings": model.token_embeddings, **additions, **layers, **ends}
    return {name: part for name, part in named.items() if part is not None}


class TrainingBar(ProgressBar):
    """Shows one bar for the run, in optimizer steps, with loss, speed and time left, and one for each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.bars: list[Any] = []  # the innermost last

    def enable(self) -> None:
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.enabled:
            tqdm.write(" ".join(map(str, args)))

    def _open(self, description: str, total: float, unit: str, leave: bool = True, **settings: Any) -> None:
        self.bars.append(
            tqdm(
                total=total,
                desc=description,
                unit=unit,
                leave=leave,
                disable=not self.enabled,
                dynamic_ncols=True,
                **settings,
            )
        )

    def _close(self) -> None:
        if self.bars:
            self.bars.pop().close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = min(trainer.max_steps, pl_module.hparams["max_steps"])
        self._open("training", steps, "step", initial=trainer.global_step, bar_format=BAR)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        bar = self.bars[-1]
        if trainer.global_step == bar.n:
            return  # within a step that accumulates batches
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            metrics = trainer.progress_bar_metrics
            figures = {"loss": f"{float(metrics['train/loss']):.3f}"}
            if "train/tokens_per_second" in metrics:
                figures["tokens/s"] = f"{float(metrics['train/tokens_per_second']):,.0f}"
                figures["MFU"] = f"{float(metrics['train/mfu']):.0%}"
            if "train/passes" in metrics:
                figures["passes"] = f"{float(metrics['train/passes']):.2f}"
            if "left" in metrics:
                figures["left"] = format_duration(float(metrics["left"]))
            bar.set_postfix(figures, refresh=False)
        bar.update(trainer.global_step - bar.n)

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        while self.bars:
            self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_val_batches
        self._open("validating", sum(batches) if isinstance(batches, list) else batches, "batch", leave=False)

    def on_validation_batch_end(self, *_: Any) -> None:
        self.bars[-1].update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.print(validation_lines(trainer))
