"""The training task, as Lightning runs it: model, loss, optimizer and schedule put together.

What is computed in each part is in the files it imports; what is watched meanwhile is in callbacks.py.
"""

import math
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from lm.accounting.costs import worth_compiling
from lm.machine.compiling import compile_or_run, why_not_compiled
from lm.model.fast import speed_up
from lm.model.fast_attention import choose_attention
from lm.model.fast_loss import keeps_logits
from lm.model.loss import bits_per_byte, perplexity
from lm.model.transformer import TransformerLM, check_choice
from lm.optim.adamw import AdamW
from lm.optim.clipping import clip_gradients
from lm.optim.muon import Muon
from lm.optim.schedule import SCHEDULES
from lm.training.batches import Batch, check_batch
from lm.training.data import TokenDataModule
from lm.training.lightning_inside import current_hook, has_trainer, set_drawn_steps
from lm.training.nonfinite import SkippedSteps, spread_nonfinite
from lm.training.step_figures import StepFigures, as_figure
from lm.training.validation_losses import ValidationLosses
from tokenization import InputError


class LanguageModel(LightningModule):
    """Trains a TransformerLM to predict the next token.

    Args:
        learning_rate: the highest, reached at the end of the warmup.
        min_learning_rate: the last, at the end of the cosine.
        warmup_steps: optimizer steps of linear warmup.
        max_steps: the step at which the cosine ends; trainer.max_steps.
        weight_decay: of AdamW.
        betas: of AdamW: memory of the gradient, and of its square.
        eps: of AdamW.
        max_gradient_norm: the gradient of all parameters together is scaled down to this length.
        fast: false computes everything as the plain modules are written, to be read: slower, the same numbers.
        attention: how it is computed: blocks of queries, PyTorch's fused kernels (sdpa), or plain; auto goes by the
            device and the context length.
        compile: torch.compile; auto where the run is long enough to earn it back.
        recompute_activations: each block's activations are computed again on the way back: less memory, more time.
        z_loss: weight of the penalty on the softmax's normalizer; validation counts the cross-entropy alone.
        optimizer: AdamW for everything, or Muon for the layers' matrices and AdamW for the rest.
        muon_rate: Muon's learning rate, as a share of learning_rate.
        schedule: of the learning rate after the warmup: a cosine, or constant and then down in a line (trapezoid).
        max_skipped_steps: as many steps in a row whose loss or gradient is not finite end the run; each is skipped.
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
        optimizer: Literal["adamw", "muon"] = "adamw",
        muon_rate: float = 1.0,
        schedule: Literal["cosine", "trapezoid"] = "cosine",
        max_skipped_steps: int = 10,
        **model: Any,
    ):
        super().__init__()
        self.save_hyperparameters(logger=False)  # config.yaml is the one record of a run
        self.model = TransformerLM(**model, device=None, dtype=None)  # named, or the command line would offer them
        self.hparams.update(self.model.settings)
        self.model.z_loss = z_loss
        self.model.recompute = recompute_activations
        if not fast and (attention not in ("auto", "plain") or compile is True):
            raise ValueError(f"fast is false: attention {attention} and compile {compile} have no effect; set fast")
        self.arrangement, self.compile_optimizer = "", False
        self.figures = StepFigures()
        self.step_losses: list[Tensor] = []  # of the step's batches so far
        self.validation_losses = ValidationLosses()
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "z_loss"):
            if not 0 <= self.hparams[name] < math.inf:
                raise ValueError(f"{name} is {self.hparams[name]}; it must be finite, and not negative")
        check_choice("optimizer", optimizer, OPTIMIZERS)
        if optimizer != "muon" and muon_rate != 1:
            raise ValueError(f"muon_rate is {muon_rate}, which has no effect on optimizer {optimizer}; leave it out")
        if not max_gradient_norm > 0:
            raise ValueError(f"max_gradient_norm is {max_gradient_norm}; it must be above 0; .inf never scales")
        if max_skipped_steps < 1:
            raise ValueError(f"max_skipped_steps is {max_skipped_steps}; it must be at least 1")
        self.skipped_steps = SkippedSteps()
        self.configure_optimizers()  # what AdamW refuses is refused before a run begins

    @property
    def data(self) -> TokenDataModule | None:
        """The token files that the batches come from; None where a trainer was given loaders of one's own."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data if isinstance(data, TokenDataModule) else None

    def tokens_per_batch(self) -> int | None:
        """Returns the tokens of a batch on one device; None where nobody knows before the first one."""
        return None if self.data is None else self.data.batch_size * self.model.context_length

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.model(token_ids)

    def configure_model(self) -> None:
        """Chooses how the model is computed, once the device is known, and puts it into words in arrangement."""
        if self.arrangement or not has_trainer(self):  # load_from_checkpoint has none
            return
        device, attention = self.trainer.strategy.root_device.type, self.hparams["attention"]
        if not self.hparams["fast"]:
            self.arrangement = "plain"
            return
        if attention == "auto":
            attention = choose_attention(device, self.model.context_length)
        if self.device_mesh is not None and self.hparams["optimizer"] != "adamw":
            raise InputError(
                f"model.optimizer {self.hparams['optimizer']} needs whole matrices, which trainer.strategy fsdp cuts;"
                " take adamw"
            )
        compiled = self.trainer.state.fn == "fit" and self.should_compile(device)
        keep_logits = compiled and device == "cuda" and self.logits_fit()
        speed_up(self.model, attention, joint_products=device != "cpu", keep_logits=keep_logits)
        self.arrangement = f"attention {attention}, loss {'from whole logits' if keep_logits else 'in chunks'}"
        if self.device_mesh is not None:  # ModelParallelStrategy: FSDP
            for module in (*self.model.layers, self.model):
                fully_shard(module, mesh=self.device_mesh["data_parallel"])
        if compiled:
            self.model.compile(backend=compile_or_run)
            self.arrangement += ", compiled"
            self.compile_optimizer = device == "cuda" and self.device_mesh is None

    def logits_fit(self) -> bool:
        """Whether the GPU has room for all logits of a batch at once."""
        tokens = self.tokens_per_batch()
        memory = torch.cuda.get_device_properties(self.trainer.strategy.root_device).total_memory
        return tokens is not None and keeps_logits(tokens * len(self.model.lm_head.weight), memory)

    def should_compile(self, device: str) -> bool:
        """Whether to compile: requested, or worth it by itself, and possible."""
        wanted = self.hparams["compile"]
        if wanted == "auto":
            tokens = (self.tokens_per_batch() or 0) * max(0, self.trainer.max_steps)
            wanted = worth_compiling(self.model, tokens * self.trainer.accumulate_grad_batches, device)
        if wanted and (reason := why_not_compiled(device)):
            if self.global_rank == 0:
                print(f"lm fit: {reason}; training goes on without it", file=sys.stderr)
            return False
        return wanted

    def log(self, name: str, value: Any, *args: Any, **settings: Any) -> None:
        """Logs a figure; those of a training step are kept until it is known whether Lightning draws them."""
        if not self.trainer.training:
            super().log(name, value if settings.get("sync_dist") else as_figure(value), *args, **settings)
            return
        self.figures.keep(name, value, settings)
        if current_hook(self) == "on_train_batch_end":  # what a callback logs, others may show
            self.figures.draw(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, targets = check_batch(batch, self.model)
        loss = self.model(inputs, targets=targets)
        self._log_step_loss(loss.detach(), batch_idx)
        return loss

    def _log_step_loss(self, loss: Tensor, batch_idx: int) -> None:
        """Logs the mean over the step's batches so far; where it is drawn, over those of the other devices, too."""
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        self.step_losses = [loss] if first else [*self.step_losses, loss]
        mean = torch.stack(self.step_losses).mean()
        complete = len(self.step_losses) == self.trainer.accumulate_grad_batches
        if complete and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        self.log("train/loss", mean, prog_bar=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        spread_nonfinite(loss).backward(*args, **kwargs)

    def on_validation_epoch_start(self) -> None:
        self.validation_losses = ValidationLosses()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = check_batch(batch, self.model)
        with torch.compiler.set_stance("force_eager"):  # compiling once more would take longer than it saves
            loss = self.model(inputs, targets=targets)
        number = batch_idx * self.trainer.world_size + self.global_rank
        if self.data is None or number < self.data.num_val_batches:  # beyond, it only keeps the devices in step
            self.validation_losses.add(loss, targets.numel())

    def on_validation_epoch_end(self) -> None:
        loss, bad, batches = self.validation_losses.over_all_devices(self.trainer)
        words = f"the validation loss is {loss}; it is not finite in {bad:,} of {batches:,} batches"
        if bad and self.trainer.state.fn != "fit":
            raise InputError(words)
        if bad and self.global_rank == 0:
            print(f"lm fit: step {self.global_step}: {words}", file=sys.stderr)
        metrics = {"val/loss": loss, "val/perplexity": perplexity(loss)}
        if self.data is not None:
            about = self.data.files["validate"].description
            metrics["val/bits_per_byte"] = bits_per_byte(loss, about.tokens, about.bytes)
        if self.trainer.state.fn == "fit":
            metrics["step"] = float(self.global_step)  # Lightning draws the metrics at the value under this name
        self.log_dict(metrics, sync_dist=True)  # the same on every device; Lightning asks for this

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = {name: self.hparams[name] for name in ("weight_decay", "betas", "eps")}
        optimizer = OPTIMIZERS[self.hparams["optimizer"]](self, lr=0.0, compiled=self.compile_optimizer, **settings)
        if not hasattr(optimizer, "take"):
            raise InputError(
                f"model.optimizer {self.hparams['optimizer']} would train on numbers that are not finite: its class,"
                f" {type(optimizer).__name__}, has no `take`, by which a GPU skips a step; see AdamW"
            )
        return optimizer

    def learning_rate(self, step: int) -> float:
        """Of optimizer step number `step`, counted from 1: the first step moves the weights, too."""
        return SCHEDULES[self.hparams["schedule"]](
            step,
            self.hparams["learning_rate"],
            self.hparams["min_learning_rate"],
            self.hparams["warmup_steps"],
            self.hparams["max_steps"],
        )

    def on_train_start(self) -> None:
        # A checkpoint brings the settings it was saved with; the ones that this run records are those that count.
        for group in self.trainer.optimizers[0].param_groups:
            group.update(
                weight_decay=self.hparams["weight_decay"], betas=tuple(self.hparams["betas"]), eps=self.hparams["eps"]
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        learning_rate = self.learning_rate(self.global_step + 1)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = learning_rate
        self.log("lr", learning_rate)
        self.log("step", float(self.global_step + 1))  # Lightning draws the metrics at the value under this name
        # Where the curves go on; Lightning's own count is one behind when a finished run is trained further.
        set_drawn_steps(self.trainer, self.global_step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        optimizer.zero_grad()  # Lightning would keep the gradients through the next forward pass, where memory peaks
        self.figures.draw(self)

    def on_train_batch_end(self, *_: Any) -> None:
        self.figures.draw(self)  # of a step that has turned out to be the last

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Lightning calls this when the gradients are complete and unscaled."""
        norm = clip_gradients(self.parameters(), self.hparams["max_gradient_norm"])
        self.log("train/gradient_norm", norm)
        good = self.skipped_steps.count(norm)
        self.log("train/skipped_steps", self.skipped_steps.total.float())
        if good.is_cuda:
            self.trainer.optimizers[0].take = good  # type: ignore[attr-defined]  # which nobody waits to read
        elif not good:
            self.zero_grad()  # the optimizer passes over what has no gradient

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped_steps.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "skipped_steps" in checkpoint:  # not where weights alone were imported
            self.skipped_steps.load_state_dict(checkpoint["skipped_steps"])


def make_adamw(task: LanguageModel, **settings: Any) -> AdamW:
    return AdamW(task.parameters(), **settings)


def make_muon(task: LanguageModel, **settings: Any) -> Muon:
    half = has_trainer(task) and str(task.trainer.precision).startswith("bf16")
    dtype = torch.bfloat16 if half else torch.float32
    return Muon(task.model.named_parameters(), rate=task.hparams["muon_rate"], dtype=dtype, **settings)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": make_adamw, "muon": make_muon}
