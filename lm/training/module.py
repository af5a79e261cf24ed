"""Joins model, loss, optimizer and schedule into the LightningModule that `lm fit` trains.

Each part is computed in the file that it is imported from; fast_path.py chooses how. What else is logged is in
lm/monitoring/callbacks.py.
"""

import sys
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor

from lm.data.batches import Batch, check_batch
from lm.data.datamodule import TokenDataModule
from lm.evaluation import metrics
from lm.model.bigram_start import check_bigram_start
from lm.model.dropout import Dropout
from lm.model.initialization import start_small
from lm.model.transformer import TransformerLM
from lm.optim.averaging import WeightAverage
from lm.optim.clipping import clip_gradients
from lm.optim.schedule import DECAY_SHARE, SCHEDULES
from lm.runs.checkpoint import AVERAGE
from lm.training.fast_path import install_fast_path
from lm.training.first_weights import begin_with_bigrams
from lm.training.lightning_inside import current_hook, has_trainer, set_drawn_steps
from lm.training.nonfinite import SkippedSteps, spread_nonfinite
from lm.training.optimizers import group_settings, make_optimizer
from lm.training.step_figures import StepFigures, as_figure
from lm.training.training_settings import check_training_settings
from lm.training.validation_means import ValidationMeans, batch_means
from tokenization import InputError


class LanguageModel(LightningModule):
    """Trains a TransformerLM to predict the next token.

    Args:
        learning_rate: the peak, reached at the end of the warmup.
        min_learning_rate: the final learning rate, at max_steps.
        warmup_steps: optimizer steps of linear warmup.
        max_steps: the step at which the schedule ends; trainer.max_steps.
        weight_decay: decoupled weight decay, as in AdamW.
        betas: AdamW's decay rates for the means of the gradient and of its square.
        eps: AdamW's epsilon, added to the denominator.
        max_gradient_norm: the gradient of all parameters together is scaled down to this l2 norm; .inf never scales.
        fast: false computes everything with the plain modules, which are written to be read: slower, the same numbers.
        attention: how it is computed: in blocks of queries, by PyTorch's fused kernels (sdpa), or plainly; auto
            chooses by device and context length.
        compile: use torch.compile; auto does so if the run is long enough for that to pay off, unless our own kernels
            compute all that lies between the products.
        recompute_activations: recompute each block's activations in the backward pass: less memory, more time.
        z_loss: weight of the penalty on the softmax's normalizer; validation reports the cross-entropy alone.
        optimizer: adamw for all weights; or muon for the layers' matrices and AdamW for the rest; normuon also
            divides each row of a step by its running root mean square.
        muon_rate: Muon's learning rate, as a multiple of learning_rate.
        embedding_rate: the learning rate of the embedding, and of tables of bigrams and of value embeddings, as a
            multiple of learning_rate.
        head_rate: lm_head's learning rate, as a multiple of learning_rate.
        gain_rate: the learning rate of the norms' gains, of embedding skips and of smear, as a multiple of
            learning_rate.
        muon_iteration: whose coefficients Muon's five orthogonalization steps have.
        cautious_decay: Muon's weight decay acts on a weight only if the step also pulls it towards 0.
        dropout: share, set to 0 in each training step, of the numbers that embedding, attention and feed-forward
            networks add to the residual stream; for many passes over a text.
        ema_decay: validate and keep an exponential moving average of the weights, of about the last 1 / (1 - ema_decay)
            steps; training goes on with the weights themselves. 0 averages nothing.
        schedule: the learning rate after the warmup: half a cosine, a straight line, or constant and then a straight
            line (trapezoid).
        decay_share: share of the steps after the warmup in which the trapezoid falls.
        zero_init: start with output projections of 0, in attention and feed-forward networks.
        head_init: factor on lm_head's initial weights.
        bigram_init: start as a table of the bigrams of the training text, in embedding and head; needs zero_init.
        max_skipped_steps: end the run after this many steps in a row whose loss or gradient is not finite; each is
            skipped.
        model: settings of the TransformerLM.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        min_learning_rate: float = 1e-4,
        warmup_steps: int = 100,
        max_steps: int = 1000,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        max_gradient_norm: float = 1.0,
        fast: bool = True,
        attention: Literal["auto", "blocks", "sdpa", "plain"] = "auto",
        compile: bool | Literal["auto"] = "auto",
        recompute_activations: bool = False,
        z_loss: float = 0.0,
        optimizer: Literal["adamw", "muon", "normuon"] = "adamw",
        muon_rate: float = 1.0,
        embedding_rate: float = 1.0,
        head_rate: float = 1.0,
        gain_rate: float = 1.0,
        muon_iteration: Literal["jordan", "polar-express"] = "jordan",
        cautious_decay: bool = False,
        dropout: float = 0.0,
        ema_decay: float = 0.0,
        schedule: Literal["cosine", "linear", "trapezoid"] = "cosine",
        decay_share: float = DECAY_SHARE,
        zero_init: bool = False,
        head_init: float = 1.0,
        bigram_init: bool = False,
        max_skipped_steps: int = 10,
        **model: Any,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)  # config.yaml is the only record of a run
        self.model = TransformerLM(**model, device=None, dtype=None)  # given, or they would be settings
        self.hparams.update(self.model.settings)
        check_training_settings(self.hparams)
        self.model.z_loss = z_loss
        self.model.recompute = recompute_activations
        start_small(self.model, zero_init, head_init)
        if bigram_init:
            check_bigram_start(self.model, zero_init, head_init)
        self.dropout = Dropout(self.model, dropout) if dropout else None
        self.average = WeightAverage(self.parameters(), ema_decay)
        self.starts_anew = True  # else its first weights are a checkpoint's, or an earlier run's
        self.arrangement, self.compile_optimizer = "", False
        self.arranged_for: tuple[str, str | None] = "", None  # a device, and what the trainer was to do on it
        self.figures = StepFigures()
        self.step_losses: list[Tensor] = []  # of the current step's batches so far
        self.step_loss = torch.zeros(())  # their mean, on this device
        self.validation_means = ValidationMeans()
        self.skipped_steps = SkippedSteps()
        self.configure_optimizers()  # refuses its settings before a run begins

    @property
    def data(self) -> TokenDataModule | None:
        """The data module of the token files; None if the trainer was given other loaders."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, TokenDataModule) else None

    def tokens_per_batch(self) -> int | None:
        """Returns the tokens of a batch on one device; None if that is unknown before the first one."""
        return None if self.data is None else self.data.batch_size * self.model.context_length

    def forward(self, token_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(token_ids)
        return logits

    def setup(self, stage: str) -> None:
        if self.average.in_model:  # where a validation that failed has left it
            self.average.exchange()

    def configure_model(self) -> None:
        """Chooses how the model is computed, once the device is known, and describes it in `arrangement`.

        It is chosen anew for another device, and for training after anything else.
        """
        if not has_trainer(self):  # in load_from_checkpoint
            return
        device, what = self.trainer.strategy.root_device.type, self.trainer.state.fn
        if what == "fit":
            if self.hparams["bigram_init"] and self.starts_anew:
                begin_with_bigrams(self)
            self.starts_anew = False
        if self.arranged_for in ((device, what), (device, "fit")):
            return
        if self.hparams["ema_decay"] and self.device_mesh is not None:
            raise InputError(
                f"model.ema_decay {self.hparams['ema_decay']} needs whole weights, which trainer.strategy fsdp cuts;"
                " leave it out"
            )
        self.arrangement = "plain"
        if self.hparams["fast"]:
            self.arrangement, compiled = install_fast_path(self)
            self.compile_optimizer = compiled and device == "cuda" and self.device_mesh is None
        self.arranged_for = device, what

    def log(self, name: str, value: Any, *args: Any, **settings: Any) -> None:
        """Logs a figure; a training step's figures are kept until it is known whether Lightning draws the step."""
        if not self.trainer.training:
            super().log(name, value if settings.get("sync_dist") else as_figure(value), *args, **settings)
            return
        self.figures.keep(name, value, settings)
        if current_hook(self) == "on_train_batch_end":  # a callback logs it, and others may show it
            self.figures.draw(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = check_batch(batch, self.model)
        if self.dropout is not None:
            seed = 0 if self.data is None else self.data.seed
            self.dropout.draw(seed, self._batch_number(batch_idx), inputs.shape, inputs.device)
        loss: Tensor = self.model(inputs, targets=targets)
        self._log_step_loss(loss.detach(), batch_idx)
        return loss

    def _batch_number(self, batch_idx: int) -> int:
        """Returns the number of a batch among those of the run, on all devices."""
        of_device = self.trainer.accumulate_grad_batches
        batch = self.global_step * of_device + batch_idx % of_device
        return batch * self.trainer.world_size + self.global_rank

    def _log_step_loss(self, loss: Tensor, batch_idx: int) -> None:
        """Logs the mean over the step's batches so far; over those of all devices if the step is drawn."""
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.step_losses = [loss] if first else [*self.step_losses, loss]
        mean = self.step_loss = torch.stack(self.step_losses).mean()
        complete = len(self.step_losses) == self.trainer.accumulate_grad_batches
        if complete and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        self.log("train/loss", mean, prog_bar=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        torch.autograd.backward(spread_nonfinite(loss), *args, **kwargs)

    def on_validation_start(self) -> None:
        self.average.exchange()

    def on_validation_end(self) -> None:  # after the callbacks, so that samples and best.ckpt are the average's too
        self.average.exchange()

    def on_validation_epoch_start(self) -> None:
        self.validation_means = ValidationMeans()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = check_batch(batch, self.model)
        with torch.compiler.set_stance("force_eager"):  # compiling again would take longer than it saves
            means = batch_means(self.model, inputs, targets)
        number = batch_idx * self.trainer.world_size + self.global_rank
        if self.data is None or number < self.data.num_val_batches:  # the rest only keep the devices in step
            self.validation_means.add(means, targets.numel())

    def on_validation_epoch_end(self) -> None:
        means, bad, batches = self.validation_means.over_all_devices(self.trainer)
        words = f"the validation loss is {means['loss']}; it is not finite in {bad:,} of {batches:,} batches"
        if bad and self.trainer.state.fn != "fit":
            raise InputError(words)
        if bad and self.global_rank == 0:
            print(f"lm fit: step {self.global_step:,}: {words}", file=sys.stderr)
        about = self.data.files["validate"].description if self.data is not None else None
        found = metrics(means, about.tokens, about.bytes) if about is not None else metrics(means)
        figures = {f"val/{name}": value for name, value in found.items()}
        if self.trainer.state.fn == "fit":
            figures["step"] = float(self.global_step)  # Lightning draws the metrics against this
        self.log_dict(figures, sync_dist=True)  # already equal on every device, but Lightning insists

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self, self.compile_optimizer)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of an optimizer step, counted from 1, so that the first step moves the weights."""
        own = {"decay_share": self.hparams["decay_share"]} if self.hparams["schedule"] == "trapezoid" else {}
        return SCHEDULES[self.hparams["schedule"]](
            step,
            self.hparams["learning_rate"],
            self.hparams["min_learning_rate"],
            self.hparams["warmup_steps"],
            self.hparams["max_steps"],
            **own,
        )

    def on_train_start(self) -> None:
        # A checkpoint restores the settings it was saved with; this run's own must win.
        for group in self.trainer.optimizers[0].param_groups:
            group.update(group_settings(self))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        learning_rate = self.learning_rate(self.global_step + 1)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate
        self.log("lr", learning_rate)
        self.log("step", float(self.global_step + 1))  # Lightning draws the metrics against this
        # The curves continue here; Lightning's own count is one behind when a finished run is trained further.
        set_drawn_steps(self.trainer, self.global_step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        self.average.update()
        optimizer.zero_grad()  # Lightning keeps the gradients through the next forward pass, where memory peaks
        self.figures.draw(self)

    def on_train_batch_end(self, *_: Any) -> None:
        self.figures.draw(self)  # if this step has turned out to be the last

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips the gradient, and skips the step if it is not finite; Lightning has unscaled it."""
        norm = clip_gradients(self.parameters(), self.hparams["max_gradient_norm"], kernel=self.hparams["fast"])
        self.log("train/gradient_norm", norm)
        good = self.skipped_steps.count(norm)
        self.log("train/skipped_steps", self.skipped_steps.total.float())
        if good.is_cuda:
            self.trainer.optimizers[0].take = good  # type: ignore[attr-defined]  # read on the device, without waiting
        elif not good:
            self.zero_grad()  # the optimizer passes over parameters without a gradient

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped_steps.state_dict()
        if self.average.steps:  # whoever reads the weights gets those that were validated
            averaged, trained = self.average.states(self.state_dict(keep_vars=True))
            checkpoint |= {"state_dict": averaged, AVERAGE: {"steps": self.average.steps, "trained": trained}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.starts_anew = False
        if "skipped_steps" in checkpoint:  # imported weights have none
            self.skipped_steps.load_state_dict(checkpoint["skipped_steps"])
        if AVERAGE in checkpoint and has_trainer(self) and self.trainer.state.fn == "fit":
            if self.device_mesh is not None:  # the averages are in the model by now
                raise InputError(
                    "the checkpoint holds averaged weights (model.ema_decay), beside those that are trained, and"
                    " trainer.strategy fsdp cannot tell them apart; resume it without fsdp"
                )
            if self.average.decay:
                steps = checkpoint[AVERAGE]["steps"]
                self.average.load(self.state_dict(keep_vars=True), checkpoint["state_dict"], steps)
            checkpoint["state_dict"] = checkpoint[AVERAGE]["trained"]
